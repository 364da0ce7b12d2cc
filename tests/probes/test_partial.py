"""Selection and patching that were killed: what they had computed is not computed again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mechprobe.models.load import load_checkpoint
from mechprobe.models.quantize import quantize
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import requests
from mechprobe.probes import battery
from mechprobe.probes.folder import ProbeFolder
from mechprobe.probes.partial import PartialResults

ORGANISM = "organism:llama-s"
FILES = ("refusal_direction.json", "safety_neurons.json", "forward_tokens.json")


def setup_of(checkpoint):
    splits = (("fit", "train", 24), ("select", "validation", 8), ("evaluate", "test", 16))
    drawn = {name: requests(split, n, seed=3) for name, split, n in splits}
    prompts = {
        f"{name}/{label}": encode(checkpoint.tokenizer, [r.text for r in rows if r.label == label])
        for name, rows in drawn.items()
        for label in ("harmful", "harmless")
    }
    return battery.Setup(prompts, ("refusal_direction", "safety_neurons"), max_new_tokens=2)


def work(checkpoint, setup, home, told):
    """Select on the baseline, or patch the cell beside it; `told` may end it."""
    baseline, cell = ProbeFolder(home / "baseline"), ProbeFolder(home / "cell")
    if checkpoint.quant.precision == "Q2_K":
        battery.probe_neurons(checkpoint, setup, cell, baseline, told)
    else:
        battery.probe_direction(checkpoint, setup, baseline, None, told)


@pytest.fixture(scope="module")
def organism():
    return load_checkpoint(ORGANISM, kernel="dense")


@pytest.fixture(scope="module")
def checkpoints(organism, tmp_path_factory):
    file = quantize(ORGANISM, "Q2_K", tmp_path_factory.mktemp("gguf") / "coarse.gguf")
    return organism, load_checkpoint(file, kernel="dense")


@pytest.fixture(scope="module")
def setup(checkpoints):
    return setup_of(checkpoints[0])


@pytest.fixture(scope="module")
def homes(checkpoints, setup, tmp_path_factory):
    """What both begin from, and what they come to when nobody disturbs them."""
    start = tmp_path_factory.mktemp("partial") / "start"
    baseline, cell = ProbeFolder(start / "baseline"), ProbeFolder(start / "cell")
    battery.observe_cell(checkpoints[0], setup, baseline, is_baseline=True)
    battery.choose_tokens(checkpoints[0], setup, baseline)
    battery.probe_neurons(checkpoints[0], setup, baseline, None)
    battery.observe_cell(checkpoints[1], setup, cell, is_baseline=False)
    whole = start.with_name("whole")
    shutil.copytree(start, whole)
    for checkpoint in checkpoints:
        work(checkpoint, setup, whole, lambda done, total: None)
    return start, whole


def same_files(a, b):
    for cell in ("baseline", "cell"):
        for name in FILES:
            paths = [home / cell / name for home in (a, b)]
            assert len({path.exists() for path in paths}) == 1
            assert not paths[0].exists() or paths[0].read_bytes() == paths[1].read_bytes()
        assert not (b / cell / "unfinished").exists()


@pytest.mark.verify
@pytest.mark.parametrize("done", [1, 4, 9])
def test_sigkill_changes_nothing(checkpoints, setup, homes, done, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(homes[0], home)
    for checkpoint in checkpoints:
        code = "import sys, test_partial; test_partial.killed(*sys.argv[1:])"
        line = [sys.executable, "-c", code, str(checkpoint.path), str(home), str(done)]
        ended = subprocess.run(line, cwd=Path(__file__).parent, check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert list(home.glob("*/unfinished/*.journal"))
        work(checkpoint, setup, home, lambda done, total: None)
    same_files(homes[1], home)


def killed(source, home, when):
    """Work, and die without a word when so many candidates or sets of neurons are done."""

    def die(done, total):
        if done == int(when):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint = load_checkpoint(source, kernel="dense")
    work(checkpoint, setup_of(load_checkpoint(ORGANISM, kernel="dense")), Path(home), die)


def test_numbers_come_back_to_the_last_bit_and_other_inputs_begin_anew(organism, tmp_path):
    numbers = np.array([0.1, np.nan, -np.inf, 1e-310, -0.0])

    def never():
        raise AssertionError

    def rows(*inputs):
        return PartialResults(tmp_path).open("work", organism, *inputs)

    rows(numbers, [1]).get("a", lambda: numbers)
    with (tmp_path / "work.journal").open("a") as file:
        file.write('[{"name": "b", "tok')  # a kill left half a line
    again = rows(numbers, [1])
    assert again.get("a", never).tobytes() == numbers.tobytes()
    again.get("b", lambda: numbers)
    assert rows(numbers, [1]).get("b", never).tobytes() == numbers.tobytes()
    with pytest.raises(AssertionError):
        rows(numbers, [2]).get("a", never)
