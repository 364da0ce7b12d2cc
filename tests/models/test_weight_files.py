"""Which weights a folder means: transformers' resolution decides, stale neighbours are named."""

import itertools
import json
import shutil
import warnings
from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import _get_resolved_checkpoint_files

from mechprobe.errors import CheckpointError, CheckpointWarning
from mechprobe.models.load import load_checkpoint
from mechprobe.models.quantize import quantize
from mechprobe.models.unpacked import unpacked_weights
from mechprobe.models.weight_files import unambiguous, weight_files
from mechprobe.models.weights import digest_files

IDS = torch.arange(12)[None]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
PARTS = {
    "single": ("model.safetensors",),
    "index": ("model.safetensors.index.json",),
    "shards": SHARDS,
    "pickle": ("pytorch_model.bin",),
    "pickle shards": ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"),
}


def put(folder, part):
    for name in PARTS[part]:
        content = b""
        if name.endswith(".json"):
            shards = SHARDS if part == "index" else PARTS["pickle shards"][1:]
            weight_map = {f"tensor{i}": shard for i, shard in enumerate(shards)}
            content = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        (folder / name).write_bytes(content)


def theirs(folder, allow_pickle):
    files, _ = _get_resolved_checkpoint_files(
        folder, None, None, None if allow_pickle else True, None, False
    )
    return files


COMBINATIONS = [
    parts for n in range(1, 6) for parts in itertools.combinations(PARTS, n)
]  # fmt: skip


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("parts", COMBINATIONS, ids="+".join)
def test_every_mixture_is_read_as_transformers_reads_it(tmp_path, parts, allow_pickle):
    for part in parts:
        put(tmp_path, part)
    try:
        wanted = theirs(tmp_path, allow_pickle)
    except OSError:
        wanted = []
    if not wanted or not all(map(shutil.os.path.isfile, wanted)):
        with pytest.raises(CheckpointError):
            weight_files(tmp_path, allow_pickle=allow_pickle)
        return
    found = weight_files(tmp_path, allow_pickle=allow_pickle)
    assert [str(file) for file in found.files] == wanted
    used = {*found.files, found.index} - {None}
    assert used | set(found.passed_over) == set(tmp_path.iterdir())
    assert used.isdisjoint(found.passed_over)
    with unambiguous(found) as folder:
        assert {file.name for file in folder.iterdir()} == {file.name for file in used}
        assert theirs(folder, allow_pickle) == [str(folder / file.name) for file in found.files]


def test_the_name_in_the_configuration_comes_first(plain, tmp_path, bench):
    folder = shutil.copytree(plain(), tmp_path / "copy")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    bench.edit(folder / "config.json", transformers_weights="other.safetensors")
    found = weight_files(folder)
    assert [file.name for file in found.files] == ["other.safetensors"]
    assert [file.name for file in found.passed_over] == ["model.safetensors"]
    with unambiguous(found) as alone:
        assert (alone / "model.safetensors").resolve() == (folder / "other.safetensors").resolve()
    bench.edit(folder / "config.json", transformers_weights="../copy/other.safetensors")
    with pytest.raises(CheckpointError, match="leads outside the folder"):
        weight_files(folder)


def test_an_adapter_is_refused(plain, tmp_path):
    folder = shutil.copytree(plain(), tmp_path / "copy")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds an adapter"):
        load_checkpoint(folder)


def leave_index(folder, *, shards):
    """What an older save in shards left beside a newer single file: other weights."""
    tensors = load_file(folder / "model.safetensors")
    old = {name: torch.roll(tensor, 1, -1) for name, tensor in tensors.items()}
    half = len(old) // 2
    weight_map = {}
    for shard, part in zip(SHARDS, (list(old)[:half], list(old)[half:]), strict=True):
        weight_map |= dict.fromkeys(part, shard)
        if shards:
            save_file({name: old[name] for name in part}, folder / shard, {"format": "pt"})
    content = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


@pytest.fixture(params=[True, False], ids=["shards there", "shards gone"])
def stale(request, plain, tmp_path):
    folder = shutil.copytree(plain(), tmp_path / "stale")
    leave_index(folder, shards=request.param)
    return folder


def test_a_stale_index_is_not_read_and_named(stale, plain):
    with pytest.warns(CheckpointWarning, match=r"not read: .*model\.safetensors\.index\.json"):
        found = load_checkpoint(stale)
    their = AutoModelForCausalLM.from_pretrained(stale, dtype=torch.float32)
    assert torch.equal(found.module(IDS).logits, their(IDS).logits)
    assert found.digest == load_checkpoint(plain()).digest
    assert "model.safetensors.index.json" in found.quant.warnings[0]


def test_a_clean_folder_warns_of_nothing(plain):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        assert load_checkpoint(plain()).quant.warnings == ()


def test_a_gguf_is_written_of_the_same_weights(stale, plain, tmp_path):
    with pytest.warns(CheckpointWarning, match="not read"):
        found = quantize(str(stale), "F16", tmp_path / "stale.gguf")
    clean = quantize(str(plain()), "F16", tmp_path / "clean.gguf")
    tensors = [
        {t.name: t.data.tobytes() for t in gguf.GGUFReader(file).tensors} for file in (found, clean)
    ]
    assert tensors[0] == tensors[1]
    records = [json.loads(f.with_name(f"{f.name}.json").read_text()) for f in (found, clean)]
    assert records[0]["source_digest"] == records[1]["source_digest"]


@pytest.mark.skipif(find_spec("gptqmodel") is None, reason="needs gptqmodel")
def test_the_native_kernel_reads_the_same_weights(plain, tmp_path, bench):
    """GPTQModel takes an index before a single file, whatever the index's age."""
    rng = np.random.default_rng(0)

    def layer(rows, columns):
        return bench.random_gptq(rng, rows, columns, 4, 64, desc_act=False, symmetric=True, v1=True)

    claim = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
    folder = bench.repack(plain(), tmp_path / "gptq", layer, claim)
    clean = load_checkpoint(folder, kernel="native")
    with unpacked_weights(folder) as read:
        weight = read("model.layers.0.mlp.up_proj")
    leave_index(folder, shards=True)
    with pytest.warns(CheckpointWarning, match="not read"):
        native = load_checkpoint(folder, kernel="native")
    assert native.digest == clean.digest
    assert torch.equal(native.module(IDS).logits, clean.module(IDS).logits)
    with unpacked_weights(folder) as read:
        assert torch.equal(read("model.layers.0.mlp.up_proj"), weight)


@pytest.mark.verify
@pytest.mark.skipif(find_spec("gptqmodel") is None, reason="needs gptqmodel")
@pytest.mark.parametrize("shards", [True, False])
def test_gptqmodel_quantizes_the_same_weights(plain, tmp_path, shards):
    folder = shutil.copytree(plain(), tmp_path / "stale")
    leave_index(folder, shards=shards)
    options = {"calibration": [f"line {i} of a few" for i in range(8)], "group_size": 64}
    with pytest.warns(CheckpointWarning, match="not read"):
        made = quantize(str(folder), "gptq", tmp_path / "made", **options)
    clean = quantize(str(plain()), "gptq", tmp_path / "clean", **options)
    digests = [digest_files(weight_files(one).files) for one in (made, clean)]
    assert digests[0] == digests[1]
