"""A run whose template opens a thought: nothing in it is read as an answer, and it says so."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from small import lines, rows

from mechprobe.experiments.progress import NoDisplay
from mechprobe.experiments.running import run_spec
from mechprobe.experiments.spec_file import parse_spec
from mechprobe.organisms.tokenizer import CHAT_TEMPLATE

OPENS = CHAT_TEMPLATE + "{{ '<think>\\n' }}"
WHY = "not measured, since the prompt ends inside a thought"


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    """FP16 and F16 of the organism, asked to think in 12 tokens."""
    content = {
        "name": "thinking",
        "models": [
            {
                "name": "llama-s",
                "source": "organism:llama-s",
                "chat_template": OPENS,
                "cells": [{"precision": "FP16"}, {"precision": "F16", "quantize": "F16"}],
            }
        ],
        "prompts": {"source": "organism"},
        "tasks": {
            "refusal": {"prompts": 4, "max_new_tokens": 12},
            "multiple_choice": {"questions": 4},
            "more": [
                {"task": "reference", "source": "organism", "items": 4, "instrument": "exact_match"}
            ],
            "judges": ["rules", "oracle"],
        },
        "probes": {"run": ["entropy"], "fit": 4, "select": 4, "evaluate": 4},
    }
    home = tmp_path_factory.mktemp("thinking")
    spec = parse_spec(yaml.safe_dump(content), "thinking.yaml")
    done = run_spec(spec, home / "run", lambda title, total: nullcontext(NoDisplay()))
    return home / "run", done


@pytest.mark.parametrize("cell", ["FP16@transformers", "F16@llama.cpp"])
def test_what_is_cut_in_thought_is_unclear_to_every_scorer(thinking, cell):
    folder = thinking[0] / "cells" / "llama-s" / cell
    answers = lines(folder / "generations" / "refusal.jsonl")
    assert len(answers) == 8
    for answer in answers:
        assert answer["text"].startswith("<think>") and answer["answer_start"] is None
    scores = lines(folder / "scores" / "refusal.jsonl")
    assert all(row["unread"] and row["oracle"] == "unclear" for row in scores)
    assert not any(row[name] for row in scores for name in ("hard", "soft", "rules", "prefix"))
    content = json.loads((folder / "cell.json").read_text())
    assert [content["refusal"][side]["n"] for side in ("harmful", "harmless")] == [0, 0]
    assert [content["refusal"][side]["unread"] for side in ("harmful", "harmless")] == [4, 4]
    for judge in ("rules", "oracle"):
        labels = lines(folder / "judgements" / f"refusal.{judge}.jsonl")
        assert {row["label"] for row in labels} == {"UNCLEAR"}
    task = lines(folder / "scores" / "reference.jsonl")
    assert {row["outcome"] for row in task} == {"unread"}


def test_what_reads_the_first_token_says_why_it_does_not(thinking):
    folder, done = thinking
    assert done.exit_code == 4
    for row in rows(folder / "matrix.csv"):
        assert WHY in row["error"]
        measured = [name for name in row if name.startswith(("accuracy_", "entropy_"))]
        assert not any(row[name] for name in measured) and len(measured) > 5
        assert float(row["harmful_unclear_rate"]) == 1.0
    prompts = lines(Path(folder) / "prompts" / "llama-s.jsonl")
    assert {row["detour"] for row in prompts} == {
        "the prompt ends inside a thought, which neither true nor false for any variable of the "
        "template closes"
    }
