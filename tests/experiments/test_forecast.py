"""What `--plan` says, against what a run then did."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from small import SPEC, markers

from mechprobe.experiments import timings
from mechprobe.experiments.acquire import unmade_sources
from mechprobe.experiments.forecast import forecast, forecast_lines
from mechprobe.experiments.plan import make_plan
from mechprobe.experiments.rundir import RunDirectory, write_json
from mechprobe.experiments.sources import find_source, weight_bytes
from mechprobe.experiments.spec_file import load_spec, parse_spec
from mechprobe.experiments.steps import Outcome, Result


def test_a_finished_run_has_nothing_left(finished):
    spec, out, _ = finished
    found = forecast(load_spec(spec), out)
    assert (found.cells, found.references) == (3, 1)
    assert found.steps == found.steps_done == markers(out)
    assert forecast_lines(found)[-1] == "time       nothing is left to do"
    assert (found.downloads, found.train, found.quantize) == ([], [], [])


def test_a_run_elsewhere_is_estimated_from_the_times_of_this_one(finished, tmp_path):
    spec, out, _ = finished
    found = forecast(load_spec(spec), tmp_path / "new")
    assert (found.steps_done, found.steps_unknown) == (0, 0)
    assert found.steps_estimated == found.steps == markers(out)
    files = [p for p in (out / ".steps").rglob("*.json") if not p.name.endswith("error.json")]
    took = sum(json.loads(path.read_text())["seconds"] for path in files)
    assert found.seconds == pytest.approx(took, rel=0.5)
    assert not (tmp_path / "new").exists()
    source, _ = find_source("organism:llama-s")  # stored in 16 bits, probed in 32
    assert found.memory_peak_bytes == 2 * weight_bytes(source)


def test_nothing_is_claimed_to_be_known_that_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    found = forecast(parse_spec(SPEC, "s"), tmp_path / "run")
    assert (found.steps_estimated, found.seconds) == (0, 0)
    assert "unknown" in forecast_lines(found)[-1]
    assert found.quantize == ["llama-s/Q4_K_M", "llama-s/Q2_K", "llama-s/F16"]
    assert found.disk_run_bytes is None


def test_times_are_scaled_by_size_and_not_beyond_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    plan = make_plan(parse_spec(SPEC, "s"))
    step = next(s for s in plan.steps if s.name.endswith("FP16@transformers/generate-refusal"))

    run = RunDirectory(tmp_path / "run")
    write_json(run.marker(step.name), {"seconds": 4.0})
    timings.remember([step], Outcome({step.name: Result("done", "k")}), run, plan.counts)
    (tmp_path / "cache" / "timings.jsonl").open("a").write("garbled\n{}\n")
    times = timings.measured_times()
    assert times.estimate(step, plan.counts) == 4.0
    assert times.estimate(replace(step, memory=2 * step.memory), plan.counts) == 8.0
    assert times.estimate(replace(step, memory=9 * step.memory), plan.counts) is None
    assert times.estimate(step, {**plan.counts, "refusal": 41}) is None
    other = replace(step, params={**step.params, "max_new_tokens": 13})
    assert times.estimate(other, plan.counts) is None


HUB = """
name: h
models:
  - name: m
    source: some/model
    revision: 0123456789012345678901234567890123456789
    cells:
      - {precision: FP16}
      - {precision: Q8_0, source: hf:some/files/model-Q8_0.gguf}
tasks: {refusal: {prompts: 4}}
"""


def test_a_hub_out_of_reach_leaves_sizes_unknown(tmp_path):
    found = forecast(parse_spec(HUB, "h"), tmp_path / "run")
    assert [(one.source, one.bytes) for one in found.downloads] == [
        ("some/model", None),
        ("hf:some/files/model-Q8_0.gguf", None),
    ]
    assert found.disk_download_bytes is None
    assert "size unknown" in "\n".join(forecast_lines(found))


def test_untrained_organisms_are_named_and_not_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    spec = load_spec("demo-51")
    waiting = ["llama-m", "qwen2-s", "qwen2-m", "phi-s", "mistral-s"]
    planted = "control:qwen2-s-planted"
    assert unmade_sources(spec) == [*(f"organism:{name}" for name in waiting), planted]
    found = forecast(spec, tmp_path / "run")
    assert found.train == sorted(waiting)
    assert found.build == ["qwen2-s-planted"]
    assert found.cells == 51 + 8
    assert not (tmp_path / "cache" / "organisms").exists()


def test_the_command_prints_one_document_and_runs_nothing(tmp_path):
    line = [sys.executable, "-m", "mechprobe", "run", "demo", "--plan", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["cells"], found["run"], done.stderr) == (12, "runs/demo", "")
    assert list(tmp_path.iterdir()) == []
