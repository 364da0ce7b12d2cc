"""Sampling in llama.cpp: the distribution is its own softmax, the draw is the prompt's own."""

import numpy as np
import pytest
from scipy.stats import chisquare

from mechprobe.generation import Sampling
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.quantize_gguf import quantize_gguf
from mechprobe.models.rendering import encode
from mechprobe.organisms import organism_path
from mechprobe.organisms.world import heldout_requests


@pytest.fixture(scope="module")
def q4(tmp_path_factory):
    """The shipped organism at Q4_K_M, whose kernels round: the hardest case for reruns."""
    folder = tmp_path_factory.mktemp("gguf")
    f16 = write_f16_gguf(organism_path("llama-s"), folder / "F16.gguf")
    return quantize_gguf(f16, "Q4_K_M", folder / "Q4_K_M.gguf")


@pytest.fixture(scope="module")
def tokenizer(q4):
    return load_gguf_tokenizer(q4)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return list(encode(tokenizer, [r.text for r in heldout_requests(12, seed=3)]))


@pytest.fixture(scope="module")
def engine(q4, tokenizer):
    with LlamaCppEngine(q4, tokenizer, parallel=4) as opened:
        yield opened


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (2.5, 0, 1.0), (3.0, 8, 1.0), (3.0, 50, 0.6)]
)
def test_first_tokens_follow_the_distribution(engine, prompts, temperature, top_k, top_p):
    # the prompt whose next token is least certain, so that there is a distribution to test
    table = engine.next_token_logprobs(prompts)
    chosen = int((np.exp(table) * -table).sum(axis=1).argmax())
    scaled = table[chosen].astype(np.float64) / temperature
    chances = np.exp(scaled - scaled.max())
    order = np.argsort(-chances)
    chances[order[top_k or len(order) :]] = 0
    chances /= chances.sum()
    cut = int((np.cumsum(chances[order]) < top_p).sum()) + 1
    chances[order[cut:]] = 0
    chances /= chances.sum()
    n = 800
    answers = engine.generate(
        [prompts[chosen]],
        max_new_tokens=1,
        sampling=Sampling(temperature, top_p, top_k, samples=n, seed=2),
    )
    end = engine._tokenizer.eos_token_id
    counts = np.bincount([a.ids[0] if a.ids else end for a in answers], minlength=len(chances))
    assert not counts[chances == 0].any()
    common = chances * n >= 5
    seen, due = counts[common], chances[common] * n
    if not common.all():
        seen, due = np.append(seen, n - seen.sum()), np.append(due, n - due.sum())
    keep = due > 1e-9
    assert keep.sum() >= 2
    assert chisquare(seen[keep], due[keep]).pvalue > 1e-3


def test_an_answer_does_not_depend_on_its_companions(engine, q4, tokenizer, prompts):
    sampling = Sampling(1.2, 0.95, samples=6, seed=4)  # more samples than slots
    whole = engine.generate(prompts, max_new_tokens=10, sampling=sampling)
    assert [a.sample for a in whole] == list(range(6)) * len(prompts)
    assert {a.seed for a in whole} == {4}
    assert len({a.ids for a in whole[:6]}) > 1
    engine.generate(prompts[5:9], max_new_tokens=3)
    assert engine.generate(prompts, max_new_tokens=10, sampling=sampling) == whole
    with LlamaCppEngine(q4, tokenizer, parallel=4) as fresh:
        backwards = fresh.generate(prompts[::-1], max_new_tokens=10, sampling=sampling)
    groups = [backwards[i : i + 6] for i in range(0, len(backwards), 6)]
    assert [answer for group in groups[::-1] for answer in group] == whole
    other = engine.generate(
        prompts, max_new_tokens=10, sampling=Sampling(1.2, 0.95, samples=6, seed=5)
    )
    assert [a.ids for a in other] != [a.ids for a in whole]


def test_no_temperature_is_greedy_however_often(engine, prompts):
    greedy = engine.generate(prompts[:3], max_new_tokens=8)
    again = engine.generate(prompts[:3], max_new_tokens=8, sampling=Sampling(samples=2))
    assert [(a.ids, a.sample, a.seed) for a in again] == [
        (a.ids, k, None) for a in greedy for k in range(2)
    ]


def test_samples_that_end_inside_a_character_keep_their_ids(engine, tokenizer, monkeypatch):
    half = tokenizer.convert_tokens_to_ids("\u00c3")  # the byte 0xC3, half of an e-acute
    slots = engine._opened()
    plain = slots.body
    monkeypatch.setattr(slots, "body", lambda p, **o: plain(p, logit_bias=[[half, 1e6]], **o))
    found = engine.generate([[3, 4, 5]], max_new_tokens=2, sampling=Sampling(1.0, samples=3))
    assert [(c.ids, c.sample) for c in found] == [((half, half), k) for k in range(3)]


def test_fast_answers_everything_asked(q4, tokenizer, prompts, engine):
    sampling = Sampling(1.0, samples=2, seed=1)
    with LlamaCppEngine(q4, tokenizer, parallel=4, fast=True) as fast:
        drawn = fast.generate(prompts, max_new_tokens=8, sampling=sampling)
        greedy = fast.generate(prompts, max_new_tokens=8)
    slow = engine.generate(prompts, max_new_tokens=8, sampling=sampling)
    for one, other in zip(drawn, slow, strict=True):
        assert (one.sample, one.seed, one.prompt_tokens) == (
            other.sample, other.seed, other.prompt_tokens,
        )  # fmt: skip
    # chance is the same; only rounding may differ, and seldom decides
    assert sum(a.ids == b.ids for a, b in zip(drawn, slow, strict=True)) >= 0.8 * len(slow)
    plain = engine.generate(prompts, max_new_tokens=8)
    assert sum(a.ids == b.ids for a, b in zip(greedy, plain, strict=True)) >= 0.8 * len(plain)
