"""Damage to files: typed changes of JSON values, changed numbers of a binary header, changed bytes.

Every change is drawn from a `random.Random` that the caller seeds, so that a file can be made again
from its number.
"""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]
_DEEP = "§deep§"
_HALF = "§half§"
_LONG = "§long§"
_RAW = {
    _DEEP: "[" * 5000 + "]" * 5000,
    _HALF: '"\\ud83d"',
    _LONG: "9" * 5000,
}
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**20, 1.5, -0.5, 1e308, float("nan"),
    float("inf"), "", "x", "\x00", "0", "../../etc", "<s>", [], {}, [None], [[]], ["a", 1],
    {"a": None}, [1] * 5, _DEEP, _HALF, _LONG,
)  # fmt: skip
_WORDS = (0, 1, 2, 3, 7, 255, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63,
          2**64 - 1)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value[:50]) if isinstance(value, list) else inner
    for key, child in inner:
        yield from _places(child, (*path, key))


def changed_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place, mostly a shallow one, removed, replaced, doubled or renamed."""
    value = copy.deepcopy(value)
    places = [path for path in _places(value) if path]
    if not places:
        return rng.choice(_VALUES)
    shallow = [path for path in places if len(path) == 1]
    path = rng.choice(shallow if rng.random() < 0.5 else places)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    how, last = rng.random(), path[-1]
    if how < 0.12:
        del holder[last]
    elif how < 0.17 and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    elif how < 0.22 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[last]))
    else:
        holder[last] = copy.deepcopy(rng.choice(_VALUES))
    return value


def _written(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    for mark, raw in _RAW.items():
        text = text.replace(json.dumps(mark, ensure_ascii=False), raw)
    return text


def json_damage(content: bytes, rng: random.Random) -> bytes:
    """A JSON document with a value of another type, or with other bytes."""
    if rng.random() < 0.15:
        return byte_damage(content, rng)
    return _written(changed_value(json.loads(content), rng)).encode("utf-8", "surrogatepass")


def json_lines_damage(content: bytes, rng: random.Random) -> bytes:
    """JSON lines of which one has a value of another type, or with other bytes."""
    if rng.random() < 0.15:
        return byte_damage(content, rng)
    lines = content.decode().rstrip("\n").split("\n")
    at = rng.randrange(len(lines))
    lines[at] = _written(changed_value(json.loads(lines[at]), rng))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def byte_damage(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut off, removed, repeated or put between."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data)) if data else 0
        how = rng.randrange(6)
        if how == 0 and data:
            data[at] = rng.randrange(256)
        elif how == 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            del data[at:]
        elif how == 3:
            del data[at : at + rng.randint(1, 16)]
        elif how == 4:
            data[at:at] = rng.choice((b"\xff", b"\x00", b"\n", b'"', b"\xed\xa0\x80", b"9" * 5000))
        else:
            data[at:at] = data[at : at + rng.randint(1, 64)]
    return bytes(data)


def header_damage(size: int) -> Damage:
    """A number of the first `size` bytes set to an extreme, or other bytes there."""

    def damage(content: bytes, rng: random.Random) -> bytes:
        end = min(size, len(content))
        if rng.random() < 0.4:
            return byte_damage(content[:end], rng) + content[end:]
        data = bytearray(content)
        width = rng.choice((1, 4, 8))
        at = rng.randrange(max(1, end - width))
        word = rng.choice(_WORDS) % 256**width
        data[at : at + width] = word.to_bytes(width, "little")
        return bytes(data)

    return damage


def safetensors_damage(content: bytes, rng: random.Random) -> bytes:
    """A header with a value of another type, its length kept right as a rule."""
    (length,) = struct.unpack("<Q", content[:8])
    if rng.random() < 0.2:
        return header_damage(8 + length)(content, rng)
    header = json_damage(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def text_damage(content: bytes, rng: random.Random) -> bytes:
    """A table or a YAML text with a word replaced, or with other bytes."""
    if rng.random() < 0.4:
        return byte_damage(content, rng)
    lines = content.decode().split("\n")
    at = rng.randrange(len(lines))
    words = [mark for mark in (",", ": ", " ", "- ") if mark in lines[at]]
    mark = rng.choice(words or [","])
    parts = lines[at].split(mark)
    parts[rng.randrange(len(parts))] = rng.choice((
        "", "x", "-1", "1e999", "nan", "9" * 25, "9" * 5000, "{", "[", "[" * 3000, "*a", "&a",
        "2020-99-99", '"', "'", "\t", "null", "true", "0x10", "\\", "|", ">", "!!python/none",
    ))  # fmt: skip
    lines[at] = mark.join(parts)
    if rng.random() < 0.1:
        lines.insert(at, lines[rng.randrange(len(lines))])
    return "\n".join(lines).encode()
