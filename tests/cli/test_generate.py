"""`mechprobe generate`: any engine, the same ids; harmful answers only into the file asked for."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mechprobe.behavior import load_builtin
from mechprobe.models.quantize import quantize
from mechprobe.organisms import organism_path

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
from loopback import llama_server

ORGANISM = "organism:llama-s"


@pytest.fixture(scope="module")
def f16(tmp_path_factory):
    return quantize(ORGANISM, "F16", tmp_path_factory.mktemp("gguf") / "model-F16.gguf")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_engine_answers_the_same_ids(main, f16, tmp_path):
    with llama_server(f16) as url:
        told = {}
        for name, arguments in {
            "graph": ["-m", ORGANISM],
            "dense": ["-m", f16, "--engine", "transformers"],
            "llama": ["-m", f16, "--engine", "llama.cpp"],
            "server": ["-m", "any", "--engine", url, "--tokenizer", f16],
            "texts": ["-m", "any", "--engine", url],
        }.items():
            done = main(
                "generate", *arguments, "--prompts", "organism", "--limit", 12, "--json",
                "--max-new-tokens", 8, "--out", f"{name}.jsonl",
            )  # fmt: skip
            assert done.code == 0, done.err
            told[name] = json.loads(done.out)
    engines = ["transformers-native", "transformers-dense", "llama.cpp", "server", "server"]
    assert [found["engine"] for found in told.values()] == engines
    assert {found["answered"] for found in told.values()} == {12}
    text = told.pop("texts")
    assert (text["parity"], text["prompts"][:5]) == (["unverified"], "text:")
    assert "parity: unverified" in text["notes"][0]
    assert {found["prompts"] for found in told.values()} == {told["graph"]["prompts"]}
    assert [found["parity"] for found in told.values()] == [["ids"]] * 4
    answers = {name: [r["text"] for r in rows(tmp_path / f"{name}.jsonl")] for name in told}
    assert answers["dense"] == answers["llama"] == answers["server"]
    assert len(set(answers["llama"])) > 3


def test_samples_are_written_and_a_second_run_reuses_them(main, tmp_path):
    command = (
        "generate", "-m", ORGANISM, "--limit", 3, "--samples", 4, "--temperature", 1.2,
        "--top-p", 0.9, "--seed", 5, "--max-new-tokens", 6, "-o", "a.jsonl",
    )  # fmt: skip
    done = main(*command)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("12 answers (")
    first = (tmp_path / "a.jsonl").read_bytes()
    found = rows(tmp_path / "a.jsonl")
    assert [row["sample"] for row in found] == [0, 1, 2, 3] * 3
    assert {(row["seed"], row["row"]) for row in found} == {
        (5, f"{ORGANISM}/FP16@transformers-native")
    }
    again = main(*command, "--json")
    assert json.loads(again.out)["reused"] == 12
    assert (tmp_path / "a.jsonl").read_bytes() == first
    other = main(*command, "--seed", 6)
    assert other.code == 2
    assert "a.jsonl: holds the answers of another request" in other.err


def test_answers_to_harmful_requests_stay_off_the_terminal(main, tmp_path):
    harmful = load_builtin().select("harmful").records[:3]
    harmless = load_builtin().select("harmless").records[:3]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"id": one.id, "text": one.text, "label": one.label}) + "\n"
            for one in (*harmful, *harmless)
        )
    )
    command = ("generate", "-m", ORGANISM, "--prompts", "p.jsonl", "--max-new-tokens", 8)
    written = main(*command, "--out", "a.jsonl")
    answers = {row["id"]: row["text"].strip() for row in rows(tmp_path / "a.jsonl")}
    assert all(answers.values())
    assert (written.out.count("\n"), written.err) == (1, "")
    assert written.out.startswith("6 answers (")
    shown, document = main(*command), main(*command, "--json")
    for one in harmful:
        assert f"> {one.text}\n(a harmful request; its answers go only into a file" in shown.out
    assert shown.out.count("\n") == 6 * 3
    for one in harmless:
        assert f"> {one.text}\n{answers[one.id]}\n" in shown.out
    texts = [answer["text"] for answer in json.loads(document.out)["answers"]]
    assert texts[:3] == [None] * 3
    assert all(texts[3:])


def test_fast_says_what_it_trades(main, f16, tmp_path):
    done = main("generate", "-m", f16, "--limit", 2, "--fast", "--parallel", 2, "--json")
    assert done.code == 0
    assert "reruns may differ" in done.err
    assert "reruns may differ" in json.loads(done.out)["notes"][0]
    # and its answers are not taken for those of a run that trades nothing
    command = ("generate", "-m", f16, "--limit", 1, "--samples", 2, "--temperature", 1, "-o", "a")
    assert main(*command, "--max-new-tokens", 2, "--fast").code == 0
    assert [row["fast"] for row in rows(tmp_path / "a")] == [True, True]
    other = main(*command, "--max-new-tokens", 2)
    assert (other.code, other.out) == (2, "")
    assert "a: holds the answers of another request" in other.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "vllm"], "use transformers, llama.cpp or a server's URL"),
        (["--engine", "llama.cpp"], "llama.cpp runs GGUF files"),
        (["--fast"], "--fast: only llama.cpp has it"),
        (["--temperature", "-1"], "temperature -1.0: it must be 0 or more"),
        (["--top-p", "0"], "top_p 0.0: it must be above 0"),
        (["--engine", "http://user:secret@localhost:1", "--fast"], "--fast"),
    ],
)
def test_what_does_not_go_together_is_one_line(main, arguments, said):
    done = main("generate", "-m", ORGANISM, "--prompt", "x", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_prompt_that_cannot_be_sent_is_one_line(main, tmp_path):
    row = {"id": "a", "text": "half \ud83d of it", "label": "harmless", "split": "test"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    for asked in (("--prompts", "p.jsonl"), ("--prompt", row["text"])):
        done = main("generate", "-m", "m", "--engine", "http://127.0.0.1:9", *asked)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert "holds half a character" in done.err


def test_a_server_that_is_not_there_is_one_line(main):
    done = main(
        "generate", "-m", "m", "--engine", "http://127.0.0.1:9", "--prompt", "x",
        "--tokenizer", ORGANISM, "--out", "a.jsonl",
    )  # fmt: skip
    assert done.code == 2
    assert "is the server up?" in done.err
    assert done.err.count("\n") == 1


def test_what_a_template_does_is_said_and_another_one_is_taken_by_name(main, tmp_path):
    folder = shutil.copytree(organism_path("llama-s"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dated = "{{ strftime_now('%d %B %Y') }}" + tokenizer.chat_template
    tokenizer.chat_template = {"default": tokenizer.chat_template, "dated": dated}
    tokenizer.save_pretrained(folder)
    ask = ["generate", "-m", folder, "--prompt", "hi", "--max-new-tokens", 1, "--json"]
    plain = json.loads(main(*ask).out)
    assert plain["notes"] == ["chat template 'default' of dated, default"]
    named = json.loads(main(*ask, "--chat-template", "dated").out)
    assert named["notes"] == ["the template asks for the date: 26 July 2024 was rendered"]
    assert named["prompts"] != plain["prompts"]
    wrong = main(*ask, "--chat-template", "rag")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "rag: no such chat template file" in wrong.err
