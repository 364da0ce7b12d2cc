import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mechprobe.generation.hf as hf
from mechprobe.activations.interventions import Ablate, Add, Patch, applied
from mechprobe.errors import CheckpointError, GenerationError, NumericsError
from mechprobe.generation import open_engine
from mechprobe.generation.graph import stop_ids
from mechprobe.generation.hf import TransformersEngine

_path = Path(__file__).parents[1] / "activations" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tiny_models", _path)
tiny_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_models)

ARCHITECTURES = list(tiny_models.MODELS)
NEW = 12
_made = {}


def tiny(name, **changes):
    """One of the tiny models; its sliding windows are 6 columns, and the prompts are longer."""
    key = (name, tuple(changes.items()))
    if key not in _made:
        _made[key] = tiny_models.wrap(tiny_models.make_model(name, **changes), name)
    return _made[key]


def prompts(n=20, *, prefix=7, seed=0):
    """Prompts of 1 to 12 own tokens after a common beginning."""
    rng = np.random.default_rng(seed)
    head = rng.integers(4, 128, prefix).tolist()
    return [head + rng.integers(4, 128, rng.integers(1, 13)).tolist() for _ in range(n)]


def reference(checkpoint, rows, new=NEW):
    """transformers' own generate, one prompt at a time: ids without the end of sequence."""
    answers = []
    for row in rows:
        ids = torch.tensor([row])
        out = checkpoint.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=sorted(stop_ids(checkpoint)),
            pad_token_id=0,
        )[0, len(row) :].tolist()
        answers.append(tuple(out[:-1] if out[-1] in stop_ids(checkpoint) else out))
    return answers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_text_is_that_of_one_at_a_time_generate(name):
    checkpoint = tiny(name)
    rows = prompts(12)
    expected = reference(checkpoint, rows)
    for share_prefix in (True, False):
        with TransformersEngine(checkpoint, batch_size=5, share_prefix=share_prefix) as engine:
            answers = engine.generate(rows, max_new_tokens=NEW)
        assert [a.ids for a in answers] == expected
        assert [a.stop for a in answers] == ["length" if len(x) == NEW else "eos" for x in expected]
        assert [a.prompt_tokens for a in answers] == [len(row) for row in rows]


def test_some_answers_of_these_models_end_by_themselves():
    # otherwise nothing above would have tested stopping and the dropping of finished rows
    stops = [
        answer.stop
        for name in ("llama", "qwen2", "gpt2", "phi")
        for answer in TransformersEngine(tiny(name)).generate(prompts(64), max_new_tokens=32)
    ]
    assert 20 < stops.count("eos") < 250


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe"])
def test_text_does_not_depend_on_the_batch(name):
    checkpoint, rows = tiny(name), prompts(20, seed=1)
    alone = TransformersEngine(checkpoint, batch_size=1).generate(rows, max_new_tokens=NEW)
    for size in (3, 20):
        together = TransformersEngine(checkpoint, batch_size=size)
        assert together.generate(rows, max_new_tokens=NEW) == alone
    backwards = TransformersEngine(checkpoint, batch_size=7).generate(
        rows[::-1], max_new_tokens=NEW
    )
    assert backwards[::-1] == alone


@pytest.mark.parametrize("name", ["llama", "gpt_neox_parallel", "gemma2", "granite", "phi3"])
@pytest.mark.parametrize("prefix", [0, 9])
def test_logprobs_are_those_of_a_single_forward(name, prefix):
    checkpoint, rows = tiny(name), prompts(prefix=prefix)
    with TransformersEngine(checkpoint, batch_size=6) as engine:
        found = engine.next_token_logprobs(rows)
    with torch.no_grad():
        expected = np.stack(
            [
                torch.log_softmax(checkpoint.module(torch.tensor([row])).logits[0, -1].double(), -1)
                for row in rows
            ]
        )
    assert found.dtype == np.float32
    assert found.shape == (20, 128)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(axis=1), 1, atol=1e-5)


def test_a_shared_prefix_is_run_once():
    checkpoint, rows = tiny("llama"), prompts(20, prefix=30)
    widths = []
    handle = checkpoint.module.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        for share in (True, False):
            TransformersEngine(checkpoint, share_prefix=share).next_token_logprobs(rows)
    finally:
        handle.remove()
    longest = max(map(len, rows))
    assert widths == [30, 20 * (longest - 30), 20 * longest]


def test_a_window_shorter_than_the_answer_forbids_sharing():
    checkpoint = tiny("mistral", sliding_window=30)
    rows = prompts(8, prefix=12)
    engine = TransformersEngine(checkpoint)
    engine.next_token_logprobs(rows)
    assert engine.notes == ()
    answers = engine.generate(rows, max_new_tokens=NEW)
    assert "sliding window 30" in engine.notes[0]
    assert [a.ids for a in answers] == reference(checkpoint, rows)


