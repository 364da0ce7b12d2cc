"""Dense weights equal, bit for bit, an independent unpacking of the file's packed tensors."""

import itertools
import json
import os
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from mechprobe.errors import CheckpointError
from mechprobe.generation.graph import stop_ids
from mechprobe.models.load import load_checkpoint

AUTOAWQ = Path(__file__).parent / "data" / "autoawq-llama"


def dense_modules(folder):
    """Every projection of the dense checkpoint, and the file's tensors beside it."""
    checkpoint = load_checkpoint(folder)
    tensors = load_file(next(folder.glob("*.safetensors")))
    weights = {
        name.removesuffix(".weight"): value.numpy()
        for name, value in checkpoint.module.state_dict().items()
        if name.removesuffix("weight") + "qweight" in tensors
    }
    assert len(weights) == sum(name.endswith("qweight") for name in tensors) > 0
    return checkpoint, weights, tensors


def assert_gptq(bench, folder, bits, *, stored_less_one):
    checkpoint, weights, tensors = dense_modules(folder)
    for name, weight in weights.items():
        parts = [tensors[f"{name}.{p}"] for p in ("qweight", "qzeros", "scales", "g_idx")]
        expected = bench.gptq_dense(*parts, bits, stored_less_one)
        assert weight.dtype == np.float32
        assert np.array_equal(weight, expected), name
    return checkpoint


def assert_awq(bench, folder, group_size):
    checkpoint, weights, tensors = dense_modules(folder)
    for name, weight in weights.items():
        parts = [tensors[f"{name}.{p}"] for p in ("qweight", "qzeros", "scales")]
        assert np.array_equal(weight, bench.awq_dense(*parts, group_size)), name
    return checkpoint


@pytest.fixture(scope="module")
def written(plain, tmp_path_factory):
    """`written(method, bits, desc_act, sym)`: checkpoints really written by GPTQModel."""
    if find_spec("gptqmodel") is None:  # looking is not importing, which prints
        pytest.skip("needs gptqmodel")
    from mechprobe.models.quantize_awq_gptq import Job, Scheme
    from mechprobe.models.quantize_worker import _write_gptqmodel
    from mechprobe.models.quiet import quiet
    from mechprobe.models.tokenizer import load_tokenizer

    root, made = tmp_path_factory.mktemp("gptqmodel"), {}
    draw = random.Random(0)
    ids = [[draw.randrange(3, 259) for _ in range(24)] for _ in range(8)]

    def make(method, bits=4, desc_act=False, sym=True):
        key = f"{method}-{bits}-{desc_act}-{sym}"
        if key not in made:
            source, out = plain("llama"), root / key
            scheme = Scheme(method, bits, 64, sym, desc_act)
            job = Job(str(source), str(out), "gptqmodel", scheme, ids, "float16", "cpu", 0)
            with quiet():
                _write_gptqmodel(job, load_tokenizer(source))
            made[key] = out
        return made[key]

    return make


@pytest.mark.parametrize(
    ("bits", "desc_act", "sym"), list(itertools.product((4, 8), (False, True), (True, False)))
)
def test_gptq_written_by_gptqmodel(written, bench, bits, desc_act, sym):
    quant = assert_gptq(
        bench, written("gptq", bits, desc_act, sym), bits, stored_less_one=True
    ).quant
    assert quant.precision == f"GPTQ-INT{bits}"
    assert (quant.bits, quant.group_size, quant.packing) == (bits, 64, "gptq")
    assert (quant.symmetric, quant.desc_act) == (sym, desc_act)


@pytest.mark.parametrize("sym", [False, True])
def test_awq_written_by_gptqmodel(written, bench, sym):
    quant = assert_awq(bench, written("awq", sym=sym), 64).quant
    assert (quant.precision, quant.group_size, quant.packing) == ("AWQ-INT4", 64, "gemm")
    assert quant.symmetric is sym


def test_awq_written_by_autoawq(bench):
    quant = assert_awq(bench, AUTOAWQ, 32).quant
    assert json.loads((AUTOAWQ / "mechprobe_quantize.json").read_text())["writer"] == "autoawq"
    assert (quant.precision, quant.group_size, quant.symmetric) == ("AWQ-INT4", 32, False)
    # 4 bits, and for each group of 32 a float16 scale and a 4-bit zero point.
    assert quant.bits_per_weight == pytest.approx(4 + (16 + 4) / 32)


@pytest.mark.parametrize("desc_act", [False, True])
def test_autogptq_layout(written, bench, tmp_path, desc_act):
    """What GPTQModel wrote, in exactly AutoGPTQ's files: no entry in config.json, its own names."""
    source, out = written("gptq", 4, desc_act, False), tmp_path / "autogptq"
    out.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(source / name, out)
    bench.edit(out / "config.json", quantization_config=None)
    settings = {
        "bits": 4,
        "group_size": 64,
        "damp_percent": 0.01,
        "desc_act": desc_act,
        "static_groups": False,
        "sym": False,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "gptq_model-4bit-64g",
    }
    (out / "quantize_config.json").write_text(json.dumps(settings))
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("qweight")]:
        # Its layers always have a bias, of zeros where the model has none.
        bias = np.zeros(tensors[name].shape[1], dtype=np.float16)
        tensors[name.removesuffix("qweight") + "bias"] = bias
    save_file(tensors, out / "gptq_model-4bit-64g.safetensors")
    checkpoint = assert_gptq(bench, out, 4, stored_less_one=True)
    assert checkpoint.quant.precision == "GPTQ-INT4"
    with pytest.raises(CheckpointError, match="use kernel='dense'"):
        load_checkpoint(out, kernel="native")  # GPTQModel declines AutoGPTQ's asymmetric files
    twin = load_checkpoint(source)
    assert torch.equal(
        checkpoint.module(torch.arange(9)[None]).logits, twin.module(torch.arange(9)[None]).logits
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("form", "desc_act", "sym"), [("gptq", True, True), ("gptq_v2", False, False)]
)
def test_gptq_of_random_integers(plain, bench, tmp_path, bits, form, desc_act, sym):
    rng = np.random.default_rng(bits)
    v1 = form == "gptq"

    def layer(rows, columns):
        return bench.random_gptq(
            rng, rows, columns, bits, 32, desc_act=desc_act, symmetric=sym, v1=v1
        )

    config = {
        "quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": desc_act, "sym": sym,
        "checkpoint_format": form,
    }  # fmt: skip
    folder = bench.repack(plain("phi"), tmp_path / "model", layer, config)
    quant = assert_gptq(bench, folder, bits, stored_less_one=v1).quant
    assert (quant.bits, quant.packing, quant.symmetric) == (bits, form, sym)


