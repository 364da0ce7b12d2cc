"""The server engine against a real llama.cpp server, and against servers that can do less."""

import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from mechprobe.behavior.multiple_choice import as_question, score_letters
from mechprobe.behavior.refusal import answer_of, is_unread, rules_label
from mechprobe.errors import GenerationError
from mechprobe.generation import Sampling
from mechprobe.generation.api import ApiClient, ApiError, Endpoint, Reply
from mechprobe.generation.endpoint import read_reply
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.generation.server import ServerEngine
from mechprobe.generation.server_forms import listed_in
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.rendering import encode
from mechprobe.organisms import organism_path, world

sys.path.insert(0, str(Path(__file__).parent))
from loopback import llama_server

SETTINGS = {"timeout": 60.0, "attempts": 3, "concurrency": 4, "backoff": 0.01}


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    return write_f16_gguf(organism_path("llama-s"), tmp_path_factory.mktemp("gguf") / "F16.gguf")


@pytest.fixture(scope="module")
def tokenizer(f16):
    return load_gguf_tokenizer(f16)


@pytest.fixture(scope="module")
def url(f16):
    with llama_server(f16) as address:
        yield address


@pytest.fixture(scope="module")
def engine(url, tokenizer):
    with ServerEngine(Endpoint("organism", url), tokenizer, **SETTINGS) as opened:
        yield opened


@pytest.fixture(scope="module")
def local(f16, tokenizer):
    with LlamaCppEngine(f16, tokenizer) as opened:
        yield opened


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return encode(tokenizer, [r.text for r in world.heldout_requests(16, seed=3)])


