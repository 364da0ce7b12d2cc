"""A small real matrix of the shipped organism, and how to run and compare one."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

SPEC = """
name: small
models:
  - name: llama-s
    family: organism
    source: organism:llama-s
    cells:
      - {precision: FP16}
      - {precision: Q4_K_M, quantize: Q4_K_M}
      - {precision: Q2_K, quantize: Q2_K}
prompts: {source: organism}
tasks:
  refusal: {prompts: 40, max_new_tokens: 12}
  multiple_choice: {questions: 24}
  more:
    - {task: bbq, source: organism, items: 24}
    - {task: reference, source: organism, items: 12, instrument: rouge_l, max_new_tokens: 20}
probes:
  run: [entropy, refusal_direction, calibration, safety_neurons]
  fit: 12
  select: 8
  evaluate: 6
  max_new_tokens: 6
  kernel_gap: {prompts: 24}
"""
LOST = 3
"""What the run ends with: Q2_K loses refusals."""
CELLS = ("FP16@transformers", "Q4_K_M@llama.cpp", "Q2_K@llama.cpp")


def command(spec, out):
    return [sys.executable, "-m", "mechprobe", "run", str(spec), "--out", str(out), "--json"]


def run(spec, out, *options, json=True, **environment):
    return mechprobe(*command(spec, out)[3:][: None if json else -1], *options, **environment)


def mechprobe(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "mechprobe", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    done.stderr = without_progress(done.stderr)
    return done


def without_progress(stderr):
    """What a command said but for how far it was, which is said on a slow machine alone."""
    return re.sub(r"^mechprobe: .* (?:left|so far)\n", "", stderr, flags=re.MULTILINE)


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def markers(out):
    return len([p for p in (out / ".steps").rglob("*.json") if not p.name.endswith("error.json")])


def spoil(source, out):
    """A copy that every header check passes and no engine loads: its last norm has another name."""
    whole = Path(source).read_bytes()
    for name in (b"output_norm.weight", b"model.norm.weight"):
        whole = whole.replace(name, name.replace(b"norm", b"nrom"))
    Path(out).write_bytes(whole)
    return out


def _same(a, b, where):
    """Text and counts exactly, floats to 1e-5."""
    if isinstance(a, float) and isinstance(b, float):
        assert math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            _same(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def _number(text):
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def _content(path):
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return lines(path)
    if path.suffix == ".csv":
        return [{k: _number(v) for k, v in row.items()} for row in rows(path)]
    return None


def same_results(a, b):
    """Assert that two run directories hold the same results; returns how many files were read."""

    def files(folder):
        patterns = ("*.csv", "analysis.json", "prompts/*", "cells/**/*")
        found = [path for pattern in patterns for path in folder.glob(pattern)]
        return sorted(str(p.relative_to(folder)) for p in found if p.is_file())

    assert files(a) == files(b)
    compared = 0
    for name in files(a):
        content = _content(a / name)
        if content is not None:
            _same(content, _content(b / name), name)
            compared += 1
    leftovers = [p.name for p in b.rglob("*") if p.name.endswith((".tmp", ".journal"))]
    assert leftovers == []
    return compared
