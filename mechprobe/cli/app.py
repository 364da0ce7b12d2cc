"""`mechprobe …`: the commands, and what becomes of an error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import mechprobe
from mechprobe.cli import (
    agreement,
    analyze,
    controls,
    doctor,
    export,
    factorial,
    generate,
    judge,
    organisms,
    parts,
    probe,
    report,
    rtsi,
    runs,
    score,
)
from mechprobe.cli.advice import kept_advice, options_of
from mechprobe.cli.terminal import say_error, show_defect
from mechprobe.errors import MechprobeError
from mechprobe.exit_codes import MEANINGS, ExitCode

_CLICK: type[Exception] = next(
    kind
    for kind in typer.BadParameter.__mro__
    if kind.__name__ == "ClickException" and issubclass(kind, Exception)
)
"""Wrong arguments. typer carries its own copy of click since 0.26, so it is found from there."""

app = typer.Typer(
    name="mechprobe",
    help="Did quantization break this model's refusals, and where inside did it break?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mechprobe {mechprobe.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command("demo")(runs.demo)
app.command("run")(runs.run)
app.add_typer(probe.app, name="probe")
app.command("capture")(parts.capture)
app.command("generate")(generate.generate)
app.command("judge")(judge.judge)
app.command("score")(score.score)
app.command("agreement")(agreement.agreement)
app.command("analyze")(analyze.analyze)
app.add_typer(rtsi.app, name="rtsi")
app.command("factorial")(factorial.factorial)
app.command("report")(report.report)
app.command("quantize")(parts.quantize)
app.command("export")(export.export)
app.add_typer(organisms.app, name="organisms")
app.add_typer(controls.app, name="controls")
app.command("doctor")(doctor.doctor)


def _end_help_with(epilog: str, group: typer.Typer) -> None:
    """Let the help of every command say the exit codes."""
    for command in group.registered_commands:
        command.epilog = epilog
    for each in group.registered_groups:
        if each.typer_instance is not None:
            _end_help_with(epilog, each.typer_instance)


_end_help_with(f"Exit codes: {'; '.join(f'{c:d} {text}' for c, text in MEANINGS.items())}.", app)


def run(argv: Sequence[str] | None = None, prefix: Sequence[str] = ()) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process by default.
        prefix: Commands put before them, for the doors that are one command.

    Returns:
        The exit code, one of `mechprobe.exit_codes`.
    """
    arguments = [*prefix, *(sys.argv[1:] if argv is None else argv)]
    try:
        code = app(args=arguments, prog_name="mechprobe", standalone_mode=False)
    except MechprobeError as error:
        for line in error.lines:
            say_error(_advised(line, arguments))
        return error.exit_code
    except _CLICK as error:
        say_usage(error)
        return ExitCode.COULD_NOT_RUN
    except (KeyboardInterrupt, typer.Abort):
        print("mechprobe: interrupted; the same command goes on from here", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader has gone; nothing more can reach it, the interpreter's last flush included
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.DEFECT
    except Exception as error:
        if sys.gettrace() is not None:
            raise
        show_defect(error)
        return ExitCode.DEFECT
    return code if isinstance(code, int) else 0


def _advised(line: str, arguments: Sequence[str], root: typer.Typer = app) -> str:
    """What an error says to who called the command of these arguments."""
    return kept_advice(line, options_of(typer.main.get_command(root), arguments))


def say_usage(error: Exception) -> None:
    """A wrong command line in one line, with where help is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "mechprobe"
    message = getattr(error, "format_message", lambda: str(error))()
    if not message:  # a group that was given no command has shown its help already
        return
    say_error(f"{message.rstrip('.')}; see {command} --help")
