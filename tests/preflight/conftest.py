"""Checkpoints of headers alone, and commands that may load nothing."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from mechprobe.models.source import resolve_source

LAYERS, WIDTH = 8, 256


@pytest.fixture(scope="session")
def organism():
    return resolve_source("organism:llama-s").path


@pytest.fixture
def variant(organism, tmp_path):
    """`variant(name, **config)`: a copy of the organism with other fields in its config.json."""

    def make(name, **config):
        folder = shutil.copytree(organism, tmp_path / name)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return make


@pytest.fixture
def gguf_file(tmp_path):
    """`gguf_file(name, …)`: a GGUF with the header of a model and next to no weights."""

    def make(name, arch="llama", layers=LAYERS, width=WIDTH, level="F16", stored="F16", tokens=()):
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, arch)
        prefix = "MOSTLY_" if level != "F32" else "ALL_"
        writer.add_file_type(gguf.LlamaFileType[f"{prefix}{level}"])
        writer.add_block_count(layers)
        writer.add_embedding_length(width)
        if tokens:
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(list(tokens))
            writer.add_token_types([1] * len(tokens))
        rows = np.zeros((8, 256), np.float32)
        kind = gguf.GGMLQuantizationType[stored]
        matrix = gguf.quants.quantize(rows, kind)
        writer.add_tensor("token_embd.weight", matrix, raw_dtype=kind)
        writer.add_tensor("blk.0.ffn_down.weight", matrix, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run a command that must end before it loads a weight: its exit code and its lines."""

    def refuse(*_, **__):
        raise AssertionError("weights were asked for")

    for place in ("mechprobe.session.load_checkpoint", "mechprobe.models.export.beside"):
        monkeypatch.setattr(place, refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))

    def call(*arguments):
        from mechprobe.cli import main

        code = main([str(one) for one in arguments])
        out, err = capfd.readouterr()
        left = [p.name for p in Path("runs").rglob("*")] if Path("runs").exists() else []
        assert left == []
        return code, err.splitlines(), out

    return call
