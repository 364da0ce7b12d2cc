"""Broken checkpoints in a matrix: refused together at once, or failing alone during work."""

import json
import shutil

import pytest
from small import rows, run, spoil

from mechprobe.experiments import made
from mechprobe.experiments.sources import find_source

REFUSED = """
name: broken
models:
  - name: llama-s
    source: organism:llama-s
    cells:
      - {{precision: F16, quantize: F16}}
      - {{precision: Q2_K, source: {home}/truncated.gguf}}
      - {{precision: Q4_K_M, source: {home}/mislabelled.gguf}}
      - {{precision: Q8_0, source: {home}/missing.gguf}}
      - {{precision: FP16, source: {home}/other}}
prompts: {{source: organism}}
tasks:
  refusal: {{prompts: 4, max_new_tokens: 4}}
"""
FAILING = """
name: failing
models:
  - name: llama-s
    source: organism:llama-s
    cells:
      - {{precision: F16, quantize: F16}}
      - {{precision: Q2_K, source: {home}/spoiled.gguf}}
      - {{precision: FP16, source: {home}/spoiled}}
prompts: {{source: organism}}
tasks:
  refusal: {{prompts: 4, max_new_tokens: 4}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Broken copies of the organism."""
    home = tmp_path_factory.mktemp("broken")
    source, digest = find_source("organism:llama-s")
    q2, _ = made.ensure_made(made.recipe("organism:llama-s", digest, "Q2_K"))
    whole = q2.read_bytes()
    (home / "truncated.gguf").write_bytes(whole[: len(whole) * 2 // 3])
    (home / "mislabelled.gguf").write_bytes(whole)
    spoil(q2, home / "spoiled.gguf")
    for name in ("other", "spoiled"):
        shutil.copytree(source.path, home / name)
    weights = home / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    spoil(source.path / "model.safetensors", home / "spoiled" / "model.safetensors")
    return home


@pytest.fixture(scope="module")
def failing(home):
    """A matrix with one good cell and two that no engine loads, run once."""
    spec = home / "failing.yaml"
    spec.write_text(FAILING.format(home=home))
    return home, run(spec, home / "run")


@pytest.mark.parametrize("plan", [True, False])
def test_every_cell_that_headers_show_broken_is_named_before_anything_is_measured(home, plan):
    spec = home / "broken.yaml"
    spec.write_text(REFUSED.format(home=home))
    done = run(spec, home / "refused", *(["--plan"] if plan else []))
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert (document["run"], document["exit_code"]) == (str(home / "refused"), 2)
    assert [(one["where"], one["check"]) for one in document["problems"]] == [
        ("llama-s/FP16@transformers", "header"),
        ("llama-s/Q2_K@llama.cpp", "header"),
        ("llama-s/Q8_0@llama.cpp", "source"),
        ("llama-s/Q4_K_M@llama.cpp", "precision"),
    ]
    lines = done.stderr.splitlines()
    assert lines == [f"mechprobe: {one['where']}: {one['said']}" for one in document["problems"]]
    named = ("model.safetensors", "truncated.gguf", "missing.gguf: no such file", "are Q2_K")
    for line, said in zip(lines, named, strict=True):
        assert said in line
    assert not (home / "refused").exists()


def test_what_can_be_measured_is(failing):
    home, done = failing
    assert done.returncode == 4
    status = {r["precision"]: r["status"] for r in rows(home / "run" / "matrix.csv")}
    assert status == {"F16": "ok", "Q2_K": "failed", "FP16": "failed"}


@pytest.mark.parametrize(
    ("precision", "said"), [("Q2_K", "spoiled.gguf"), ("FP16", "1 tensor(s) missing")]
)
def test_each_failure_is_one_line(failing, precision, said):
    home, done = failing
    row = next(r for r in rows(home / "run" / "matrix.csv") if r["precision"] == precision)
    assert said in row["error"]
    assert "\n" not in row["error"]
    mine = [line for line in done.stderr.splitlines() if f"/{precision}@" in line]
    assert len(mine) == 1
    assert said in mine[0]
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    assert document["exit_code"] == 4
    assert len(document["failures"]) == 2


def test_a_failed_run_reads_as_failed_again(failing):
    home, first = failing
    again = run(home / "failing.yaml", home / "run")
    assert again.returncode == 4
    assert again.stderr == first.stderr
    assert json.loads(again.stdout)["steps"]["done"] == 0


def test_a_cell_that_does_not_fit_in_memory_fails_alone(tmp_path, monkeypatch):
    from contextlib import nullcontext

    from mechprobe.experiments import loading
    from mechprobe.experiments.progress import NoDisplay
    from mechprobe.experiments.running import run_spec
    from mechprobe.experiments.spec_file import parse_spec

    text = """
name: memory
models: [{name: m, source: "organism:llama-s", cells: [{precision: FP16}]}]
prompts: {source: organism}
tasks: {refusal: null}
probes: {run: [refusal_direction], fit: 2, select: 2, evaluate: 2, causal: false}
"""
    monkeypatch.setattr(loading, "free_memory", lambda: 8_000_000)
    done = run_spec(parse_spec(text, "m"), tmp_path / "run", lambda *_: nullcontext(NoDisplay()))
    (name,) = done.outcome.failures
    assert name == "cells/m/FP16@transformers/observe"
    assert "its dense kernel needs at least 0.0 GiB" in done.outcome.results[name].error
    assert done.outcome.results["cells/m/FP16@transformers/checkpoint"].ok