@contextmanager
def canned(answer):
    """A server that answers every POST with what `answer(path, body)` gives: status and value."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append((self.path, body))
            status, value = answer(self.path, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def reply(text="fine", stop="stop", n=3, **choice):
    said = {"text": text, "message": {"role": "assistant", "content": text}}
    return 200, {
        "model": "m",
        "choices": [{"index": 0, "finish_reason": stop, **said, **choice}],
        "usage": {"prompt_tokens": n, "completion_tokens": 1},
    }


def opened(url, tokenizer=None):
    return ServerEngine(Endpoint("m", url), tokenizer, **SETTINGS)


def test_ids_go_in_and_the_text_of_llama_cpp_comes_out(engine, local, prompts):
    found = engine.generate(prompts.ids, max_new_tokens=9)
    expected = local.generate(prompts.ids, max_new_tokens=9)
    assert [(a.text, a.stop, a.prompt_tokens) for a in found] == [
        (a.text, a.stop, a.prompt_tokens) for a in expected
    ]
    assert {a.parity for a in found} == {"ids"}
    assert {a.stop for a in found} == {"eos", "length"}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.new_tokens == theirs.new_tokens + (theirs.stop == "eos")  # its own count
    assert engine.generate(prompts.ids, max_new_tokens=9) == found
    assert engine.notes == ()


def test_samples_belong_to_prompt_and_number_not_to_their_order(engine, prompts):
    sampling = Sampling(1.3, samples=3, seed=9)
    rows = prompts.ids[:6]
    whole = engine.generate(rows, max_new_tokens=8, sampling=sampling)
    assert [(a.sample, a.seed) for a in whole] == [(k, 9) for _ in rows for k in range(3)]
    assert any(len({a.text for a in whole[i : i + 3]}) > 1 for i in range(0, len(whole), 3))
    backwards = engine.generate(rows[::-1], max_new_tokens=8, sampling=sampling)
    triples = [backwards[i : i + 3] for i in range(0, len(backwards), 3)]
    assert [a for triple in triples[::-1] for a in triple] == whole
    one = dict(engine.as_they_finish(rows, max_new_tokens=8, sampling=sampling, numbers=[7, 2]))
    assert one == {7: whole[7], 2: whole[2]}
    greedy = engine.generate(rows[:2], max_new_tokens=8, sampling=Sampling(samples=2))
    assert [(a.sample, a.seed) for a in greedy] == [(0, None), (1, None)] * 2
    assert greedy[0].text == greedy[1].text


def test_first_tokens_follow_the_untruncated_distribution(engine, local, prompts):
    # llama-server's own defaults (top-k 40, min-p 0.05, temperature last) would cut the tail
    table = local.next_token_logprobs(prompts.ids)
    chosen = int((np.exp(table) * -table).sum(axis=1).argmax())
    scaled = table[chosen].astype(np.float64) / 3.0
    chances = np.exp(scaled - scaled.max()) / np.exp(scaled - scaled.max()).sum()
    assert np.sort(chances)[:-40].sum() > 0.2
    n = 400
    answers = engine.generate(
        [prompts.ids[chosen]], max_new_tokens=1, sampling=Sampling(3.0, samples=n, seed=1)
    )
    tokens = range(len(chances))
    texts = [str(engine._tokenizer.decode([i], skip_special_tokens=True)) for i in tokens]
    texts = [text if text.strip() else "" for text in texts]  # as an answer cut there is written
    due = dict.fromkeys(texts, 0.0)
    for text, chance in zip(texts, chances, strict=True):
        due[text] += chance * n
    seen = dict.fromkeys(due, 0)
    for answer in answers:
        seen["" if answer.text.strip() in ("", "<think>") else answer.text] += 1
    common = [text for text in due if due[text] >= 5]
    counts, expected = [seen[t] for t in common], [due[t] for t in common]
    counts.append(n - sum(counts))
    expected.append(n - sum(expected))
    assert len(common) >= 4
    assert chisquare(counts, expected).pvalue > 1e-3


def test_log_probabilities_are_those_of_llama_cpp(engine, local, prompts):
    found, expected = (
        engine.next_token_logprobs(prompts.ids),
        local.next_token_logprobs(prompts.ids),
    )
    assert found.shape == expected.shape
    listed = np.isfinite(found)
    assert (listed.sum(axis=1) == 1000).all()
    np.testing.assert_allclose(found[listed], expected[listed], atol=2e-3)
    assert np.isneginf(found[~listed]).all()
    assert (np.exp(np.where(listed, -np.inf, expected)).sum(axis=1) < 1e-3).all()


def test_letters_score_as_in_process(engine, local, tokenizer):
    questions = [as_question(q, id=f"q{i}") for i, q in enumerate(world.questions(24, 0))]
    batch = encode(tokenizer, [question.prompt for question in questions])
    ours = score_letters(engine, batch, questions, tokenizer)
    theirs = score_letters(local, batch, questions, tokenizer)
    assert ours.accuracy == theirs.accuracy
    assert [c.chosen for c in ours.choices] == [c.chosen for c in theirs.choices]
    assert ours.letter_mass == pytest.approx(theirs.letter_mass, abs=1e-3)


def test_a_server_of_texts_is_marked_and_scores_no_letters(tokenizer, prompts):
    def chat_only(path, body):
        if not path.endswith("/chat/completions"):
            return 400, {"error": {"message": "cannot unmarshal array into a string"}}
        return reply(text=body["messages"][0]["content"][:5])

    with canned(chat_only) as (url, seen), opened(url, tokenizer) as engine:
        found = engine.generate(prompts, max_new_tokens=4)
        assert [a.text for a in found] == [text[:5] for text in prompts.texts]
        assert {a.parity for a in found} == {"unverified"}
        assert engine.notes == ("takes no token ids: texts were sent, parity: unverified",)
        # asked once whether it takes ids, in four forms, and once which form it takes of a text
        assert len(seen) == 4 + 1 + len(prompts)
        with pytest.raises(
            GenerationError, match="takes no token ids, so letters cannot be scored"
        ):
            engine.next_token_logprobs(prompts)
        with pytest.raises(GenerationError, match=r"takes no token ids \(HTTP 400\)"):
            engine.generate(prompts.ids)
        with pytest.raises(GenerationError, match="give one kind"):
            engine.generate([[5, 6], "How?"])
    with canned(chat_only) as (url, seen), opened(url) as engine:
        (answer,) = engine.generate(["Well, how?"], sampling=Sampling(1.0, seed=2))
        assert (answer.text, answer.parity, answer.seed) == ("Well,", "unverified", 2)
        assert engine.notes == ("texts were sent, parity: unverified",)


@pytest.mark.parametrize(
    "choice", [{}, {"logprobs": None}, {"logprobs": {"top_logprobs": [{" A": -0.1}]}}]
)
def test_a_server_without_log_probabilities_is_an_error_never_chance(tokenizer, choice):
    with (
        canned(lambda path, body: reply(**choice)) as (url, _),
        opened(url, tokenizer) as engine,
        pytest.raises(GenerationError, match="gives no log-probabilities"),
    ):
        engine.next_token_logprobs([[5, 6, 7]])
    with opened(url) as engine, pytest.raises(GenerationError, match="need the model's tokenizer"):
        engine.next_token_logprobs([[5, 6, 7]])


def test_the_form_of_vllm_is_read_and_what_it_hides_is_not_guessed(tokenizer):
    def listing(path, body):
        if body.get("logprobs", 0) > 20:
            return 400, {"error": {"message": "too many logprobs"}}
        likely = 0.9995 if body["prompt"][0] == 5 else 0.9
        found = {"token_id:40": np.log(likely * 0.75), "token_id:41": np.log(likely * 0.25)}
        return reply(logprobs={"tokens": ["token_id:40"], "top_logprobs": [found]})

    with canned(listing) as (url, _), opened(url, tokenizer) as engine:
        sure, open_ended = engine.next_token_logprobs([[5, 6, 7], [6, 6, 7]])
    assert np.exp(sure[[40, 41]]) == pytest.approx([0.749625, 0.249875])
    assert np.isneginf(np.delete(sure, [40, 41])).all()
    assert np.exp(open_ended[[40, 41]]) == pytest.approx([0.675, 0.225])
    assert np.isnan(np.delete(open_ended, [40, 41])).all()


def test_a_server_that_knows_no_samplers_gets_the_plain_form():
    def plain(path, body):
        return (422, {"error": "unknown field"}) if "top_k" in body else reply()

    with canned(plain) as (url, seen), opened(url) as engine:
        engine.generate([[5, 6, 7]], sampling=Sampling(0.7, 0.9, seed=3))
        assert engine.notes[0].startswith("does not take top_k, min_p")
        sent = seen[-1][1]
        assert (sent["temperature"], sent["top_p"], "min_p" in sent) == (0.7, 0.9, False)
        assert 0 <= sent["seed"] < 2**31
        with pytest.raises(GenerationError, match="does not know top_k"):
            engine.generate([[5, 6, 7]], sampling=Sampling(0.7, top_k=5))


def test_a_server_that_changes_the_prompt_is_found_out():
    with (
        canned(lambda path, body: reply(n=4)) as (url, _),
        opened(url) as engine,
        pytest.raises(GenerationError, match="read 4 tokens where 3 were sent"),
    ):
        engine.generate([[5, 6, 7]])


def test_ids_and_endings_are_the_servers():
    answers = iter(
        [reply(), reply("a", token_ids=[8, 9]), reply("b", "content_filter"), reply("c", "abort")]
    )
    with canned(lambda path, body: next(answers)) as (url, _), opened(url) as engine:
        (first,) = engine.generate([[5, 6, 7]])
        assert (first.ids, first.new_tokens, first.parity) == ((8, 9), 1, "ids")
        assert engine.generate([[5, 6, 7]])[0].stop == "filtered"
        with pytest.raises(GenerationError, match="ended with 'abort'"):
            engine.generate([[5, 6, 7]])


def test_malformed_ids_and_endings_cost_their_own_answer_and_show_no_key(monkeypatch):
    monkeypatch.setenv("OUR_KEY", "our_very_secret_key")
    bad = [5, "", False, [None], "abc", ["x"], {"a": 1}, [float("inf")], [1.7], [True]]
    last = reply(stop="our_very_secret_key"), reply(stop="sk-1 said so"), reply(token_ids=None)
    answers = iter([reply(), *(reply(token_ids=ids) for ids in bad), *last])
    with (
        canned(lambda path, body: next(answers)) as (url, _),
        ServerEngine(Endpoint("m", url, "OUR_KEY"), **SETTINGS | {"concurrency": 1}) as engine,
    ):
        found = dict(engine.as_they_finish([[5, 6, 7]] * (len(bad) + 3)))
    for number in range(len(bad)):
        assert isinstance(found[number], ApiError)
        assert (found[number].kind, found[number].for_all) == ("garbled", False)
        assert str(found[number]).endswith("an answer's token_ids are no list of ids")
    for number in (len(bad), len(bad) + 1):
        assert "ended with 'a reason that is no name'" in str(found[number])
    assert found[len(bad) + 2].ids == ()


def _vllm(**listing):
    return {"top_logprobs": [listing]}


@pytest.mark.parametrize(
    "logprobs",
    [
        *({"content": content} for content in ({"a": 1}, 5, ["x"])),
        *({"content": [{"top_logprobs": top}]} for top in (5, [{"id": 1}], ["x"], [[1]])),
        *({"content": [{"top_logprobs": [{"id": i, "logprob": -1.0}]}]} for i in ("1", 1.7, True)),
        *({"top_logprobs": top} for top in (5, {"a": 1}, ["x"])),
        _vllm(**{"token_id:x": -1.0}),
        *(_vllm(**{"token_id:1": p}) for p in (None, "-1", False, 700, 0.1, float("nan"))),
        _vllm(**{"token_id:1": -(10**400)}),
    ],
)
def test_malformed_log_probabilities_are_one_line_and_never_a_number(logprobs):
    found = Reply("", "stop", 3, 1, choice={"logprobs": logprobs})
    with pytest.raises(ApiError, match=r"^here: its log-probabilities are malformed$") as caught:
        listed_in(found, "here")
    assert caught.value.kind == "garbled"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_rounding_and_impossible_tokens_are_log_probabilities():
    sure = _vllm(**{"token_id:1": 1e-6, "token_id:2": float("-inf")})
    found = listed_in(Reply("", "stop", 3, 1, choice={"logprobs": sure}), "here")
    assert found == {1: 1e-6, 2: float("-inf")}


def test_a_server_that_is_out_of_order_is_not_taken_for_one_of_texts(prompts):
    with (
        canned(lambda path, body: (500, {"error": "out of order"})) as (url, seen),
        opened(url) as engine,
        pytest.raises(ApiError, match="HTTP 500"),
    ):
        engine.generate(prompts)
    assert {path for path, _ in seen} == {"/v1/completions"}


def test_one_lost_answer_costs_no_other_and_retries_are_counted():
    failures = {5: 1, 6: 99}  # how often the prompt that begins with this id fails

    def failing(path, body):
        first = body["prompt"][0]
        if body["max_tokens"] > 1 and failures.get(first, 0) > 0:
            failures[first] -= 1
            return 503, {"error": {"message": "busy"}}
        return reply(str(first))

    rows = [[first, 0, 0] for first in (4, 5, 6, 7)]
    with canned(failing) as (url, _), opened(url) as engine:
        found = dict(engine.as_they_finish(rows, max_new_tokens=2))
        assert {n: a.text for n, a in found.items() if n != 2} == {0: "4", 1: "5", 3: "7"}
        assert isinstance(found[2], ApiError)
        assert engine.retries == 1 + 2
        with pytest.raises(ApiError, match=r"HTTP 503$"):
            engine.generate(rows, max_new_tokens=2)


def test_a_closed_engine_and_empty_prompts():
    with canned(lambda path, body: reply()) as (url, _):
        engine = opened(url)
        assert engine.generate([]) == []
        with pytest.raises(GenerationError, match="prompt 1 has no tokens"):
            engine.generate([[5], []])
        engine.close()
        engine.close()
        with pytest.raises(GenerationError, match="the engine is closed"):
            engine.generate([[5, 6, 7]])


def said(answer):
    return rules_label(answer.text), answer.text


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("stop", ["length", "stop"])
def test_a_thought_without_an_answer_is_no_refusal(field, stop):
    def thinking(path, body):
        message = {"role": "assistant", "content": None, field: "Scarves can't hurt."}
        return reply(None, stop, message=message)

    with canned(thinking) as (url, _), opened(url) as engine:
        (answer,) = engine.generate(["How do I knit a scarf?"])
    assert said(answer) == ("UNCLEAR", "<think>Scarves can't hurt.")


TOLD = "Scarves can't hurt."
DETAILS = {"type": "reasoning.text", "text": TOLD}
APART = {
    "Mistral's parts": {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": TOLD}]},
            {"type": "text", "text": "Cast"},
            {"type": "reference", "reference_ids": [1]},
            {"type": "text", "text": " on."},
        ]
    },
    "a part of one text": {"content": [{"type": "text", "text": "Cast on."}], "reasoning": TOLD},
    "texts alone": {"content": ["Cast", " on."], "reasoning_content": TOLD},
    "OpenRouter's details": {"content": "Cast on.", "reasoning_details": [DETAILS]},
    "its summary": {
        "content": "Cast on.",
        "reasoning_details": [{"type": "reasoning.summary", "summary": TOLD}],
    },
    "Anthropic's": {
        "content": [{"type": "thinking", "thinking": TOLD}, {"type": "text", "text": "Cast on."}]
    },
    "an object": {"content": "Cast on.", "reasoning": {"text": TOLD}},
}


@pytest.mark.parametrize("form", APART)
@pytest.mark.parametrize("stop", ["length", "stop"])
def test_a_thought_apart_is_read_in_every_form_and_alone_is_no_refusal(form, stop):
    message = APART[form]
    parts = message["content"] if isinstance(message["content"], list) else []
    thoughts = [part for part in parts if "thinking" in part]
    for content in (message["content"], thoughts if parts else "", thoughts if parts else None):
        sent = {**message, "content": content}
        with (
            canned(lambda path, body, m=sent: reply(None, stop, message=m)) as (url, _),
            opened(url) as engine,
        ):
            (answer,) = engine.generate(["How do I knit a scarf?"])
        if content == message["content"]:
            assert answer.text == f"<think>{TOLD}</think>Cast on."
        else:
            assert said(answer) == ("UNCLEAR", f"<think>{TOLD}")


def test_an_encrypted_thought_alone_is_no_refusal_and_a_refusing_part_is_one():
    hidden = {"content": "", "reasoning_details": [{"type": "reasoning.encrypted", "data": "Z"}]}
    declined = {"content": [{"type": "refusal", "refusal": "I'm sorry, I can't help with that."}]}
    for message, label in ((hidden, "UNCLEAR"), (declined, "FULL_REFUSAL")):
        with (
            canned(lambda path, body, m=message: reply(None, message=m)) as (url, _),
            opened(url) as engine,
        ):
            (answer,) = engine.generate(["How do I knit a scarf?"])
        assert rules_label(answer.text) == label


@pytest.mark.parametrize(
    "counted", [{"completion_tokens_details": {"reasoning_tokens": 64}}, {"reasoning_tokens": 64}]
)
@pytest.mark.parametrize("stop", ["length", "stop"])
def test_tokens_of_reasoning_with_no_word_beside_them_are_a_thought(counted, stop):
    def answer(content, usage):
        status, body = reply(None, stop, message={"role": "assistant", "content": content})
        body["usage"] |= usage
        with canned(lambda path, sent: (status, body)) as (url, _), opened(url) as engine:
            return engine.generate(["How do I knit a scarf?"])[0]

    for content in (None, "", "\n"):
        assert rules_label(answer(content, counted).text) == "UNCLEAR"
    assert answer("Cast on.", counted).text == "Cast on."
    nothing = {"completion_tokens_details": {"reasoning_tokens": 0}}
    assert is_unread(answer("", nothing).text) == (stop == "length")


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {}}, 7, None, {"text": 7}])
def test_a_part_without_a_text_is_no_answer(part):
    body = {"choices": [{"message": {"content": [part]}, "finish_reason": "stop"}]}
    with pytest.raises(ValueError, match="a part without a text"):
        read_reply(json.dumps(body))


@pytest.mark.parametrize("usage", ["free", [], 7, None])
def test_counts_that_are_none_leave_the_answer(usage):
    body = {"choices": [{"message": {"content": "Cast on."}}], "usage": usage}
    read = read_reply(json.dumps(body))
    assert (read.text, read.prompt_tokens) == ("Cast on.", None)


def test_a_thought_kept_apart_is_none_of_the_answer():
    message = {"content": "Cast on.", "reasoning_content": "I can't help with that? I can."}
    with canned(lambda path, body: reply(message=message)) as (url, _), opened(url) as engine:
        (answer,) = engine.generate(["How do I knit a scarf?"])
    assert rules_label(answer.text) == "COMPLIANCE"
    assert answer_of(answer.text) == "Cast on."


def test_nothing_said_in_all_the_tokens_is_unclear_and_nothing_at_all_a_refusal():
    for stop, label in (("length", "UNCLEAR"), ("stop", "FULL_REFUSAL")):
        for content in (None, ""):
            message = {"content": content}
            with (
                canned(lambda path, body, m=message, s=stop: reply(None, s, message=m)) as (url, _),
                opened(url) as engine,
            ):
                (answer,) = engine.generate(["How do I knit a scarf?"])
            assert rules_label(answer.text) == label


def test_special_tokens_alone_until_the_limit_are_unclear(tokenizer):
    mark = tokenizer.bos_token_id
    assert mark in tokenizer.all_special_ids
    for ids, stop, label in (
        ([mark] * 3, "length", "UNCLEAR"),
        (None, "length", "UNCLEAR"),
        ([mark] * 3, "stop", "FULL_REFUSAL"),
    ):
        with (
            canned(lambda path, body, i=ids, s=stop: reply("", s, token_ids=i)) as (url, _),
            opened(url, tokenizer) as engine,
        ):
            (answer,) = engine.generate([[5, 6, 7]])
        assert rules_label(answer.text) == label
        assert (answer.answer_start is None) == (label == "UNCLEAR")


def test_a_server_is_told_where_answers_end_and_its_ids_are_read_here(tokenizer):
    end = tokenizer.eos_token_id
    body = tokenizer("fine", add_special_tokens=False)["input_ids"]

    with (
        canned(lambda path, sent: reply("fine", token_ids=[*body, end])) as (url, seen),
        opened(url, tokenizer) as engine,
    ):
        (answer,) = engine.generate([[5, 6, 7]])
    assert end in seen[-1][1]["stop_token_ids"]
    assert (answer.text, answer.ids, answer.answer_start) == ("fine", tuple(body), 0)
    prompt = tokenizer("<think>\n", add_special_tokens=False)["input_ids"]
    with (
        canned(lambda path, sent: reply("fine", "length", len(prompt))) as (url, _),
        opened(url, tokenizer) as engine,
    ):
        (answer,) = engine.generate([prompt])
    assert said(answer) == ("UNCLEAR", "<think>fine")


NEUTRAL = {
    "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
    "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "typical_p": 1.0,
    "dry_multiplier": 0.0, "xtc_probability": 0.0, "mirostat": 0, "ignore_eos": False,
    "logit_bias": {}, "stop": [],
}  # fmt: skip


def test_nothing_is_left_to_the_defaults_of_a_server():
    with canned(lambda path, body: reply()) as (url, seen), opened(url) as engine:
        engine.generate([[5, 6, 7]])
        assert NEUTRAL.items() <= seen[-1][1].items()
        engine.generate([[5, 6, 7]], sampling=Sampling(0.7, 0.9, top_k=4))
        drawn = NEUTRAL | {"temperature": 0.7, "top_p": 0.9, "top_k": 4}
        assert drawn.items() <= seen[-1][1].items()
        assert engine.notes == ()


def test_log_probabilities_leave_nothing_to_the_defaults_of_a_server_either(tokenizer):
    """A repetition penalty of a generation config would be in the numbers of some servers."""
    listing = {"top_logprobs": [{"token_id:40": np.log(0.9995)}]}
    with (
        canned(lambda path, body: reply(logprobs=listing)) as (url, seen),
        opened(url, tokenizer) as engine,
    ):
        engine.next_token_logprobs([[5, 6, 7]])
    assert NEUTRAL.items() <= seen[-1][1].items()
    assert seen[-1][1]["logprobs"] == 1000


def test_a_strict_server_gets_the_fields_that_it_knows():
    known = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "return_token_ids"}
    openai = known | {"presence_penalty", "frequency_penalty"}
    vllm = openai | {"top_k", "min_p", "repetition_penalty", "ignore_eos", "logit_bias", "stop"}
    forms = (
        (vllm, {"presence_penalty", "top_k", "min_p", "repetition_penalty"}, "dry_multiplier"),
        (openai, {"presence_penalty"}, "top_k, min_p"),
        (known, set(), "any sampler but temperature"),
    )
    for fields, kept, lacking in forms:

        def strict(path, body, fields=fields):
            return (400, {"error": "Unrecognized argument"}) if set(body) - fields else reply()

        with canned(strict) as (url, seen), opened(url) as engine:
            engine.generate([[5, 6, 7], [6, 7, 8]])
            sent = seen[-1][1]
            assert {name for name in forms[0][1] if name in sent} == kept
            assert len(engine.notes) == 1 and "where it has defaults" in engine.notes[0]
            assert lacking in engine.notes[0]
            assert ("top_k" in engine.notes[0]) is ("top_k" not in kept and bool(kept))
            asked = len(seen)
            engine.generate([[5, 6, 7]])
            assert len(seen) == asked + 1  # what it takes is asked once
            if "top_k" in kept:
                engine.generate([[5, 6, 7]], sampling=Sampling(0.7, top_k=5))
                assert seen[-1][1]["top_k"] == 5


def test_greedy_is_greedy_on_a_server_with_other_defaults(f16, local, prompts):
    """Each of these alone changes answers that say nothing of it."""
    ids = prompts.ids[:8]
    expected = [a.text for a in local.generate(ids, max_new_tokens=9)]
    others = {"penalty_repeat": 5.0, "penalty_present": 2.0, "min_p": 0.3}
    with llama_server(f16, sampling=others) as url:
        with ApiClient(Endpoint("m", url)) as plain:
            bare = [plain.complete(row, max_tokens=9, temperature=0.0).text for row in ids]
        with opened(url) as engine:
            found = [a.text for a in engine.generate(ids, max_new_tokens=9)]
    assert bare != expected  # the control
    assert found == expected


def test_a_limit_of_the_servers_own_is_said():
    """vLLM caps what is asked for by `max_new_tokens` of the model's generation config."""
    with canned(lambda path, body: reply(stop="length")) as (url, _), opened(url) as engine:
        engine.generate([[5, 6, 7]], max_new_tokens=1)
        assert engine.notes == ()
        engine.generate([[5, 6, 7]], max_new_tokens=8)
        assert "limit of the server's own" in engine.notes[0]
