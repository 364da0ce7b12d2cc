"""AWQ and GPTQ through `dense` and `native`: every probe agrees within the gap of the kernels."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mechprobe.behavior.multiple_choice import as_question
from mechprobe.experiments.probe_setup import ProbeRequest
from mechprobe.experiments.probing import run_probes
from mechprobe.experiments.quantization import quantize
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import questions, requests
from mechprobe.probes import battery
from mechprobe.probes.fitting import twin_rows
from mechprobe.probes.folder import ProbeFolder
from mechprobe.probes.running import run

sys.path.insert(0, str(Path(__file__).parent))
from kernel_bounds import (
    HARMFUL,
    HARMLESS,
    ROUNDING,
    Gap,
    calibration_rows,
    direction_rows,
    entropy_rows,
    neuron_rows,
)

pytestmark = pytest.mark.verify
COUNTS = {"fit": ("train", 24), "select": ("validation", 12), "evaluate": ("test", 16)}
LABELS = {"awq": "AWQ-INT4", "gptq": "GPTQ-INT4"}
PROBES = {
    "entropy": lambda cells: entropy_rows(*cells.seen, cells.results),
    "calibration": lambda cells: calibration_rows(*cells.seen, cells.results, cells.folders),
    "refusal_direction": lambda cells: direction_rows(*cells.seen, cells.results),
    "safety_neurons": lambda cells: neuron_rows(*cells.seen, cells.results),
}


@dataclass
class Cells:
    """One checkpoint through both kernels."""

    packed: Path
    folders: dict
    results: dict

    @property
    def seen(self):
        return [self.folders[kernel].observation for kernel in ("dense", "native")]


@pytest.fixture(scope="module")
def base():
    return load_checkpoint("organism:llama-s", kernel="dense")


@pytest.fixture(scope="module")
def setup(base):
    rows = {
        f"{name}/{label}": [row for row in requests(split, n, seed=3) if row.label == label]
        for name, (split, n) in COUNTS.items()
        for label in ("harmful", "harmless")
    }
    asked = [as_question(item, id=str(i)) for i, item in enumerate(questions(24, 1))]
    return battery.Setup(
        {name: encode(base.tokenizer, [row.text for row in found]) for name, found in rows.items()},
        twins=twin_rows(rows["fit/harmful"], rows["fit/harmless"]),
        questions=(encode(base.tokenizer, [each.prompt for each in asked]), asked),
        max_new_tokens=6,
    )


@pytest.fixture(scope="module")
def baseline(base, setup, tmp_path_factory):
    folder = ProbeFolder(tmp_path_factory.mktemp("baseline"))
    run(base, setup, folder)
    return folder


@pytest.fixture(scope="module")
def both(setup, baseline, tmp_path_factory):
    """AWQ and GPTQ, each through both kernels."""
    found = {}
    for to, label in LABELS.items():
        home = tmp_path_factory.mktemp(to)
        packed = quantize("organism:llama-s", to, home / "packed")
        folders = {kernel: ProbeFolder(home / kernel) for kernel in ("dense", "native")}
        results = {
            kernel: run(
                load_checkpoint(packed, kernel=kernel, expect=label), setup, folder, baseline
            )
            for kernel, folder in folders.items()
        }
        found[to] = Cells(packed, folders, results)
    return found


@pytest.mark.parametrize("to", LABELS)
@pytest.mark.parametrize("probe", PROBES)
def test_the_kernels_differ_by_no_more_than_their_gap_allows(both, to, probe):
    rows = PROBES[probe](both[to])
    assert len(rows) >= 7
    assert [row for row in rows if row.difference > row.bound + ROUNDING] == []
    assert all(np.isfinite(row.bound) for row in rows)


@pytest.mark.parametrize("to", LABELS)
def test_the_gap_itself_is_small_and_the_kernels_are_two(both, to):
    for name in (HARMFUL, HARMLESS):
        gap = Gap(*both[to].seen, name)
        side = getattr(both[to].results["dense"]["entropy"], name.rpartition("/")[2])
        assert 0 < gap.reported["mean_kl"] < 0.1 * side.kl.value  # of what quantization did
        # Pinsker, in the numbers themselves
        p, q = (np.exp(x) for x in (_logp(cell, name) for cell in both[to].seen))
        assert (0.5 * np.abs(p - q).sum(axis=1) <= gap.tv + ROUNDING).all()
    kernels = [both[to].results[k]["entropy"].cell.kernel for k in ("dense", "native")]
    assert kernels == ["dense", "native"]


def _logp(cell, name):
    logits = cell.logits(name)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


@pytest.mark.parametrize("probe", PROBES)
def test_another_checkpoint_is_outside_the_gap_of_these_kernels(both, probe):
    """The bounds are no licence: GPTQ's numbers do not pass for AWQ's."""
    awq, gptq = both["awq"], both["gptq"]
    allowed = {row.name: row.bound for row in PROBES[probe](awq)}
    mixed = Cells(
        awq.packed,
        {"dense": awq.folders["dense"], "native": gptq.folders["native"]},
        {"dense": awq.results["dense"], "native": gptq.results["native"]},
    )
    rows = PROBES[probe](mixed)
    shared = [row for row in rows if row.name in allowed]
    assert sum(row.difference > allowed[row.name] for row in shared) >= len(rows) / 2


def test_the_command_probes_packed_weights_as_they_run(both, tmp_path):
    asked = ProbeRequest(
        model=str(both["gptq"].packed),
        baseline="organism:llama-s",
        out=tmp_path / "out",
        kernel="native",
        fit=8,
        select=12,
        evaluate=8,
        n_questions=8,
        max_new_tokens=4,
    )
    found = run_probes(asked)
    assert set(found) == set(battery.PROBES)
    cell = found["safety_neurons"].cell
    assert (cell.kernel, cell.precision) == ("native", "GPTQ-INT4")
    assert found["entropy"].baseline.kernel == "native"
    assert found["safety_neurons"].overall("residual").weight > 0
    assert found["safety_neurons"].patching
    assert found["refusal_direction"].causal is not None
