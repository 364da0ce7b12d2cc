import json
import signal
import subprocess
import sys

import pytest

from mechprobe.cli import app
from mechprobe.errors import CheckpointError
from mechprobe.exit_codes import ExitCode

COMMANDS = [
    "demo",
    "run",
    "probe",
    "capture",
    "generate",
    "quantize",
    "export",
    "organisms",
    "doctor",
]

ORGANISM = "organism:llama-s"


def test_help_lists_the_commands_without_torch(tmp_path):
    code = (
        "import sys; from mechprobe.cli import main; code = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'pandas', 'gptqmodel', 'xllamacpp', 'scipy'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    for command in COMMANDS:
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "command", [["demo"], ["probe", "refusal-direction"], ["organisms", "train"]]
)
def test_every_command_has_help(main, command):
    done = main(*command, "--help")
    assert done.code == 0
    assert "Usage: mechprobe" in done.out


def test_version(main):
    assert main("--version").out.startswith("mechprobe 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "No such command 'nope'; see mechprobe --help"),
        (["demo", "--nope"], "No such option: --nope; see mechprobe demo --help"),
        (["run"], "name a spec: a YAML file, or one that `mechprobe run --list` shows"),
        (["run", "none.yaml"], "none.yaml: no such file, and no shipped spec is called so"),
        (["generate", "-m", "none.gguf", "--prompt", "x"], "none.gguf: no such file or folder"),
        (["generate", "-m", ORGANISM, "--prompts", "p.jsonl"], "p.jsonl: cannot be read"),
        (
            ["generate", "-m", ORGANISM, "--prompt", "a", "--prompts", "b"],
            "--prompt and --prompts: give one of them",
        ),
        (
            ["capture", "-m", ORGANISM, "--prompt", "a", "--prompts", "b"],
            "--prompt and --prompts: give one of them",
        ),
        (["generate", "-m", "x", "--prompt", "a", "--kernel", "odd"], "use dense or native"),
        (["capture", "-m", "x", "--positions", "first"], "--positions first: use last, all, or"),
        (["capture", "-m", "x", "--dtype", "int8"], "--dtype int8: use float32 or float16"),
        (["quantize", "none", "--to", "Q8_0", "--out", "q.gguf"], "none: no such file or folder"),
        (["organisms", "train", "nope"], "no organism is called 'nope'"),
        (["probe", "refusal-direction", "-m", "none"], "none: no such file or folder"),
        (["probe", "refusal-direction", "-m", "x", "--template", "html"], "use chat or raw"),
        (
            ["probe", "refusal-direction", "-m", "organism:llama-s", "--instrument", "eye"],
            "instrument 'eye'",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(main, arguments, said):
    done = main(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert said in done.err
    assert done.err.startswith("mechprobe: ")
    assert done.err.count("\n") == 1


def test_an_error_of_several_lines_is_shown_as_one(main, monkeypatch):
    def fail(**options):
        raise CheckpointError("first\n  second")

    monkeypatch.setattr(app, "app", fail)
    done = main()
    assert (done.code, done.err) == (2, "mechprobe: first second\n")


def test_a_keyboard_interrupt_is_one_line_and_130(main, monkeypatch):
    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "app", interrupt)
    done = main()
    assert done.code == 130
    assert done.err == "mechprobe: interrupted; the same command goes on from here\n"


def test_a_real_interrupt_ends_with_130(tmp_path):
    code = (
        "import os, signal, sys, threading\n"
        "from mechprobe.cli import app, main\n"
        "from mechprobe.cli.terminal import quiet\n"
        "def wait(**options):\n"
        # what runs in the background ignores it from the start
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    with quiet():\n"
        "        print('swallowed'); os.write(1, b'swallowed')\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        threading.Event().wait(60)\n"
        "app.app = wait\n"
        "sys.exit(main([]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.INTERRUPTED == 128 + signal.SIGINT
    assert done.stdout == ""
    assert done.stderr == "mechprobe: interrupted; the same command goes on from here\n"


def test_a_defect_shows_its_traceback_and_what_the_library_said():
    code = (
        "import os, sys\n"
        "from mechprobe.cli import app, main\n"
        "from mechprobe.cli.terminal import quiet\n"
        "def fail(**options):\n"
        "    with quiet():\n"
        "        os.write(2, b'llama: unknown tensor\\n')\n"
        "        raise RuntimeError('boom')\n"
        "app.app = fail\n"
        "sys.exit(main([]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "| llama: unknown tensor" in done.stderr
    assert "RuntimeError: boom" in done.stderr
    assert "Traceback" in done.stderr


def test_doctor_says_what_is_here_and_what_is_not(main):
    found = json.loads(main("doctor", "--json").out)
    assert found["packages"]["torch"]
    assert found["cores"] >= 1
    assert set(found["extras"]) == {"quant", "judges", "interp", "autoawq"}
    missing = [said for said in found["extras"].values() if said.startswith("missing")]
    assert all("; run: pip install 'mechprobe[" in said for said in missing)
    shown = main("doctor")
    assert shown.code == 0
    assert f"cores            {found['cores']}" in shown.out
    assert shown.out.count("pip install 'mechprobe[") == len(missing)


def test_organisms_list(main):
    found = json.loads(main("organisms", "list", "--json").out)
    assert "llama-s" in {one["name"] for one in found}
    assert "llama-s" in main("organisms", "list").out


def test_both_doors_open(mechprobe):
    assert "Usage: mechprobe" in mechprobe("--help").out
    done = mechprobe("--help", module="mechprobe.refusal_direction")
    assert "--baseline" in done.out
    done = mechprobe("--model", "none", module="mechprobe.refusal_direction")
    assert (done.code, done.err.count("\n")) == (2, 1)
