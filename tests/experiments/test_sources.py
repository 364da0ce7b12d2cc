"""The identity and size of a source are those of the files that loading reads."""

import shutil

import pytest

from mechprobe.errors import CheckpointError
from mechprobe.experiments.sources import find_source, weight_bytes
from mechprobe.models.source import resolve_source

ORGANISM = resolve_source("organism:llama-s").path


def test_stale_neighbours_are_no_part_of_a_checkpoint(tmp_path):
    folder = shutil.copytree(ORGANISM, tmp_path / "copy")
    weights = folder / "model.safetensors"
    source, digest = find_source(str(folder))
    assert weight_bytes(source) == weights.stat().st_size
    for name in ("model-00001-of-00001.safetensors", "pytorch_model.bin"):
        shutil.copy(weights, folder / name)
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "model-00001-of-00001.safetensors"}}'
    )
    assert find_source(str(folder)) == (source, digest)
    assert weight_bytes(source) == weights.stat().st_size
    weights.unlink()
    assert find_source(str(folder))[1] != digest
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled"):
        weight_bytes(source)
    assert find_source(str(folder))[0] == source  # as a tokenizer's folder it will do
