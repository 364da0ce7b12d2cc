"""llama.cpp in process: ids in, reproducible text and log-probabilities out."""

import struct

import numpy as np
import pytest

from mechprobe.errors import CheckpointError, GenerationError, NumericsError, VocabularyError
from mechprobe.generation.base import Sampling
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.generation.llamacpp_server import SlotServer, Stream
from mechprobe.models.gguf_dense import load_gguf_dense
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.quantize_gguf import quantize_gguf
from mechprobe.models.rendering import encode
from mechprobe.organisms import organism_path
from mechprobe.organisms.world import heldout_requests


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    """The shipped organism in 16 bits."""
    return write_f16_gguf(organism_path("llama-s"), tmp_path_factory.mktemp("gguf") / "F16.gguf")


@pytest.fixture(scope="module")
def q4(f16):
    """The same at Q4_K_M."""
    return quantize_gguf(f16, "Q4_K_M", f16.with_name("Q4_K_M.gguf"))


@pytest.fixture(scope="module")
def tokenizer(f16):
    """The organism's tokenizer, out of the file."""
    return load_gguf_tokenizer(f16)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """48 held-out requests as ids."""
    return list(encode(tokenizer, [r.text for r in heldout_requests(24, seed=3)]))


@pytest.fixture(scope="module")
def engine(q4, tokenizer):
    """One open engine."""
    with LlamaCppEngine(q4, tokenizer) as opened:
        yield opened


def test_greedy_text_equals_transformers(f16, tokenizer, prompts):
    import torch

    model = load_gguf_dense(f16, dtype=torch.float32, device="cpu")
    with LlamaCppEngine(f16, tokenizer) as opened:
        found = opened.generate(prompts[:12], max_new_tokens=16)
    for prompt, completion in zip(prompts, found, strict=False):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        ended = tokenizer.eos_token_id in out
        expected = out[: out.index(tokenizer.eos_token_id)] if ended else out
        assert list(completion.ids) == expected
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.stop == ("eos" if ended else "length")
        assert completion.prompt_tokens == len(prompt)


def test_a_call_is_reproducible_bit_for_bit(engine, q4, tokenizer, prompts):
    """Slots keep what prompts of one call have in common, and nothing from one call to the next."""
    texts, logprobs = [], []
    for other in range(3):
        texts.append(engine.generate(prompts, max_new_tokens=12))
        engine.generate(prompts[other : 2 * other + 1], max_new_tokens=3)
        logprobs.append(engine.next_token_logprobs(prompts))
    with LlamaCppEngine(q4, tokenizer) as fresh:
        texts.append(fresh.generate(prompts, max_new_tokens=12))
    assert all(t == texts[0] for t in texts)
    assert all(np.array_equal(found, logprobs[0]) for found in logprobs)


def test_a_call_meets_the_same_slots_whatever_was_asked_before(engine, prompts, monkeypatch):
    """Other slots, or ones that still hold a prompt, are other batches, and at times other text."""
    met = []
    receive = Stream.receive

    def noted(stream, event):
        if event and "choices" in event and event["choices"][0]["finish_reason"] is not None:
            detail = event["__verbose"]
            place = detail["id_slot"], detail["timings"]["cache_n"]
            met.append((event["choices"][0]["index"], *place))
        return receive(stream, event)

    monkeypatch.setattr(Stream, "receive", noted)
    calls = []
    for others in (1, 3, 0):
        met.clear()
        engine.generate(prompts[:20], max_new_tokens=2)
        calls.append(sorted(met))
        engine.generate(prompts[20 : 20 + others], max_new_tokens=2)
    assert calls[1] == calls[0]
    assert calls[2] == calls[0]
    slots, kept = zip(*[place for _, *place in calls[0]], strict=True)
    assert slots[:16] == tuple(range(16))
    assert set(kept[:16]) == {0}
    assert min(kept[16:]) > 0  # within a call they do keep what prompts have in common


def test_companions_change_no_text_at_16_bits(f16, tokenizer, prompts):
    with (
        LlamaCppEngine(f16, tokenizer) as several,
        LlamaCppEngine(f16, tokenizer, parallel=1) as alone,
    ):
        together = several.generate(prompts[:24], max_new_tokens=8)
        assert alone.generate(prompts[:24], max_new_tokens=8) == together


def test_one_sequence_at_a_time_is_independent_of_its_companions(q4, tokenizer, prompts):
    with LlamaCppEngine(q4, tokenizer, parallel=1) as alone:
        whole = alone.next_token_logprobs(prompts[:8])
        parts = [alone.next_token_logprobs([p])[0] for p in reversed(prompts[:8])]
    assert np.array_equal(whole, np.stack(parts[::-1]))


def test_logprobs_are_a_distribution_whose_best_is_generated(engine, prompts):
    found = engine.next_token_logprobs(prompts)
    assert found.shape == (len(prompts), len(engine._tokenizer))
    assert np.exp(found.astype(np.float64)).sum(axis=1) == pytest.approx(1.0, abs=1e-6)
    first = [c.ids[0] for c in engine.generate(prompts, max_new_tokens=1) if c.ids]
    assert first == [int(i) for i in found.argmax(1) if i != engine._tokenizer.eos_token_id]


def test_no_bos_is_added(engine, prompts):
    bos = engine._tokenizer.bos_token_id
    bare, doubled = engine.next_token_logprobs([prompts[0], [bos, *prompts[0]]])
    assert not np.allclose(bare, doubled, atol=1e-3)
    assert engine.generate([prompts[0]], max_new_tokens=1)[0].prompt_tokens == len(prompts[0])


