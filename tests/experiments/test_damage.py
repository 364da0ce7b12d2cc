"""A file of a finished run that was damaged is made again, though every result is intact."""

from contextlib import nullcontext

import pytest

from mechprobe.exit_codes import ExitCode
from mechprobe.experiments.progress import NoDisplay
from mechprobe.experiments.running import run_spec
from mechprobe.experiments.spec_file import parse_spec

SPEC = """
name: damage
models: [{name: m, source: "organism:llama-s", cells: [{precision: FP16}]}]
prompts: {source: organism}
tasks: {refusal: null}
probes: {run: [entropy, safety_neurons], fit: 3, select: 4, evaluate: 3, causal: false,
         max_new_tokens: 2, kernel_gap: null}
"""
CELL = "cells/m/FP16@transformers"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("damage") / "run"
    return lambda: run_spec(parse_spec(SPEC, "d"), out, lambda *_: nullcontext(NoDisplay()))


def ran(finished):
    return {name for name, result in finished.outcome.results.items() if result.status == "done"}


def test_a_damaged_shard_is_noticed_and_made_again(run):
    first = run()
    assert first.whole
    assert first.exit_code == ExitCode.NOT_MEASURED  # too few prompts for refusal tokens
    assert ran(run()) == set()
    shard = next((first.run / f"{CELL}/probes/observation/evaluate/harmful").glob("*.h5"))
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert ran(run()) == {f"{CELL}/observe"}  # what was measured from it was whole
    assert shard.read_bytes() == whole
    assert ran(run()) == set()


def test_lost_and_damaged_weights_are_written_again(run):
    first = run()
    weights = sorted((first.run / f"{CELL}/probes/weights").glob("*.safetensors"))
    whole = [path.read_bytes() for path in weights]
    weights[0].unlink()
    weights[1].write_bytes(whole[1][:-1] + b"\x01")
    assert ran(run()) == {f"{CELL}/safety-neurons"}
    assert [path.read_bytes() for path in weights] == whole
