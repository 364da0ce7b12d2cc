"""A message names an option only to those whose command has it."""

import ast
import re
from pathlib import Path

import pytest
import typer

import mechprobe as package
from mechprobe.cli.advice import BRACKETED, kept_advice, options_of
from mechprobe.cli.app import app

ROOT = Path(package.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OTHERS = {"--help", "--max-logprobs", "--merge", "--outtype", "--outfile", "--version"}
OTHERS |= {"--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", "--retries"}
OTHERS |= {"--dest"}
"""Options of llama.cpp, vLLM and pip, in a command line that a message shows or that is run."""
SHARED = ("behavior", "generation", "models", "activations", "session.py", "holding.py")
"""Rooms that every command goes through."""


def _commands(command, path=()):
    inner = getattr(command, "commands", {})
    for name, one in inner.items():
        yield from _commands(one, (*path, name))
    if not inner:
        yield path


COMMANDS = list(_commands(typer.main.get_command(app)))


def _messages(path):
    """Texts of a module that are no docstrings; the parts of one f-string are one text."""
    tree = ast.parse(path.read_text())
    skipped = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(str(getattr(part, "value", "…")) for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in skipped:
            yield str(node.value)


def _options(command):
    return options_of(typer.main.get_command(app), command)


def test_every_option_that_a_message_names_is_one():
    known = OTHERS.union(*map(_options, [*COMMANDS, ()]))
    for path in sorted(ROOT.rglob("*.py")):
        if "report" in path.parts:  # CSS has names like these
            continue
        for text in _messages(path):
            assert set(OPTION.findall(text)) <= known, f"{path}: {text}"


def test_rooms_that_all_commands_share_name_options_in_brackets_alone():
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] in SHARED:
            for text in _messages(path):
                left = set(OPTION.findall(BRACKETED.sub("", text))) - OTHERS
                assert not left or "mechprobe " in text, f"{path}: {text}"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_brackets_go_where_a_command_lacks_the_option(command):
    options = _options(command)
    said = kept_advice(
        "no usable tokenizer; pass another (--tokenizer FOLDER_OR_ID); or not", options
    )
    assert ("--tokenizer" in said) == ("--tokenizer" in options)
    assert said.startswith("no usable tokenizer; pass another") and said.endswith("; or not")


def test_quantize_does_not_advise_what_it_lacks(main, tmp_path):
    from mechprobe.organisms import organism_path

    folder = tmp_path / "m"
    folder.mkdir()
    for file in organism_path("llama-s").iterdir():
        if not file.name.startswith("token"):
            (folder / file.name).symlink_to(file)
    done = main("quantize", folder, "--to", "F16", "--out", tmp_path / "x.gguf")
    assert done.code == 2
    assert "--tokenizer" not in done.err
    done = main("capture", "--model", folder, "--prompt", "a", "--out", tmp_path / "c")
    assert (done.code, "--tokenizer" in done.err) == (2, True)
