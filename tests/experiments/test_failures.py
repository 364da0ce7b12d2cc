"""Broken checkpoints in a matrix: recorded, one line each, and the other cells are measured."""

import json
import shutil

import pytest
from small import rows, run

from mechprobe.experiments import made
from mechprobe.experiments.sources import find_source

SPEC = """
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


@pytest.fixture(scope="module")
def broken(finished, tmp_path_factory):
    """A matrix with one good cell and four bad ones, run once."""
    home = tmp_path_factory.mktemp("broken")
    source, digest = find_source("organism:llama-s")
    q2, _ = made.ensure_made(made.recipe("organism:llama-s", digest, "Q2_K"))
    whole = q2.read_bytes()
    (home / "truncated.gguf").write_bytes(whole[: len(whole) * 2 // 3])
    (home / "mislabelled.gguf").write_bytes(whole)
    shutil.copytree(source.path, home / "other")
    weights = home / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    spec = home / "broken.yaml"
    spec.write_text(SPEC.format(home=home))
    return home, run(spec, home / "run")


def test_what_can_be_measured_is(broken):
    home, done = broken
    assert done.returncode == 4
    status = {r["precision"]: r["status"] for r in rows(home / "run" / "matrix.csv")}
    assert status == {
        "F16": "ok",
        "Q2_K": "failed",
        "Q4_K_M": "failed",
        "Q8_0": "failed",
        "FP16": "failed",
    }


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("Q2_K", "truncated.gguf"),
        ("Q4_K_M", "Q2_K"),
        ("Q8_0", "missing.gguf: no such file or folder"),
        ("FP16", "model.safetensors"),
    ],
)
def test_each_failure_is_one_line(broken, precision, said):
    home, done = broken
    row = next(r for r in rows(home / "run" / "matrix.csv") if r["precision"] == precision)
    assert said in row["error"]
    assert "\n" not in row["error"]
    mine = [line for line in done.stderr.splitlines() if f"/{precision}@" in line]
    assert len(mine) == 1
    assert said in mine[0]
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    assert document["exit_code"] == 4
    assert len(document["failures"]) == 4


def test_a_failed_run_reads_as_failed_again(broken):
    home, first = broken
    again = run(home / "broken.yaml", home / "run")
    assert again.returncode == 4
    assert again.stderr == first.stderr
    assert json.loads(again.stdout)["steps"]["done"] == 0


def test_a_run_in_which_nothing_can_be_measured_could_not_run(tmp_path):
    spec = tmp_path / "none.yaml"
    spec.write_text(
        "name: none\nmodels: [{name: m, source: ./nowhere, cells: [{precision: FP16}]}]\n"
    )
    done = run(spec, tmp_path / "run")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cell_that_does_not_fit_in_memory_fails_alone(finished, tmp_path, monkeypatch):
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