def test_gptqmodels_own_dequantization_agrees(written):
    """Its float16 product is our float32 product rounded once."""
    from mechprobe.models.quiet import quiet

    folder = written("gptq", 4, True, False)
    dense = load_checkpoint(folder).module.state_dict()
    with quiet():
        from gptqmodel import BACKEND, GPTQModel

        model = GPTQModel.load(
            str(folder), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
        ).model
    for name, layer in model.named_modules():
        if hasattr(layer, "qweight"):
            del layer.dequantize_weight  # its compiled form takes a minute
            ours = dense[f"{name}.weight"].to(torch.float16)
            assert torch.equal(layer.dequantize_weight().T, ours), name


def expected_twin(bench, folder, source, out, bits):
    """The plain checkpoint whose weights the bench unpacked, in float32."""
    shutil.copytree(source, out)
    tensors, packed = {}, load_file(folder / "model.safetensors")
    conv1d = json.loads((source / "config.json").read_text())["model_type"] == "gpt2"
    for name, value in packed.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            parts = [packed[f"{module}.{p}"] for p in ("qweight", "qzeros", "scales", "g_idx")]
            dense = bench.gptq_dense(*parts, bits, True)
            tensors[f"{module}.weight"] = np.ascontiguousarray(dense.T) if conv1d else dense
        elif part not in ("qzeros", "scales", "g_idx"):
            tensors[name] = value.astype(np.float32)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "qwen3_moe"])
def test_the_graph_is_the_plain_one(plain, bench, tmp_path, kind):
    """Tied embeddings, transposed weights and fused experts end up where a plain load puts them."""
    rng = np.random.default_rng(0)

    def layer(rows, columns):
        return bench.random_gptq(rng, rows, columns, 4, 64, desc_act=True, symmetric=False, v1=True)

    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True, "sym": False}
    folder = bench.repack(plain(kind), tmp_path / "packed", layer, config)
    twin = expected_twin(bench, folder, plain(kind), tmp_path / "twin", 4)
    ours, theirs = load_checkpoint(folder), load_checkpoint(twin)
    assert theirs.quant.precision in ("FP32", "FP16")
    found, wanted = ours.module.state_dict(), theirs.module.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    ids = torch.arange(20)[None]
    assert torch.equal(ours.module(ids).logits, theirs.module(ids).logits)


REAL = {
    "awq": ("awq", 4, False, False),
    "gptq-4": ("gptq", 4, True, False),
    "gptq-8": ("gptq", 8, False, True),
}


def divergence(dense, native, device="cpu"):
    """Mean KL(dense || native) in nats over 48 positions, in float64."""
    ids = torch.tensor([random.Random(1).sample(range(3, 259), 48)], device=device)
    with torch.no_grad():
        p = dense.module(ids).logits.double().log_softmax(-1)
        q = native.module(ids).logits.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("method", REAL)
def test_native_kernels_run_the_same_weights(written, method):
    folder = written(*REAL[method])
    before = dict(os.environ)
    native = load_checkpoint(folder, kernel="native")
    assert dict(os.environ) == before
    assert "native kernel" in native.quant.notes[-1] and "float16" in native.quant.notes[-1]
    dense = load_checkpoint(folder)
    names = {name for name, _ in dense.module.named_modules()}
    assert names <= {name for name, _ in native.module.named_modules()}
    gap = divergence(dense, native)
    print(f"{method}: KL(dense || native) = {gap:.2e}; {native.quant.notes[-1]}")
    assert 0 <= gap < 1e-4


def test_both_kernels_stop_where_the_folder_says(written, tmp_path):
    folder = shutil.copytree(written(*REAL["gptq-4"]), tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 77]}')
    native, dense = (stop_ids(load_checkpoint(folder, kernel=k)) for k in ("native", "dense"))
    assert native == dense
    assert {1, 77} <= native


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", REAL)
def test_on_cuda(written, method):
    folder = written(*REAL[method])
    dense = load_checkpoint(folder, device="cuda")
    reference = load_checkpoint(folder).module.state_dict()
    for name, value in dense.module.state_dict().items():
        assert value.is_cuda and torch.equal(value.cpu(), reference[name]), name
    native = load_checkpoint(folder, kernel="native", device="cuda")
    gap = divergence(dense, native, "cuda")
    print(f"{method}: KL(dense || native) = {gap:.2e}; {native.quant.notes[-1]}")
    assert 0 <= gap < 1e-3
