"""Checkpoints made for a run and kept in the cache: whole, or made again."""

import json
import os

import pytest

from mechprobe.experiments import made
from mechprobe.experiments.sources import find_source


@pytest.fixture
def how(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    _, digest = find_source("organism:llama-s")
    return made.recipe("organism:llama-s", digest, "F16")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_in_the_cache_is_made_again(how):
    path, there = made.ensure_made(how)
    assert not there
    assert made.ensure_made(how) == (path, True)
    whole = path.read_bytes()
    flip(path)
    assert made.ensure_made(how) == (path, False)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1])
    assert made.ensure_made(how) == (path, False)
    assert path.read_bytes() == whole
    path.unlink()
    assert made.ensure_made(how) == (path, False)
    assert made.ensure_made(how) == (path, True)


def test_a_checkpoint_that_was_only_touched_is_kept(how):
    path, _ = made.ensure_made(how)
    os.utime(path, ns=(0, 0))
    assert made.ensure_made(how) == (path, True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"made": "model-F16.gguf"}', "null"])
def test_an_entry_that_does_not_say_what_it_held_is_made_again(how, text):
    path, _ = made.ensure_made(how)
    record = path.parent / "entry.json"
    said = json.loads(record.read_text())
    record.write_text(text)
    assert made.ensure_made(how) == (path, False)
    again = json.loads(record.read_text())
    assert [again["made"], again["files"][:2]] == [said["made"], said["files"][:2]]


def test_a_level_is_made_from_a_16_bit_gguf_as_well(tmp_path, monkeypatch):
    from mechprobe.models.gguf_info import read_gguf_info
    from mechprobe.models.quantize import quantize

    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    f16 = str(quantize("organism:llama-s", "F16", tmp_path / "m.gguf"))
    found, _ = made.ensure_made(made.recipe(f16, find_source(f16)[1], "Q4_1"))
    assert read_gguf_info(found).precision == "Q4_1"
