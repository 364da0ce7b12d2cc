"""What long work says of itself where nobody watches a bar."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from mechprobe import progress
from mechprobe.experiments.progress import RunDisplay
from mechprobe.experiments.steps import Result, Step


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def redirected(clock):
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    return progress.Display(console, get_time=clock)


def test_a_line_has_rate_and_time_left(redirected, clock):
    task = redirected.add_task("capturing", total=None)
    clock.now += 75
    assert redirected.line() == "capturing, 0:01:15 so far"
    redirected.report(task, 0, 100)
    clock.now += 60
    redirected.report(task, 30, 100)
    assert redirected.line() == "capturing: 30 of 100, 30/min, 0:02:20 left"
    clock.now += 20
    redirected.report(task, 90, 100)
    clock.now += 10
    assert redirected.line() == "capturing: 90 of 100, 1/s, 0:00:10 left"


def test_what_was_there_before_is_no_part_of_the_rate(redirected, clock):
    task = redirected.add_task("answers", total=None)
    redirected.report(task, 600, 1000)
    clock.now += 120
    assert redirected.line() == "answers: 600 of 1000, 0:02:00 so far"
    redirected.report(task, 620, 1000)
    assert redirected.line() == "answers: 620 of 1000, 10/min, 0:38:00 left"
    redirected.report(task, 0, 8)  # another piece of work under the same name
    clock.now += 60
    redirected.report(task, 2, 8)
    assert redirected.line() == "answers: 2 of 8, 2/min, 0:03:00 left"


def test_a_run_says_how_far_it_is_and_the_running_step(clock):
    console = Console(file=io.StringIO(), force_terminal=False)
    display = RunDisplay(console, "demo", 12, get_time=clock)
    steps = [
        Step(f"s{n}", "m:f", {}, (), cell="cells/m/Q4_K_M@llama.cpp", label="answers")
        for n in range(3)
    ]
    display.finished(steps[0], Result("reused", ""))
    display.started(steps[1])
    display.advanced(steps[1], 0, 50)
    clock.now += 60
    display.advanced(steps[1], 25, 50)
    display.finished(steps[1], Result("done", ""))
    display.started(steps[2])
    assert display.line() == (
        "demo: 2 of 12, 1/min, 0:10:00 left; Q4_K_M@llama.cpp answers, 0:00:00 so far"
    )


def test_lines_come_by_themselves_and_end_with_the_work(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(progress, "SECONDS", 0.001)
    with progress.Bar(Console(file=file, force_terminal=False, width=20), "judging") as bar:
        bar(0, 10)
        while not file.getvalue():
            time.sleep(0.001)
        bar(5, 10)
        while "5 of 10" not in file.getvalue():
            time.sleep(0.001)
    lines = file.getvalue().splitlines()
    assert all(re.match(r"mechprobe: judging.* (so far|left)$", line) for line in lines)


def test_a_terminal_gets_bars_and_short_work_no_line():
    for terminal in (False, True):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=80)
        with progress.Bar(console, "judging {x}") as bar:
            bar(5, 10)
        assert ("5/10" in file.getvalue()) == terminal
        assert "mechprobe:" not in file.getvalue()
