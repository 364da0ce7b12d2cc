"""One rule of exit codes: the same in the table of the docs and in the help of every command."""

import re
from pathlib import Path

import pytest
import typer

from mechprobe.cli.app import app
from mechprobe.errors import MechprobeError
from mechprobe.exit_codes import MEANINGS, ExitCode

DOCS = Path(__file__).parents[2] / "docs" / "exit_codes.md"


def _commands(group, path=()):
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_the_docs_hold_the_table():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    assert {int(code): text for code, text in rows} == MEANINGS
    assert MechprobeError.exit_code == ExitCode.COULD_NOT_RUN


def test_the_docs_name_commands_that_are_there():
    known = {" ".join(path[:n]) for path in COMMANDS for n in (1, 2)}
    named = re.findall(r"`([a-z]+(?: [a-z-]+)*)`", DOCS.read_text())
    assert {one for one in named if one.split()[0] in known} <= known


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_ends_with_it(path):
    assert all(f"{code:d} {text}" in COMMANDS[path].epilog for code, text in MEANINGS.items())


def test_the_help_shows_it(main):
    text = " ".join(main("score", "--help").out.split())
    assert "3 a checkpoint lost refusals against its baseline" in text
    assert "name the same items, with the --limit that they were generated with" in text
