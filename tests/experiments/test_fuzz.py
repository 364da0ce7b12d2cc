"""A damaged file is read, or refused in one line: never a traceback, whatever the damage."""

import contextlib
import io
import random
import sys
from pathlib import Path

import pytest

from mechprobe.errors import MechprobeError

sys.path.insert(0, str(Path(__file__).parent))
import subjects
from small import LOST

FILES = 3200
"""Of the long proof: how many damaged files there are at least."""


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """One good file of every kind, and its reader."""
    return subjects.every(tmp_path_factory.mktemp("subjects"), finished[1])


def outcome(subject, number):
    """What became of one damaged file: None where it was read or refused as it should be."""
    content = subject.file.read_bytes()
    damaged = subject.damage(content, random.Random(f"{subject.name} {number}"))
    subject.file.write_bytes(damaged)
    said, heard = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(heard):
            code = subject.read()
    except MechprobeError as error:
        lines = str(error).split("\n")  # every mistake of a spec is one
        whole = len(lines) == 1 or all(x.startswith(f"{subject.file}, line ") for x in lines)
        return None if whole else f"{subject.name} {number}: lines {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{subject.name} {number}: {type(error).__name__}: {error}"
    finally:
        subject.file.write_bytes(content)
    if isinstance(code, int) and code not in (0, 2, LOST, 4):
        return f"{subject.name} {number}: exit code {code}: {heard.getvalue()[-300:]}"
    return None


@pytest.mark.parametrize("cost", [1, pytest.param(2, marks=pytest.mark.verify),
                                  pytest.param(4, marks=pytest.mark.verify)])  # fmt: skip
def test_whole_files_are_read(whole, cost):
    of_cost = [subject for subject in whole if subject.cost == cost]
    assert of_cost
    for subject in {subject.read: subject for subject in of_cost}.values():
        with contextlib.redirect_stdout(io.StringIO()):
            assert subject.read() not in (1, 2), subject.name


def test_some_damaged_files(whole):
    """A few of every kind; the long proof tries thousands."""
    many = {1: 4, 2: 2, 4: 1}
    found = [outcome(one, n) for one in whole for n in range(many.get(one.cost, 0))]
    assert len(found) > 100
    assert not [each for each in found if each]


@pytest.mark.verify
def test_thousands_of_damaged_files(whole):
    shares = [1 / one.cost for one in whole]
    each = [-(-int(FILES * share / sum(shares)) // 1) + 1 for share in shares]
    found = [outcome(one, n) for one, many in zip(whole, each, strict=True) for n in range(many)]
    assert len(found) >= FILES
    assert not [each for each in found if each]
