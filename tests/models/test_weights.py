"""Weight files are found, read and doubted before any library touches them."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors import safe_open

from mechprobe.errors import CheckpointError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.weight_files import weight_files
from mechprobe.models.weights import digest_files, read_table


def copy(plain, tmp_path, kind="llama"):
    return shutil.copytree(plain(kind), tmp_path / "copy")


def test_the_table_is_what_safetensors_reads(plain):
    (file,) = weight_files(plain()).files
    table = read_table([file])
    with safe_open(file, framework="pt") as reader:
        assert set(table) == set(reader.keys())
        for name, entry in table.items():
            tensor = reader.get_tensor(name)
            assert entry.shape == tuple(tensor.shape)
            assert entry.nbytes == tensor.nbytes and entry.size == tensor.numel()


def test_the_digest_is_sha256_of_the_bytes(plain, tmp_path):
    folder = copy(plain, tmp_path)
    (file,) = weight_files(folder).files
    digest = digest_files([file])
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_checkpoint(folder).digest == digest
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert digest_files([file]) != digest


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(plain, tmp_path, keep):
    folder = copy(plain, tmp_path)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated") as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_corrupt_header_is_named(plain, tmp_path):
    folder = copy(plain, tmp_path)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[20] = 0xFF
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: corrupt") as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_tensors_that_overlap_are_refused(plain, tmp_path):
    """Each as long as it says and the file as long as its header says; one lies on another."""
    folder = copy(plain, tmp_path)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    header[first]["data_offsets"] = header[second]["data_offsets"]
    content = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    file.write_bytes(len(content).to_bytes(8, "little") + content + data[8 + length :])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: unreadable") as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_bytes_after_the_end_are_refused(plain, tmp_path):
    folder = copy(plain, tmp_path)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: corrupt"):
        load_checkpoint(folder)


def test_shards(plain, tmp_path):
    whole = load_checkpoint(plain())
    folder = tmp_path / "sharded"
    whole.module.to(torch.float16).save_pretrained(folder, max_shard_size="500KB")
    whole.tokenizer.save_pretrained(folder)
    files = weight_files(folder).files
    assert len(files) > 2
    again = load_checkpoint(folder)
    ids = torch.arange(12)[None]
    assert torch.equal(again.module(ids).logits, load_checkpoint(plain()).module(ids).logits)
    files[1].unlink()
    with pytest.raises(CheckpointError, match=rf"1 shard\(s\) missing, first {files[1].name}"):
        load_checkpoint(folder)


def test_which_of_several_files(plain, tmp_path):
    folder = copy(plain, tmp_path)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert [f.name for f in weight_files(folder).files] == ["model.safetensors"]
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match="2 weight files"):
        weight_files(folder)
    (folder / "quantize_config.json").write_text(json.dumps({"model_file_base_name": "other"}))
    assert weight_files(folder).files == (folder / "other.safetensors",)


def test_pickles_need_a_flag(plain, tmp_path):
    folder = copy(plain, tmp_path)
    (file,) = weight_files(folder).files
    with safe_open(file, framework="pt") as reader:
        torch.save({name: reader.get_tensor(name) for name in reader.keys()}, folder / "pytorch_model.bin")  # fmt: skip # noqa: E501, SIM118
    file.unlink()
    with pytest.raises(CheckpointError, match="allow_pickle"):
        load_checkpoint(folder)
    checkpoint = load_checkpoint(folder, allow_pickle=True)
    assert checkpoint.quant.precision == "FP16"
    ids = torch.arange(12)[None]
    assert torch.equal(checkpoint.module(ids).logits, load_checkpoint(plain()).module(ids).logits)
    (folder / "pytorch_model.bin").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: truncated, corrupt"):
        load_checkpoint(folder, allow_pickle=True)


def test_an_empty_folder(plain, tmp_path):
    folder = copy(plain, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CheckpointError, match="maps no tensor"):
        load_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json, line 1: not JSON"):
        load_checkpoint(folder)
