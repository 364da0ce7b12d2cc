"""Which files of a checkpoint folder hold its weights: transformers' rule, in one place.

A folder can hold several sets of weights: an index that an older save left, shards that no index
names, a second format. What is read is what `from_pretrained` reads, by
`_get_resolved_checkpoint_files` of transformers 5.23; whatever else could be taken for weights is
named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mechprobe.errors import CheckpointError
from mechprobe.models.weights import read_json

_INDEX_ENDING: Final = ".index.json"
_SINGLE: Final = "model.safetensors"
_INDEX: Final = _SINGLE + _INDEX_ENDING
_PICKLE: Final = "pytorch_model.bin"
_PICKLE_INDEX: Final = _PICKLE + _INDEX_ENDING
_ADAPTER: Final = "adapter_config.json"
_LIKE_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pth", "*.gguf", f"*{_INDEX_ENDING}")
_NO_WEIGHTS: Final = frozenset({"training_args.bin"})


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold a folder's weights."""

    folder: Path
    files: tuple[Path, ...]
    """In the order of their names."""
    index: Path | None
    """What names them where they are shards."""

    @property
    def passed_over(self) -> tuple[Path, ...]:
        """Files of the folder that could be taken for weights and are not read."""
        used = {*self.files, self.index}
        like = {file for pattern in _LIKE_WEIGHTS for file in self.folder.glob(pattern)}
        return tuple(
            sorted(file for file in like - used if file.is_file() and file.name not in _NO_WEIGHTS)
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of the choice, in words."""
        others = self.passed_over
        if not others:
            return ()
        names = ", ".join(file.name for file in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        read = (self.index or self.files[0]).name
        return (
            f"the weights are those of {read}, as transformers reads the folder; not read: "
            f"{names}{more}; remove what is stale, other programs may take it",
        )


def weight_files(folder: Path, *, allow_pickle: bool = False) -> WeightFiles:
    """Find the files that hold a folder's weights.

    As transformers does, in this order: what `transformers_weights` of `config.json` names,
    `model.safetensors`, the shards of `model.safetensors.index.json`, and with `allow_pickle`
    `pytorch_model.bin` or its shards. Where there is none of these: AutoGPTQ's
    `model_file_base_name`, else the only safetensors file, which transformers would not find.

    Args:
        folder: A checkpoint folder.
        allow_pickle: Accept `pytorch_model.bin` where there is no safetensors file.

    Raises:
        CheckpointError: None, too many, a shard is missing, pickled ones alone, or an adapter that
            would have to be added to them.
    """
    if (folder / _ADAPTER).is_file():
        raise CheckpointError(
            f"{folder}: holds an adapter ({_ADAPTER}) that transformers adds to the weights; merge "
            "it into them (peft's merge_and_unload), or remove that file to measure them alone"
        )
    config = _json_if_there(folder / "config.json")
    if explicit := config.get("transformers_weights"):
        return _named(folder, str(explicit))
    base = _base_name(folder, config)
    pickles = [name for name in (_PICKLE, _PICKLE_INDEX) if (folder / name).is_file()]
    names = [_SINGLE, _INDEX, *(pickles if allow_pickle else [])]
    names += [f"{base}.safetensors", f"{base}.safetensors{_INDEX_ENDING}"] if base else []
    for name in names:
        if (folder / name).is_file():
            return _named(folder, name)
    if pickles:
        raise CheckpointError(
            f"{folder}: the weights are pickled ({pickles[0]}) and run code when read; "
            "convert them to safetensors, or pass allow_pickle=True to mechprobe.load"
        )
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return WeightFiles(folder, (found[0],), None)
    if found:
        shown = ", ".join(file.name for file in found[:4])
        raise CheckpointError(f"{folder}: {len(found)} weight files and no {_INDEX}: {shown}")
    raise CheckpointError(f"{folder}: no safetensors file; is the download complete?")


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _base_name(folder: Path, config: Mapping[str, Any]) -> str | None:
    """AutoGPTQ's name of the weight file, without its ending."""
    claims = config.get("quantization_config"), _json_if_there(folder / "quantize_config.json")
    names = [c.get("model_file_base_name") for c in claims if isinstance(c, dict)]
    return next((str(name) for name in names if name), None)


def _named(folder: Path, name: str) -> WeightFiles:
    """The file of this name, or the shards of the index of this name."""
    index, names = None, [name]
    if name.endswith(_INDEX_ENDING):
        index = folder / name
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: it maps no tensor to a file")
        names = sorted(set(map(str, weight_map.values())))
    if outside := [each for each in names if ".." in Path(each).parts or Path(each).is_absolute()]:
        raise CheckpointError(f"{folder}: {name} leads outside the folder: {outside[0]}")
    if lost := [each for each in names if not (folder / each).is_file()]:
        raise CheckpointError(f"{folder}: {len(lost)} shard(s) missing, first {lost[0]}")
    return WeightFiles(folder, tuple(folder / each for each in names), index)


@contextmanager
def unambiguous(weights: WeightFiles) -> Iterator[Path]:
    """Give a folder from which every program reads these weights and no others.

    GPTQModel and llama.cpp's converter take an index before a single file, stale or not.

    Yields:
        The folder itself where it holds nothing else under the usual names; a folder of links
        otherwise, which is gone when the block ends.
    """
    source = weights.index or weights.files[0]
    pickled = source.name.removesuffix(_INDEX_ENDING).endswith(".bin")
    usual = (_PICKLE if pickled else _SINGLE) + (_INDEX_ENDING if weights.index else "")
    if source == weights.folder / usual and not weights.passed_over:
        yield weights.folder
        return
    left_out = {*weights.passed_over, source}
    with tempfile.TemporaryDirectory(prefix="mechprobe-") as scratch:
        links = Path(scratch) / weights.folder.resolve().name  # the converter names models so
        links.mkdir()
        for path in weights.folder.iterdir():
            if path not in left_out:
                (links / path.name).symlink_to(path.resolve())
        (links / usual).symlink_to(source.resolve())
        yield links
