"""Where organisms are found, and what is said when one is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mechprobe import organisms
from mechprobe.errors import CheckpointError
from mechprobe.organisms.recipes import RECIPES


def test_a_missing_organism_says_how_to_train_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"run: mechprobe organisms train qwen2-s$"):
        organisms.organism_path("qwen2-s")
    names = "llama-m, llama-s, mistral-s, phi-s, qwen2-m, qwen2-s"
    with pytest.raises(CheckpointError, match=f"there are: {names}"):
        organisms.organism_path("nobody")


def test_a_trained_one_is_found_and_an_unfinished_one_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path))
    folder = tmp_path / "organisms" / "phi-s"
    folder.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="not trained"):
        organisms.organism_path("phi-s")
    (folder / "card.json").write_text("{}")
    assert organisms.organism_path("phi-s") == folder == organisms.cache_folder("phi-s")
    row = next(row for row in organisms.list_organisms() if row.name == "phi-s")
    assert (row.path, row.shipped) == (folder, False)


def test_the_list_names_all_and_ships_the_default():
    rows = {row.name: row for row in organisms.list_organisms()}
    assert set(rows) == set(RECIPES)
    assert {row.recipe.architecture for row in rows.values()} == {
        "llama",
        "qwen2",
        "phi",
        "mistral",
    }
    assert rows[organisms.DEFAULT].shipped
    assert rows[organisms.DEFAULT].path == organisms.organism_path()


def test_every_input_width_is_a_multiple_of_256():
    for recipe in RECIPES.values():
        assert recipe.hidden % 256 == recipe.intermediate % 256 == 0
        assert recipe.hidden % recipe.heads == recipe.heads % recipe.kv_heads == 0


def test_importing_the_room_loads_no_torch():
    code = "import sys, mechprobe.organisms.world; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
