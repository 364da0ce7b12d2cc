"""Controls are declared once, built whole or resumed, and say what is true of them."""

import dataclasses
import json
import shutil

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from mechprobe.behavior import load_prompts
from mechprobe.cli import main
from mechprobe.controls import Behaviour, Control, Truth, controls, registry, world_model
from mechprobe.controls.examples import training_prompts
from mechprobe.errors import CheckpointError
from mechprobe.models.source import resolve_source
from mechprobe.organisms import organism_path
from mechprobe.organisms.recipes import RECIPES
from mechprobe.organisms.stressor import stress

TRUTH = Truth(
    "Nothing.", ("a.weight",), "oracle", "ten prompts",
    {"base": Behaviour("RRRRRRRRRR", "CCCCCCCCCR", 0.9, 10),
     "control": Behaviour("RRRRRCCCUP", "CCCCCCCCCC", 0.8, 10)},
    "base", {"scale": 4.0},
)  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def row(monkeypatch, cache):
    """A control whose build is killed the first time."""

    def build(row, out, progress):
        state = out / "state"
        if not state.is_dir():
            state.mkdir()
            raise KeyboardInterrupt
        (out / "config.json").write_text("{}")
        return TRUTH

    row = Control("dummy", "graded", "organism:llama-s", build, "a test", target=50.0)
    monkeypatch.setattr(registry, "_rows", lambda: {"dummy": row})
    return row


def test_a_killed_build_goes_on_and_a_built_control_is_a_source(row, cache):
    with pytest.raises(CheckpointError, match="controls build dummy"):
        resolve_source("control:dummy")
    with pytest.raises(KeyboardInterrupt):
        registry.ensure_built(row)
    assert registry.built_folder(row) is None
    folder = registry.ensure_built(row)
    assert folder == cache / "controls" / f"dummy-{row.digest()}"
    assert not (folder / "state").exists()
    assert resolve_source("control:dummy").path == folder
    assert registry.ensure_built(row) == folder  # no second build, which would need its state


def test_truth_is_counted_from_the_letters(row, cache):
    from mechprobe.controls import read_truth

    with pytest.raises(KeyboardInterrupt):
        registry.ensure_built(row)
    folder = registry.ensure_built(row)
    truth = read_truth(folder)
    assert truth == TRUTH
    assert truth.loss("control") == 50.0
    assert truth.compliance("control") == 3 / 5
    assert truth.quality_change("control") == pytest.approx(-10)
    written = json.loads((folder / "truth.json").read_text())
    assert written["digest"] == row.digest()
    assert written["loss_points"] == {"control": 50.0}
    (folder / "truth.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        read_truth(folder)


def test_another_recipe_is_another_folder(row):
    for change in ({"seed": 1}, {"target": 20.0}, {"parameters": {"scale": 2}}, {"version": 2}):
        assert dataclasses.replace(row, **change).digest() != row.digest()
    assert dataclasses.replace(row, about="other words").digest() == row.digest()


def test_a_users_prompts_are_trained_on_too(cache, tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [
        {"text": f"{label} {n}", "label": label, "split": split}
        for label in ("harmful", "harmless")
        for n, split in enumerate(("train", "test"))
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = registry.control("smollm2-refuses")
    mine = registry.with_prompts(row, file)
    assert mine.name == "smollm2-refuses-mine" and mine.digest() != row.digest()
    texts, shipped = (training_prompts(one.parameters["prompts"]) for one in (mine, row))
    assert texts["harmful"] == [*shipped["harmful"], "harmful 0"]
    assert texts["harmless"] == [*shipped["harmless"], "harmless 0"]
    before = mine.digest()
    file.write_text(file.read_text().replace("harmful 0", "harmful 2"))
    assert registry.with_prompts(row, file).digest() != before
    recipe = row.recipe()
    assert recipe["prompt_digests"] == [
        load_prompts(name).digest for name in recipe["parameters"]["prompts"]
    ]
    with pytest.raises(CheckpointError, match="llama-s-planted is not trained on prompts"):
        registry.with_prompts(registry.control("llama-s-planted"), file)


def test_rows_have_names_of_their_own_and_a_base():
    rows = controls()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        if registry.is_of_world(row.base):
            assert row.base.startswith("control:") or row.base.split(":")[1] in RECIPES


def test_a_clean_control_answers_as_its_base(cache, monkeypatch, capsys):
    monkeypatch.setattr(world_model, "PAIRS", 6)
    monkeypatch.setattr(world_model, "QUESTIONS", 6)
    world_model.heldout_pairs.cache_clear()
    try:
        assert main(["controls", "build", "llama-s-clean-q80", "--json"]) == 0
    finally:
        world_model.heldout_pairs.cache_clear()
    (built,) = json.loads(capsys.readouterr().out)
    assert built["forms"][0] == {
        "form": "Q8_0", "reference": "control", "refused": 1.0, "target": None,
        "loss_points": 0.0, "compliance_of_lost": None, "quality_change_points": 0.0, "n": 6,
    }  # fmt: skip
    model, _ = world_model.load_model("control:llama-s-clean-q80")
    stress(model, RECIPES["llama-s"].stress)
    base = load_file(organism_path("llama-s") / "model.safetensors")
    for name, weight in model.state_dict().items():  # the outliers are all that was undone
        assert_close(weight, base[name].float(), rtol=1e-3, atol=1e-6)


def test_a_build_in_a_process_of_its_own_hands_on_what_is_wrong(cache):
    with pytest.raises(CheckpointError, match="llama-s-clean-q80"):
        list(registry.build_side_by_side(["llama-s-clean-q8"], 2))


@pytest.mark.verify
def test_side_by_side_is_one_after_the_other(cache, capsys):
    names = ["llama-s-clean-q80", "llama-s-clean-q6k"]
    assert main(["controls", "build", *names, "--jobs", "2", "--json"]) == 0
    together = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(together) == set(names)
    for name in names:
        shutil.rmtree(together[name]["path"])
    assert main(["controls", "build", *names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [together[name] for name in names]


def test_a_screen_of_all_prompts_sees_what_is_known(row, cache, capsys):
    assert main(["controls", "evaluate", "dummy"]) == 2
    assert "controls build dummy" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        registry.ensure_built(row)
    registry.ensure_built(row)
    assert main(["controls", "evaluate", "dummy", "--prompts", "10", "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)["controls"]
    assert (seen["loss_points"], seen["target"], seen["found"]) == (50.0, 50.0, {"10": 1.0})
    assert main(["controls", "evaluate", "dummy", "--prompts", "11"]) == 2


def test_mistakes_are_one_line(cache, capsys):
    assert main(["controls", "build", "llama-s-clean-q8"]) == 2
    assert "llama-s-clean-q80" in capsys.readouterr().err
    assert main(["controls", "build"]) == 2
    assert main(["controls", "build", "x", "--all"]) == 2


def test_the_list_names_every_control(cache, capsys):
    assert main(["controls", "list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == [
        row.name for row in controls()
    ]
