"""Calibration prompts that nobody named: one default for command, run and Python."""

import json
import shutil
from importlib.util import find_spec

import pytest

import mechprobe as mp
from mechprobe.behavior import load_builtin
from mechprobe.cli import main
from mechprobe.experiments import made
from mechprobe.experiments.quantization import default_calibration
from mechprobe.experiments.sources import find_source
from mechprobe.models.source import resolve_source
from mechprobe.organisms import organism_path
from mechprobe.organisms.world import requests

ORGANISM = "organism:llama-s"


def test_an_organisms_calibration_is_harmless_and_named():
    found = default_calibration(ORGANISM)
    labels = {request.text: request.label for request in requests("train")}
    labels |= {request.text: request.label for request in requests("train", 64, 0)}
    assert len(found.texts) == 64 and {labels[text] for text in found.texts} == {"harmless"}
    assert found.name == "organism world, harmless, train, seed 0"
    assert found.digest == default_calibration("organism:x").digest
    assert found.digest != default_calibration("organism:x", 1).digest


def test_any_other_models_is_the_built_in_one():
    found = default_calibration("some/folder")
    held_out = {r.text for r in load_builtin() if r.split != "train" or r.label != "harmless"}
    assert len(found.texts) == 99 and held_out.isdisjoint(found.texts)
    assert found.name == "builtin harmless train"


def test_a_recipe_knows_the_prompts_of_a_folder():
    """Other prompts make other weights: the cache must not mistake one for the other."""
    digest = default_calibration("some/folder").digest
    assert made.recipe("some/folder", "d", "gptq")["calibration"] == digest
    assert "calibration" not in made.recipe("some/folder", "d", "Q4_K_M")
    assert "calibration" not in made.recipe(ORGANISM, "d", "gptq")  # its cache stays good


@pytest.fixture
def in_run(tmp_path, monkeypatch):
    """GPTQ of a copied organism, as `quantize: gptq` in a spec makes it."""
    if find_spec("gptqmodel") is None:
        pytest.skip("needs gptqmodel")
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(resolve_source(ORGANISM).path, tmp_path / "model")
    made_file, there = made.ensure_made(
        made.recipe(str(folder), find_source(str(folder))[1], "gptq")
    )
    assert not there
    return folder, made_file


def record(home):
    return json.loads((home / "mechprobe_quantize.json").read_text())


def test_a_run_quantizes_any_folder(in_run):
    folder, home = in_run
    default = default_calibration(str(folder))
    found = record(home)["calibration"]
    assert [found[key] for key in ("name", "digest", "prompts")] == [
        default.name,
        default.digest,
        99,
    ]


@pytest.mark.verify
def test_the_command_quantizes_as_the_run_does(in_run, tmp_path):
    folder, home = in_run
    assert main(["quantize", str(folder), "--to", "gptq", "--out", str(tmp_path / "out")]) == 0
    assert record(tmp_path / "out") == record(home)
    files = [each / "model.safetensors" for each in (home, tmp_path / "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_python_has_the_default_too(tmp_path, monkeypatch):
    asked, folder = {}, str(organism_path("llama-s"))
    monkeypatch.setattr(
        "mechprobe.experiments.quantization.write_quantized",
        lambda *args, **options: asked.update(options),
    )
    for to in ("awq", "gptq", "GPTQ-INT8"):
        mp.quantize(folder, to, tmp_path / "out", group_size=32)
        assert asked["calibration"] == default_calibration(folder).texts
        assert (asked["calibration_name"], asked["group_size"]) == ("builtin harmless train", 32)
    mp.quantize(folder, "Q4_K_M", tmp_path / "out")
    assert asked["calibration"] is None
    mp.quantize(folder, "gptq", tmp_path / "out", calibration=["a"])
    assert (asked["calibration"], asked["calibration_name"]) == (["a"], None)
