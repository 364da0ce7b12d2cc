import ctypes
import logging
import os
import subprocess
import sys
import warnings

import pytest

from mechprobe.cli.terminal import quiet
from mechprobe.errors import CheckpointError, CheckpointWarning, warn_of_checkpoint


def _chatter():
    print("python out")
    print("python err", file=sys.stderr)
    os.write(1, b"descriptor out\n")
    os.write(2, b"descriptor err\n")
    ctypes.CDLL(None).puts(b"C out")
    ctypes.CDLL(None).fflush(None)
    logging.getLogger("library").warning("logger")
    warnings.warn("warning", stacklevel=1)
    subprocess.run([sys.executable, "-c", "print('child')"], check=True)


def test_only_our_lines_reach_the_terminal(capfd):
    with quiet() as screen:
        _chatter()
        screen.out.print("result")
        screen.err.print("progress")
        screen.document({"x": 1})
    assert capfd.readouterr() == ('result\n{\n  "x": 1\n}\n', "progress\n")
    print("after")
    os.write(1, b"after\n")
    assert capfd.readouterr().out.count("after") == 2


def test_a_users_error_drops_the_log(capfd):
    with pytest.raises(CheckpointError), quiet():
        _chatter()
        raise CheckpointError("one line")
    assert capfd.readouterr() == ("", "")


def test_an_unexpected_error_brings_the_logs_end(capfd):
    with pytest.raises(RuntimeError), quiet():
        _chatter()
        raise RuntimeError
    out, err = capfd.readouterr()
    assert out == ""
    assert {"| python out", "| descriptor err", "| child"} <= set(err.splitlines())


def test_square_brackets_are_text(capfd):
    with quiet() as screen:
        screen.out.print("pip install 'mechprobe[quant]'")
    assert capfd.readouterr().out == "pip install 'mechprobe[quant]'\n"


def test_no_descriptor_leaks(capfd):
    def opened():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = opened()
    for _ in range(3):
        with quiet():
            print("x")
    assert opened() == before


def test_a_warning_of_a_checkpoint_is_shown_once(capfd):
    with quiet():
        for line in ("stale index", "stale index", "fall-back"):
            warn_of_checkpoint("model", [line])
    assert capfd.readouterr().err.splitlines() == [
        "mechprobe: warning: model: stale index",
        "mechprobe: warning: model: fall-back",
    ]
    with pytest.warns(CheckpointWarning, match="model: again"):
        warn_of_checkpoint("model", ["again"])
