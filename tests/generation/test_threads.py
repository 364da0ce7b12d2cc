"""The number of threads: what is measured, and when."""

import pytest

from mechprobe.generation.threads import WORTH, ThreadChoice


def asked_of(choice, rates):
    """Let it measure; which numbers it tried."""
    tried = []

    def rate(threads):
        tried.append(threads)
        return rates[threads]

    choice.measure(rate)
    return tried


@pytest.mark.parametrize(
    ("rates", "tried", "chosen"),
    [
        ({2: 200, 1: 110}, [2, 1], 2),  # nothing else runs
        ({2: 40, 1: 70}, [2, 1], 1),  # other programs have the cores
        ({2: 100, 1: 109}, [2, 1], 2),  # as good as the same: chance decides nothing
        ({8: 100, 4: 150, 2: 120}, [8, 4, 2], 4),
        ({8: 100, 4: 90}, [8, 4], 8),
        ({6: 10, 3: 20, 1: 30}, [6, 3, 1], 1),
    ],
)
def test_fewer_are_taken_as_long_as_they_are_faster(rates, tried, chosen):
    choice = ThreadChoice(None, max(rates))
    assert asked_of(choice, rates) == tried
    assert choice.count == chosen


def test_it_is_measured_again_when_the_rate_of_a_batch_moves():
    choice = ThreadChoice(None, 2)
    assert choice.is_due(WORTH)
    assert not choice.is_due(WORTH - 1)  # a few answers are not worth it
    choice.saw(10_000, 1.0)  # before anything was chosen a rate says nothing
    asked_of(choice, {2: 200, 1: 110})
    for seconds in (50, 60, 40):
        choice.saw(10_000, seconds)
        assert not choice.is_due(10_000)
    choice.saw(100, 100)  # as few tokens say nothing
    assert not choice.is_due(10_000)
    choice.saw(10_000, 100)
    assert choice.is_due(10_000)
    asked_of(choice, {2: 20, 1: 70})
    assert (choice.count, choice.is_due(10_000)) == (1, False)
    choice.saw(10_000, 100)
    choice.saw(10_000, 60)  # the other programs are gone
    assert choice.is_due(10_000)


@pytest.mark.parametrize("choice", [ThreadChoice(3, 8), ThreadChoice(None, 1)])
def test_what_was_asked_for_stays(choice):
    before = choice.count
    assert not choice.is_due(10**9)
    for seconds in (1, 100):
        choice.saw(10**6, seconds)
    assert not choice.is_due(10**9)
    assert choice.count == before
