"""Every engine: greedy answers asked anew do not waver, and samples follow the engine's softmax."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from mechprobe.experiments.factorial_answers import draw_samples
from mechprobe.generation import Sampling
from mechprobe.generation.api import Endpoint
from mechprobe.generation.hf import TransformersEngine
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.generation.server import ServerEngine
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms import organism_path
from mechprobe.organisms.world import heldout_requests

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
from loopback import llama_server


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    return write_f16_gguf(organism_path("llama-s"), tmp_path_factory.mktemp("gguf") / "F16.gguf")


@pytest.fixture(scope="module")
def tokenizer(f16):
    return load_gguf_tokenizer(f16)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return encode(tokenizer, [r.text for r in heldout_requests(12, seed=3)]).ids


@pytest.fixture(scope="module", params=["transformers", "llama.cpp", "server"])
def engine(request, f16, tokenizer):
    """The shipped organism on each engine."""
    if request.param == "transformers":
        checkpoint = load_checkpoint("organism:llama-s", kernel="native")
        with TransformersEngine(checkpoint, batch_size=200) as opened:
            yield opened
    elif request.param == "llama.cpp":
        with LlamaCppEngine(f16, tokenizer) as opened:
            yield opened
    else:
        with (
            llama_server(f16) as url,
            ServerEngine(Endpoint("organism", url), tokenizer, concurrency=4) as opened,
        ):
            yield opened


class Counting:
    """An engine that counts how often it is asked."""

    def __init__(self, engine):
        self.engine, self.calls = engine, 0

    def generate(self, *given, **options):
        self.calls += 1
        return self.engine.generate(*given, **options)


def test_at_temperature_0_nothing_wavers(engine, prompts):
    asked = Counting(engine)
    found = draw_samples(asked, prompts, Sampling(samples=4), 12)
    assert asked.calls == 4  # four answers, not one answer four times
    assert len(found) == len(prompts)
    assert {len({answer.text for answer in answers}) for answers in found} == {1}
    assert len({answers[0].text for answers in found}) > 5
    warm = draw_samples(engine, prompts, Sampling(1.5, samples=4, seed=1), 12)
    assert max(len({answer.text for answer in answers}) for answers in warm) > 2


def test_first_tokens_follow_the_softmax_to_its_tail(engine, tokenizer, prompts):
    """Counted by text, which is all that a server gives; tokens of one text are added up."""
    warm = 1.5
    shares = np.exp(engine.next_token_logprobs(prompts).astype(np.float64) / warm)
    shares /= shares.sum(axis=1, keepdims=True)
    # the prompt whose next token is least certain, so that there is a distribution to test
    chosen = int(shares.max(axis=1).argmin())
    n = 600
    sampling = Sampling(warm, samples=n, seed=5)
    ((answers),) = draw_samples(engine, [prompts[chosen]], sampling, 1)
    due = {}
    for token, share in enumerate(shares[chosen]):
        text = str(tokenizer.decode([token], skip_special_tokens=True))
        due[text] = due.get(text, 0.0) + n * share
    seen = dict.fromkeys(due, 0)
    for answer in answers:
        seen[answer.text] += 1
    # beyond the smallest set of 95 %, where a nucleus ends: an engine that cuts there draws none
    order = sorted(due, key=due.get, reverse=True)
    before = np.cumsum([due[text] for text in order]) / n
    tail = order[int(np.searchsorted(before, 0.95)) + 1 :]
    mass = sum(due[text] for text in tail) / n
    assert mass > 0.03
    assert binomtest(sum(seen[text] for text in tail), n, mass).pvalue > 1e-3
    common = sorted((text for text in due if due[text] >= 5), key=due.get)
    counts, expected = [seen[t] for t in common], [due[t] for t in common]
    counts[0] += n - sum(counts)  # what is rarer is counted with the rarest of these
    expected[0] += n - sum(expected)
    assert len(common) >= 3
    assert chisquare(counts, expected).pvalue > 1e-3
    # and not the distribution of another temperature
    sharper = np.array(expected) ** 2 / (np.array(expected) ** 2).sum() * n
    assert chisquare(counts, sharper).pvalue < 1e-6