def test_ids_that_end_inside_a_character_are_kept(engine, tokenizer, monkeypatch):
    half = tokenizer.convert_tokens_to_ids("\u00c3")  # the byte 0xC3, half of an e-acute
    slots = engine._opened()
    plain = slots.body
    monkeypatch.setattr(slots, "body", lambda p, **o: plain(p, logit_bias=[[half, 1e6]], **o))
    engine._probed = True
    found = engine.generate([[3, 4, 5], [6, 7]], max_new_tokens=2)
    assert [c.ids for c in found] == [(half, half)] * 2


def test_longer_prompts_make_room(q4, tokenizer):
    with LlamaCppEngine(q4, tokenizer, parallel=2) as opened:
        limit = opened._limit
        long = [5] * min(limit - 4, 300)
        assert opened.generate([long, [5, 6]], max_new_tokens=2)[0].prompt_tokens == len(long)
        with pytest.raises(GenerationError, match=f"tokens of context and there are {limit}"):
            opened.generate([[5] * limit], max_new_tokens=2)


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "prompt 1 is empty"), ([3, 10**6], "prompt 1 holds id 1000000")]
)
def test_bad_prompts(engine, prompt, message):
    with pytest.raises(GenerationError, match=message):
        engine.generate([[3, 4], prompt])


def test_nothing_asked_nothing_done(engine):
    assert engine.generate([]) == []
    assert engine.next_token_logprobs([]).shape[0] == 0


def test_a_closed_engine(q4, tokenizer):
    opened = LlamaCppEngine(q4, tokenizer)
    opened.close()
    opened.close()
    with pytest.raises(GenerationError, match="the engine is closed"):
        opened.next_token_logprobs([[3, 4]])


def test_another_tokenizer(q4, f16):
    other = load_gguf_tokenizer(f16)
    other.add_tokens(["extra"])
    with pytest.raises(VocabularyError, match="it belongs to another model"):
        LlamaCppEngine(q4, other)


def test_truncated_file(q4, tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(q4.read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match="truncated"):
        LlamaCppEngine(path, tokenizer)


def test_what_llama_cpp_cannot_load(f16, tokenizer, tmp_path):
    content = f16.read_bytes()
    assert content.count(b"blk.0.ffn_norm.weight") == 1
    path = tmp_path / "m.gguf"
    path.write_bytes(content.replace(b"blk.0.ffn_norm.weight", b"blk.0.ffn_gone.weight"))
    with pytest.raises(GenerationError, match=r"llama\.cpp cannot load it"):
        LlamaCppEngine(path, tokenizer)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(f16, tokenizer, tmp_path, value):
    content = bytearray(f16.read_bytes())
    norm = read_gguf(f16).tensors["output_norm.weight"]
    struct.pack_into("<f", content, norm.offset, value)
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with (
        LlamaCppEngine(path, tokenizer) as opened,
        pytest.raises(NumericsError, match="logits are not finite"),
    ):
        opened.generate([[3, 4, 5]], max_new_tokens=2)


def test_nothing_is_printed(q4, tokenizer, capfd):
    with LlamaCppEngine(q4, tokenizer) as opened:
        opened.generate([[3, 4, 5]], max_new_tokens=2)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def large(f16, monkeypatch):
    """The organism, taken for a file that is worth a second thread."""
    monkeypatch.setattr("mechprobe.generation.llamacpp_server._FEW_WEIGHTS", 0)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("mechprobe.generation.threads.WORTH", 100)
    return f16


def test_an_engine_follows_the_measurement_and_its_answers_do_not(
    large, tokenizer, prompts, monkeypatch
):
    rates = {2: [200, 200, 20], 1: [110, 300, 70]}
    monkeypatch.setattr(SlotServer, "rate", lambda self, _: rates[self.threads].pop(0))
    answers, threads = [], []
    with LlamaCppEngine(large, tokenizer, threads=None) as engine:
        for _ in range(3):
            engine._choice._due = True
            answers.append(engine.generate(prompts[:10], max_new_tokens=6))
            threads.append((engine.threads, engine._opened().threads))
    assert threads == [(2, 2), (1, 1), (1, 1)]
    with LlamaCppEngine(large, tokenizer, threads=1) as engine:
        answers.append(engine.generate(prompts[:10], max_new_tokens=6))
        assert engine.threads == 1
    assert all(found == answers[0] for found in answers)


def test_the_environment_names_the_most_threads(large, tokenizer, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with LlamaCppEngine(large, tokenizer) as engine:
        assert engine.threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # of nested regions: not one number
    with LlamaCppEngine(large, tokenizer) as engine:
        assert engine.threads == 2


def test_the_rate_is_that_of_the_first_prompts(large, tokenizer, prompts):
    with LlamaCppEngine(large, tokenizer) as engine:
        assert engine._opened().rate(prompts) > 0
        assert engine.generate(prompts[:2], max_new_tokens=2)


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, samples=2), Sampling(samples=2)])
def test_answers_are_told_of_as_they_end(engine, prompts, sampling):
    told = []
    engine.generate(
        prompts[:3], max_new_tokens=3, sampling=sampling, progress=lambda *at: told.append(at)
    )
    total = 6 if sampling is not None and not sampling.greedy else 3
    assert told == [(n, total) for n in range(1, total + 1)]


def test_no_sum_depends_on_the_number_of_threads(q4, tokenizer, prompts):
    """Of a single sequence that takes more than 256 of its cells, flash attention's do."""
    long = [token for prompt in prompts for token in prompt][:400]
    found = []
    for threads in (1, 2):
        with LlamaCppEngine(q4, tokenizer, parallel=1, n_ctx=512, threads=threads) as engine:
            answer = engine._opened().answer([long], max_tokens=4, logprobs=50)
            found.append(answer["choices"][0]["logprobs"]["content"])
    assert len(found[0]) > 1
    assert found[0] == found[1]
