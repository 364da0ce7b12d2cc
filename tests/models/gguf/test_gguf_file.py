"""The header reader against the `gguf` package's own, and every way a file can be broken."""

import struct

import gguf
import pytest

from mechprobe.errors import CheckpointError
from mechprobe.models.gguf_file import read_gguf


def test_reads_what_the_gguf_package_reads(tiny_gguf):
    path = tiny_gguf("llama", "Q4_K_M")
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for key, field in fields.items():
        assert ours.metadata[key] == field.contents(), key
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert (found.type, found.nbytes) == (tensor.tensor_type.name, tensor.n_bytes)
        assert ours.raw(found).tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize("keep", [0, 3, 20, 500, 5000, -1])
def test_truncation_is_one_line(tiny_gguf, tmp_path, keep):
    whole = tiny_gguf().read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError) as raised:
        read_gguf(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    assert any(word in message for word in ("truncated", "empty", "not a GGUF"))


def test_every_cut_of_the_header_is_noticed(tiny_gguf, tmp_path):
    file = read_gguf(tiny_gguf())
    whole = tiny_gguf().read_bytes()
    end = min(t.offset for t in file.tensors.values())
    path = tmp_path / "m.gguf"
    for keep in range(1, end, 37):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError):
            read_gguf(path)


@pytest.mark.parametrize(
    ("at", "layout", "value", "message"),
    [
        (0, "4s", b"GGML", "not a GGUF file"),
        (4, "<I", 99, "version 99 is not supported"),
        (4, ">I", 3, "is not supported"),
        (8, "<Q", 1 << 40, "truncated or corrupt"),
        (16, "<Q", 1 << 20, "truncated or corrupt"),
        (24, "<Q", 1 << 60, "truncated or corrupt"),
    ],
)
def test_corrupt_headers(tiny_gguf, tmp_path, at, layout, value, message):
    content = bytearray(tiny_gguf().read_bytes())
    struct.pack_into(layout, content, at, value)
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def test_missing_file_and_split_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_gguf(tmp_path / "none.gguf")
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="one of 3 parts; join them first"):
        read_gguf(tmp_path / "part.gguf")


def header(*tensors, keys=(), padding=True, alignment=32):
    """The bytes of a GGUF of F32 vectors: (name, length, offset) each, data of one value each."""
    body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys:
        body += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", 4, value)
    for name, length, offset in tensors:
        body += struct.pack("<Q", len(name)) + name.encode()
        body += struct.pack("<IQIQ", 1, length, 0, offset)
    body += bytes(-len(body) % alignment)
    for number, (_, length, _) in enumerate(tensors):
        body += struct.pack("<f", number + 1) * length
        if padding or number < len(tensors) - 1:
            body += bytes(-len(body) % alignment)
    return body


def accepts(path):
    """Whether llama.cpp's own reader takes the header."""
    llama = pytest.importorskip("cyllama.llama.llama_cpp")
    try:
        llama.GGUFContext.from_file(str(path)).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("tensors", "keys", "message"),
    [
        ([("a", 8, 0), ("b", 3, 32)], (), None),
        ([("a", 8, 0), ("b", 3, 64)], [("general.alignment", 64)], None),
        ([("a", 8, 0), ("b", 3, 64)], (), "tensor b begins 64 bytes .* end at 32"),
        ([("a", 8, 0), ("b", 3, 16)], (), "tensor b begins 16 bytes"),
        ([("a", 8, 0), ("b", 3, 0)], (), "tensor b begins 0 bytes"),
        ([("a", 8, 32), ("b", 3, 0)], (), "tensor a begins 32 bytes"),
        ([("a", 8, 0), ("a", 3, 32)], (), "two tensors are called a"),
        ([("a", 8, 0)], [("general.alignment", 0)], r"general\.alignment is 0"),
        ([("a", 8, 0)], [("general.alignment", 24)], r"general\.alignment is 24"),
        ([("a", 8, 0)], [("x", 1), ("x", 2)], "the key x is there twice"),
    ],
)
def test_the_layout_that_llama_cpp_accepts_is_accepted(tmp_path, tensors, keys, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(
        header(*tensors, keys=keys, alignment=max(dict(keys).values(), default=32) or 32)
    )
    assert accepts(path) == (message is None)
    if message:
        with pytest.raises(CheckpointError, match=message):
            read_gguf(path)
        return
    file = read_gguf(path)
    for number, tensor in enumerate(file.tensors.values()):
        assert set(file.raw(tensor).view("<f4")) == {number + 1.0}


def test_the_padding_after_the_last_tensor_may_be_left_out(tmp_path):
    path = tmp_path / "m.gguf"
    for padding in (True, False):
        path.write_bytes(header(("a", 8, 0), ("b", 3, 32), padding=padding))
        assert read_gguf(path).tensors["b"].nbytes == 12


@pytest.mark.parametrize("count", [1, 16, 31, 32, 64, 4096])
@pytest.mark.parametrize(
    "place", ["in the first tensor", "between two", "in the last", "at the end"]
)
def test_bytes_put_in_or_taken_out_are_noticed(tiny_gguf, tmp_path, place, count):
    """llama.cpp looks for no more than enough bytes, and reads what follows shifted."""
    path, whole = tmp_path / "m.gguf", tiny_gguf().read_bytes()
    tensors = list(read_gguf(tiny_gguf()).tensors.values())
    at = {
        "in the first tensor": tensors[0].offset + 8,
        "between two": tensors[1].offset,
        "in the last": tensors[-1].offset + 8,
        "at the end": len(whole),
    }[place]
    path.write_bytes(whole[:at] + bytes(count) + whole[at:])
    with pytest.raises(CheckpointError, match=r"m\.gguf: corrupt: \d+ bytes where"):
        read_gguf(path)
    path.write_bytes(whole[:at] + whole[at + count :] if place != "at the end" else whole[:-count])
    with pytest.raises(CheckpointError, match=r"m\.gguf: truncated"):
        read_gguf(path)


def test_a_row_is_whole_blocks(tiny_gguf, tmp_path):
    path, name = tmp_path / "m.gguf", b"blk.0.ffn_up.weight"
    content = bytearray(tiny_gguf("llama", "Q4_K_M").read_bytes())
    at = content.index(name) + len(name) + 4
    struct.pack_into("<QQ", content, at, 128, 1024)  # as many weights as before
    path.write_bytes(content)
    assert not accepts(path)
    with pytest.raises(CheckpointError, match="rows of 128 weights, and Q4_K stores 256"):
        read_gguf(path)
