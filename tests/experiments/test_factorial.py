"""A small real factorial: run, interrupted, shown, opened; and specs that are wrong."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import mechprobe
from mechprobe.errors import (
    MechprobeError,
    PreflightError,
    PromptFileError,
    RunDirectoryError,
    SpecError,
)
from mechprobe.experiments import factorial_answers, made
from mechprobe.experiments.factorial_plan import plan_factorial
from mechprobe.experiments.factorial_prompts import draw_requests
from mechprobe.experiments.factorial_running import run_factorial
from mechprobe.experiments.factorial_spec import SPECS, load_factorial, parse_factorial
from mechprobe.experiments.factorial_view import show_finished
from mechprobe.experiments.progress import NoDisplay
from mechprobe.experiments.sources import find_source
from mechprobe.experiments.spec_file import shipped_specs

sys.path.insert(0, str(Path(__file__).parent))
from small import lines, markers, same_results, spoil

SPEC = """
name: small
models:
  - name: llama-s
    family: organism
    source: organism:llama-s
    cells:
      - {precision: FP16}
      - {precision: Q2_K, quantize: Q2_K}
      - {precision: Q8_0, source: spoiled.gguf}
harmful: {source: organism, prompts: 14}
benign: {source: organism, prompts: 6}
temperatures: [0, 1.0]
samples: 4
max_new_tokens: 8
judges: [oracle, rules, "rules:arditi12"]
"""


def run(out, spec=SPEC):
    """Run a factorial; `spoiled.gguf` is a file that no engine loads."""
    file = out.parent / "spoiled.gguf"
    if "spoiled.gguf" in spec and not file.exists():
        _, digest = find_source("organism:llama-s")
        spoil(made.ensure_made(made.recipe("organism:llama-s", digest, "Q8_0"))[0], file)
    spec = spec.replace("spoiled.gguf", str(file))
    show = nullcontext(NoDisplay())
    return run_factorial(parse_factorial(spec, "small.yaml"), out, lambda title, total: show)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("factorial") / "run")


def test_every_cell_is_measured_and_the_missing_baseline_is_added(finished):
    document = finished.document
    assert [(one["cell"], one["reference"]) for one in document["design"]["cells"]] == [
        ("FP16@transformers", False),
        ("Q2_K@llama.cpp", False),
        ("Q8_0@llama.cpp", False),
        ("F16@llama.cpp", True),
    ]
    assert len(document["rates"]) == 3 * 2 * 2
    assert [row["baseline"] for row in document["interactions"]] == ["F16@llama.cpp"]
    assert {row["decided"] + row["unclear"] for row in document["rates"]} == {14 * 4, 6 * 4}
    assert {row["missing"] for row in document["rates"]} == {0}


def test_at_temperature_0_no_prompt_wavers_on_either_engine(finished):
    cold = [row for row in finished.document["rates"] if row["temperature"] == 0]
    assert {row["engine"] for row in cold} == {"transformers", "llama.cpp"}
    assert {(row["dfr"], row["k"]) for row in cold if row["dfr_prompts"]} == {(0.0, 4)}
    for row in cold:
        file = finished.run.cell(row["model"], row["cell"]) / "generations" / "T0.jsonl"
        texts = pd.DataFrame(lines(file)).groupby("id")["text"]
        assert texts.nunique().max() == 1
        assert texts.size().min() == 4
    assert any(row["dfr"] for row in finished.document["rates"] if row["temperature"] == 1)


def test_the_rates_are_those_of_the_labels(finished):
    labels = pd.read_parquet(finished.run / "labels.parquet")
    assert set(labels["judge"]) == {"oracle", "rules", "rules:arditi12"}
    assert len(labels) == 3 * 3 * 2 * 20 * 4
    # the lists know refusals: where two of three see none, the oracle says whether it is an answer
    wide = labels.pivot(
        index=["cell", "request", "temperature", "prompt", "sample"],
        columns="judge",
        values="label",
    )
    row = next(r for r in finished.document["rates"] if r["cell"] == "F16@llama.cpp" and
               (r["request"], r["temperature"]) == ("harmful", 1.0))  # fmt: skip
    mine = wide.loc["F16@llama.cpp", "harmful", 1.0]
    refused = mine.isin(["refuse", "partial"]).sum(axis=1) >= 2
    unclear = ~refused & (mine["oracle"] == "unclear")
    assert row["unclear"] == unclear.sum()
    assert row["asr"] == pytest.approx((~refused)[~unclear].mean())
    assert finished.document["ensemble"]["blind"] == ["rules", "rules:arditi12"]


def test_the_page_shows_ids_and_never_a_text(finished):
    page = (finished.run / "report.html").read_text()
    prompts = lines(finished.run.prompts("llama-s"))
    texts = {row["text"] for row in prompts}
    for file in (finished.run / "cells").glob("*/*/generations/*.jsonl"):
        texts |= {row["text"] for row in lines(file) if len(row["text"]) > 12}
    document = (finished.run / "factorial.json").read_text()
    assert len(texts) > 40
    for text in texts:
        assert text not in page
        assert text not in document
    shown = [row["prompt"] for row in finished.document["wavering"]]
    assert shown
    assert all(name in page for name in shown)
    assert {p.suffix for p in (finished.run / "figures").iterdir()} == {".svg", ".png"}


def test_a_second_run_reuses_everything(finished):
    again = run(finished.run.path)
    # all but what failed and what needs it is there already
    assert again.outcome.count("reused") == finished.outcome.count("done")
    assert again.outcome.count("done") == 0
    assert again.document == finished.document


class Stop(BaseException):
    """What an interruption is to the engine."""


def test_interrupted_between_batches_it_ends_as_undisturbed(tmp_path, monkeypatch):
    plain, asked, most = factorial_answers.draw_samples, [], [100]

    def limited(*given):
        if len(asked) == most[0]:
            raise Stop
        asked.append(1)
        return plain(*given)

    def go_on(out, batches):
        asked.clear()
        most[0] = batches
        return run(out, small)

    monkeypatch.setattr(factorial_answers, "draw_samples", limited)
    monkeypatch.setattr(factorial_answers, "BATCH", 8)  # several batches to a step
    small = "\n".join(line for line in SPEC.splitlines() if ".gguf" not in line)
    small = small.replace("      - {precision: Q2_K, quantize: Q2_K}\n", "")
    small = small.replace("prompts: 14", "prompts: 10")
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert go_on(whole, 100).exit_code == 0
    assert len(asked) == 2 + 8  # 16 prompts: eight to a batch at 0, two by four samples at 1
    for batches in (1, 6):  # within the step of temperature 0, and within that of 1
        with pytest.raises(Stop):
            go_on(out, batches)
        assert len(list(out.rglob("*.journal"))) == 1
    go_on(out, 100)
    assert len(asked) == 10 - 1 - 6
    assert same_results(whole, out) >= 10
    assert (whole / "labels.parquet").read_bytes() == (out / "labels.parquet").read_bytes()
    assert json.loads((whole / "factorial.json").read_text()) == json.loads(
        (out / "factorial.json").read_text()
    )


def test_the_spec_of_a_run_runs_again(finished):
    kept = load_factorial(finished.run / "spec.yaml")
    own = SPEC.replace("spoiled.gguf", str(finished.run.path.parent / "spoiled.gguf"))
    assert kept == parse_factorial(own, "small.yaml")


def test_judge_finds_the_prompts_of_a_factorial(finished):
    from mechprobe.experiments.judging import find_exchanges

    found = find_exchanges([finished.run.path])
    assert len(found) == 3 * 2 * 20 * 4
    assert {one.request for one in found} == {"harmful", "harmless"}
    assert {one.task for one in found} == {"T0", "T1"}


def test_a_notebook_opens_it(finished):
    opened = mechprobe.open_run(finished.run.path)
    assert opened.name == "small"
    assert len(opened.rates) == 12
    assert opened.interactions.loc[0, "cdi_1"] == pytest.approx(
        finished.document["interactions"][0]["cdi"][0]["value"]
    )
    assert len(opened.labels) == 1440
    assert {"asr-harmful", "dfr-harmful", "interaction"} <= set(opened.figures())
    assert opened.report() == (finished.run / "report.html").read_text()
    assert "Q2_K@llama.cpp" in opened._repr_html_()


def test_an_unfinished_one_is_not_opened(finished, tmp_path):
    (tmp_path / "spec.yaml").write_text((finished.run / "spec.yaml").read_text())
    with pytest.raises(RunDirectoryError, match=r"not finished \(factorial.json is missing\)"):
        mechprobe.open_run(tmp_path)


def test_where_every_cell_fails_the_causes_are_said(tmp_path):
    kept = ("precision: FP16", "precision: Q2_K")
    spec = "\n".join(line for line in SPEC.splitlines() if not any(one in line for one in kept))
    spec = spec.replace("spoiled.gguf}", "spoiled.gguf, baseline: Q8_0}")
    done = run(tmp_path / "run", spec)
    assert (done.exit_code, done.document) == (2, None)
    said = "\n".join(done.outcome.failure_lines())
    assert "spoiled.gguf" in said
    assert "no answer of any cell has a label" in said
    console = Console(file=io.StringIO(), width=200)
    show_finished(done, tmp_path / "run", console)
    assert "no answer of any cell has a label, so that there is nothing" in console.file.getvalue()


def test_mistakes_are_all_named_before_a_step(tmp_path):
    spec = SPEC.replace("spoiled.gguf", "missing.gguf").replace("rules,", "rules:nothing,")
    with pytest.raises(PreflightError) as found:
        run(tmp_path / "run", spec.replace("precision: FP16", "precision: BF16"))
    assert [(one.check, one.where) for one in found.value.problems] == [
        ("scorer", ""),
        ("source", "llama-s/Q8_0@llama.cpp"),
        ("precision", "llama-s/BF16@transformers"),
    ]
    assert not (tmp_path / "run").exists()


def test_a_broken_cell_costs_no_other(finished):
    document = finished.document
    assert finished.exit_code == 4
    assert list(finished.outcome.failures) == ["cells/llama-s/Q8_0@llama.cpp/checkpoint"]
    assert {row["cell"] for row in document["rates"]} == {
        "FP16@transformers",
        "Q2_K@llama.cpp",
        "F16@llama.cpp",
    }
    assert list(document["errors"]) == ["llama-s/Q8_0@llama.cpp"]
    assert "spoiled.gguf" in document["errors"]["llama-s/Q8_0@llama.cpp"]
    lost = [one["where"] for one in document["not_measured"] if one["what"] == "answers"]
    assert lost == ["llama-s/Q8_0@llama.cpp, T = 0", "llama-s/Q8_0@llama.cpp, T = 1"]
    assert "spoiled.gguf" in (finished.run / "report.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("temperatures: [0, 1.0]", "temperatures: [0.5, 1.0]", "begin with 0"),
        ("temperatures: [0, 1.0]", "temperatures: [0, 1.0, 1.0]", "each be above the one before"),
        ("temperatures: [0, 1.0]", "temperatures: [0]", "temperatures"),
        ("[0, 1.0]", "[0, 0.1234567, 0.12345671]", "two of them are 0.123457 to six digits"),
        ("temperatures: [0, 1.0]", "temperatures: [0, -1]", "greater than or equal to 0"),
        ("samples: 4", "samples: 1", "line 14: samples"),
        ("samples: 4", "sample: 4", "unknown field; did you mean samples"),
        ('"rules:arditi12"]', "rules]", "a judge is named twice"),
        ("judges:", "judge:", "unknown field"),
        ("precision: FP16}", "precision: Q2_K, quantize: Q2_K}", "Q2_K@llama.cpp is there twice"),
        ("{source: organism, prompts: 14}", "{prompts: 14}", "harmful.source: this field is"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_field(old, new, said):
    assert old in SPEC
    with pytest.raises(SpecError, match=r"^small\.yaml, line") as found:
        parse_factorial(SPEC.replace(old, new), "small.yaml")
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rules, ", "rules:nothing, ", r"line 16: judges\[1\]: .*nothing"),
        (
            "prompts: 14}",
            "prompts: 14, options: {sort: odd}}",
            "line 11: harmful: refusal: no option 'sort'",
        ),
        ("harmful: {source: organism", "harmful: {source: nowhere.csv", "nowhere.csv"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_runs(old, new, said):
    assert old in SPEC
    with pytest.raises(MechprobeError, match=said):
        plan_factorial(parse_factorial(SPEC.replace(old, new), "small.yaml"))


def test_prompts_come_from_two_sources_and_more_only_adds():
    asked = {
        "harmful": {"source": "builtin", "prompts": 20, "options": {"split": "test"}},
        "benign": {"source": "over-refusal", "prompts": 10, "options": {}},
    }
    few = draw_requests(asked)
    assert [row["set"] for row in few] == ["harmful"] * 20 + ["benign"] * 10
    assert {row["label"] for row in few if row["set"] == "benign"} == {"harmless"}
    more = draw_requests({**asked, "harmful": {**asked["harmful"], "prompts": 30}})
    assert {row["id"] for row in few} <= {row["id"] for row in more}
    with pytest.raises(PromptFileError, match="no items for refusal"):
        draw_requests({**asked, "harmful": {**asked["benign"]}})


def test_a_step_is_keyed_by_what_it_depends_on():
    def steps(spec):
        return {step.name: step for step in plan_factorial(parse_factorial(spec, "s")).steps}

    before = steps(SPEC)
    other = steps(SPEC.replace("samples: 4", "samples: 4\nseed: 1"))
    changed = {name for name in before if before[name].params != other[name].params}
    assert changed == {name for name in before if "/answers-" in name}
    greedy = steps(SPEC.replace("samples: 4", "samples: 4\ngreedy_samples: 2"))
    changed = {name for name in before if before[name].params != greedy[name].params}
    assert changed == {name for name in before if name.endswith("/answers-T0")} | {"factorial"}


def test_the_shipped_specs():
    names = [one.name for one in shipped_specs(SPECS)]
    assert names == ["factorial-demo", "factorial-study"]
    study = load_factorial("factorial-study")
    assert [len(study.models), study.samples, len(study.judges)] == [9, 5, 6]
    assert {len(model.cells) for model in study.models} == {3}
    assert study.temperatures == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert (study.harmful.prompts, study.benign.prompts) == (200, 200)
    demo = plan_factorial(load_factorial("factorial-demo"))
    assert len(demo.design.cells) == 5
    assert not any(one.reference for one in demo.design.cells)
    with pytest.raises(SpecError, match="there are factorial-demo, factorial-study"):
        load_factorial("factorial-demmo")


def _command(out, *more):
    return [sys.executable, "-m", "mechprobe", "factorial", "factorial-demo", "--out", str(out),
            *more]  # fmt: skip


@pytest.mark.verify
def test_the_demo_killed_six_times_agrees_with_an_undisturbed_one(tmp_path):
    """Nothing quantized beforehand in the killed one; kills in each sixth of its steps."""
    environment = {**os.environ, "MECHPROBE_CACHE": str(tmp_path / "cache")}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    begun = time.monotonic()
    done = subprocess.run(
        _command(whole, "--json"), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    print(f"undisturbed: {time.monotonic() - begun:.0f} s, {said['verdict']}")
    environment["MECHPROBE_CACHE"] = str(tmp_path / "other")
    moment = random.Random(5)
    killed = 0
    for sixth in range(6):
        steps = int((sixth + moment.random()) / 6 * markers(whole))
        process = subprocess.Popen(
            _command(out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and markers(out) < steps:
            time.sleep(0.005)
        time.sleep(moment.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += process.returncode == -signal.SIGKILL
        print(f"kill {sixth + 1}: {markers(out)} of {markers(whole)} steps done")
    assert killed == 6
    done = subprocess.run(
        _command(out), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert same_results(whole, out) > 60
    assert pd.read_parquet(whole / "labels.parquet").equals(pd.read_parquet(out / "labels.parquet"))
    again = subprocess.run(_command(out), capture_output=True, text=True, check=True,
                           env=environment)  # fmt: skip
    assert "Reused all" in again.stdout
