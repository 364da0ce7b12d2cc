"""What the user sees: our own lines. Whatever libraries print goes to a log instead.

Libraries print through C, through loggers and through captured streams, so it is the file
descriptors that are turned aside; our consoles write to copies of the real ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from rich.console import Console

from mechprobe.errors import CheckpointWarning, MechprobeError

_TAIL = 20
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class Screen:
    """The user's terminal while libraries are kept quiet."""

    out: Console
    """Results."""
    err: Console
    """Progress and everything else."""

    @classmethod
    def plain(cls) -> Screen:
        """Consoles on the process's own streams."""
        return cls(
            Console(highlight=False, markup=False),
            Console(stderr=True, highlight=False, markup=False),
        )

    def say_unchecked(self, *sources: Path) -> None:
        """Tell on stderr of run directories whose files nothing could be held against."""
        from mechprobe.experiments.integrity import unchecked

        for note in unchecked(*sources):
            self.err.print(f"mechprobe: {note}", soft_wrap=True)

    def document(self, value: Any) -> None:
        """One JSON document on stdout."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        self.out.file.write(text + "\n")
        self.out.file.flush()


def _copy_of(stream: TextIO, number: int) -> tuple[IO[str], int | None]:
    """A stream of its own to where `stream` goes, and the copied descriptor."""
    try:
        own = stream.fileno()
    except (OSError, io.UnsupportedOperation, ValueError):
        return stream, None
    if own != number:
        return stream, None
    copy = os.dup(number)
    return os.fdopen(copy, "w", encoding=stream.encoding, errors="replace", closefd=False), copy


@contextlib.contextmanager
def quiet() -> Iterator[Screen]:
    """Give our lines the terminal and everything else a log.

    The log is dropped, unless an unexpected error passes: then its end goes to stderr, above the
    traceback.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    sys.stdout.flush()
    sys.stderr.flush()
    out, out_copy = _copy_of(sys.stdout, 1)
    err, err_copy = _copy_of(sys.stderr, 2)
    saved = [(1, os.dup(1)), (2, os.dup(2))]
    handle, name = tempfile.mkstemp(prefix="mechprobe-", suffix=".log")
    log = Path(name)
    streams = sys.stdout, sys.stderr
    try:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(os.dup(handle), "w", encoding="utf-8", errors="replace")
        sys.stderr = sys.stdout
        logging.lastResort = None
        with warnings.catch_warnings():
            screen = Screen(
                Console(file=out, highlight=False, markup=False),
                Console(file=err, highlight=False, markup=False),
            )
            shown: set[str] = set()

            def show(message: Warning | str, *_: Any, **__: Any) -> None:
                if (text := str(message)) not in shown:  # a run loads a checkpoint several times
                    shown.add(text)
                    screen.err.print(f"mechprobe: warning: {text}", soft_wrap=True)

            warnings.simplefilter("ignore")
            warnings.simplefilter("always", CheckpointWarning)
            warnings.showwarning = show
            yield screen
    except (MechprobeError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("typer", "click")):
            sys.stdout.flush()
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
            err.write("".join(f"| {line}\n" for line in tail))
        raise
    finally:
        for stream in (out, err, sys.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
        if sys.stdout is not streams[0]:
            sys.stdout.close()
        sys.stdout, sys.stderr = streams
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
        for copied in (out_copy, err_copy):
            if copied is not None:
                os.close(copied)
        os.close(handle)
        log.unlink(missing_ok=True)


def say_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    line = " ".join(message.split()) or "an error without a message"
    print(f"mechprobe: {line}", file=sys.stderr)


def show_defect(error: BaseException) -> None:
    """An unexpected error: a defect of mechprobe, with its traceback."""
    traceback.print_exception(error, file=sys.stderr)
    print(
        "mechprobe: this is a defect, not your mistake; please report it with the lines above",
        file=sys.stderr,
    )