def _direction(seed=0):
    return torch.randn(64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("own", [True, False], ids=["engine", "outer"])
def test_interventions_reach_every_token_and_the_prefix(own):
    checkpoint, rows = tiny("llama"), prompts(12)
    changes = [Ablate(_direction()), Add(_direction(1), layer=1, coeff=2.0)]
    plain = TransformersEngine(checkpoint).generate(rows, max_new_tokens=NEW)
    with applied(checkpoint, changes):
        expected = reference(checkpoint, rows)
    if own:
        answers = TransformersEngine(checkpoint, batch_size=5, interventions=changes).generate(
            rows, max_new_tokens=NEW
        )
    else:
        with applied(checkpoint, changes):
            answers = TransformersEngine(checkpoint, batch_size=5).generate(
                rows, max_new_tokens=NEW
            )
    assert [a.ids for a in answers] == expected
    assert answers != plain
    # and nothing stays behind
    assert TransformersEngine(checkpoint).generate(rows, max_new_tokens=NEW) == plain


def test_a_patch_per_prompt_finds_its_rows():
    checkpoint, rows = tiny("llama"), prompts(9)
    values = torch.randn(9, 1, 64, generator=torch.Generator().manual_seed(2)) * 3
    patch = Patch("blocks.1.hook_resid_pre", values, positions=(-1,))
    together = TransformersEngine(checkpoint, batch_size=4, interventions=[patch])
    answers = together.generate(rows, max_new_tokens=NEW)
    for index, row in enumerate(rows):
        one = Patch("blocks.1.hook_resid_pre", values[index : index + 1], positions=(-1,))
        with TransformersEngine(checkpoint, interventions=[one]) as engine:
            assert engine.generate([row], max_new_tokens=NEW) == [answers[index]]


def test_stop_ids_join_generation_config_and_tokenizer():
    checkpoint = tiny("llama")
    before = checkpoint.module.generation_config.eos_token_id
    try:
        checkpoint.module.generation_config.eos_token_id = [5, 9]
        assert stop_ids(checkpoint) == {2, 5, 9}
        rows = prompts(30)
        engine = TransformersEngine(checkpoint)
        answers = engine.generate(rows, max_new_tokens=NEW)
        assert [a.ids for a in answers] == reference(checkpoint, rows)
        assert not {token for a in answers for token in a.ids} & {2, 5, 9}
    finally:
        checkpoint.module.generation_config.eos_token_id = before


def test_text_is_the_tokenizers_without_special_tokens():
    checkpoint = tiny("llama")
    answer = TransformersEngine(checkpoint).generate(prompts(1), max_new_tokens=4)[0]
    kept = [f"w{token}" for token in answer.ids if token > 3]
    assert answer.text.split() == kept


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch):
    checkpoint, rows = tiny("llama"), prompts(20)
    expected = TransformersEngine(checkpoint).generate(rows, max_new_tokens=NEW)
    real = hf.decode_batch

    def limited(module, batch, cache, **options):
        if len(batch) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(module, batch, cache, **options)

    monkeypatch.setattr(hf, "decode_batch", limited)
    engine = TransformersEngine(checkpoint, batch_size=16)
    assert engine.generate(rows, max_new_tokens=NEW) == expected
    assert engine.batch_size == 4
    assert engine.notes == (
        "out of memory: batch of 16 halved to 8",
        "out of memory: batch of 8 halved to 4",
    )


def test_out_of_memory_for_one_prompt_is_one_line(monkeypatch):
    def never(*args, **options):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(hf, "decode_batch", never)
    with pytest.raises(GenerationError, match="out of memory for a single prompt"):
        TransformersEngine(tiny("llama"), batch_size=4).generate(prompts(3))


def test_other_runtime_errors_are_not_swallowed(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(hf, "decode_batch", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        TransformersEngine(tiny("llama")).generate(prompts(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_numbers_name_cell_and_layer(bad):
    broken = tiny_models.wrap(tiny_models.make_model("llama"), "broken-model")
    broken.module.model.layers[1].mlp.down_proj.weight[3, 3] = bad
    engine = TransformersEngine(broken)
    for call in (engine.generate, engine.next_token_logprobs):
        with pytest.raises(NumericsError, match=r"broken-model \(FP32, dense\).*layer 1"):
            call(prompts(3))


def test_a_broken_head_is_found_too():
    broken = tiny_models.wrap(tiny_models.make_model("llama"), "broken-head")
    broken.module.lm_head.weight[7] = float("nan")
    with pytest.raises(
        NumericsError, match=r"^broken-head \(FP32, dense\): NaN or infinity in the logits"
    ):
        TransformersEngine(broken).generate(prompts(3))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[5], []], {"max_new_tokens": 4}, "prompt 1 has no tokens"),
        ([[5]], {"max_new_tokens": 0}, "at least 1"),
        (
            [[5] * 60],
            {"max_new_tokens": 8},
            "prompt 0 has 60 tokens and 8 new ones; short takes 64",
        ),
    ],
)
def test_bad_requests_are_refused(rows, options, message):
    model = tiny_models.make_model("llama", max_position_embeddings=64)
    with pytest.raises(GenerationError, match=message):
        TransformersEngine(tiny_models.wrap(model, "short")).generate(rows, **options)


def test_no_prompts_give_no_answers():
    engine = TransformersEngine(tiny("llama"))
    assert engine.generate([]) == []
    assert engine.next_token_logprobs([]).shape == (0, 128)


def test_a_closed_engine_and_a_native_gguf_are_refused():
    engine = open_engine(tiny("llama"), batch_size=3)
    assert engine.name == "transformers-dense"
    with engine:
        pass
    with pytest.raises(GenerationError, match="closed"):
        engine.generate([[5]])
    with pytest.raises(CheckpointError, match="native GGUF"):
        TransformersEngine(replace(tiny("llama"), module=None))
    with pytest.raises(GenerationError, match="batch size 0"):
        TransformersEngine(tiny("llama"), batch_size=0)
