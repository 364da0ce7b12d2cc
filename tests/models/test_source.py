"""A checkpoint that cannot be found says which kind of not-found it is, in one line."""

import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from mechprobe.errors import CheckpointError, MechprobeError
from mechprobe.experiments.spec_file import parse_spec
from mechprobe.experiments.spec_problems import spec_problems
from mechprobe.models.remote import require_there
from mechprobe.models.source import download_bytes, resolve_source
from mechprobe.models.weight_files import weight_files

sys.path.insert(0, str(Path(__file__).parent))
from small_hub import hub


def test_a_folder_is_itself(plain):
    source = resolve_source(str(plain()))
    assert (source.kind, source.path, source.revision) == ("folder", plain(), None)


def test_one_gguf_in_a_folder_is_meant(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert resolve_source(str(tmp_path)).path == tmp_path / "a.gguf"
    assert resolve_source(str(tmp_path)).kind == "gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"2 GGUF files \(a.gguf, b.gguf"):
        resolve_source(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no model was given"),
        ("no/such/folder", "no such file or folder"),
        ("./missing.gguf", "no such file or folder"),
        ("missing.gguf", "no such file or folder"),
        ("hf:org/repo", "expected hf:org/repo/file.gguf"),
        ("org/name", "HF_HUB_OFFLINE"),
        ("hf:org/repo/file.gguf", "HF_HUB_OFFLINE"),
        ("organism:no-such-organism", "no-such-organism"),
    ],
)
def test_what_is_not_there(text, message):
    with pytest.raises(MechprobeError, match=message) as caught:
        resolve_source(text)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\0" * 16)
    with pytest.raises(CheckpointError, match="name the folder"):
        resolve_source(str(file))
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resolve_source(str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(CheckpointError, match="an adapter alone"):
        resolve_source(str(tmp_path))


def test_gated_and_unknown_repositories(monkeypatch):
    """The hub cannot be reached from a test, so its own exceptions stand in for it."""
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    for kind, message in ((GatedRepoError, "gated; accept"), (RepositoryNotFoundError, "no such")):

        def refuse(*_args, kind=kind, **_options):
            request = httpx.Request("GET", "https://hub.invalid")
            raise kind("refused\nlong story", response=httpx.Response(403, request=request))

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(CheckpointError, match=message) as caught:
            resolve_source("org/name")
        assert "\n" not in str(caught.value) and "hf auth login" in str(caught.value)


INDEX = {
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
}
SHARDS = {name: name.encode() for name in INDEX["weight_map"].values()}
BESIDE = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}'}
INDEXED = {"model.safetensors.index.json": json.dumps(INDEX).encode(), **SHARDS}
OTHERS = {"consolidated.safetensors": b"the same", "original/model.safetensors": b"again"}
REPOSITORIES = {
    "a single file beside stale shards": (
        {"model.safetensors": b"one", **INDEXED, **OTHERS}, ["model.safetensors"]
    ),
    "shards beside the original": ({**INDEXED, **OTHERS}, list(SHARDS)),
    "named by the configuration": (
        {
            "config.json": b'{"transformers_weights": "other.safetensors"}',
            "model.safetensors": b"one",
            "other.safetensors": b"two",
        },
        ["other.safetensors"],
    ),
    "no weights": ({}, []),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPOSITORIES)
def test_a_snapshot_has_the_weights_that_loading_reads(kind, tmp_path, monkeypatch):
    more, weights = REPOSITORIES[kind]
    files = {**BESIDE, **more}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with hub("org/name", files) as (address, given):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        url = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        size = download_bytes("org/name")
        with pytest.raises(CheckpointError, match="not in the cache"):
            resolve_source("org/name", local_only=True)
        folder = resolve_source("org/name").path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for local_only in (True, False):  # offline the same folder is whole
        assert resolve_source("org/name", local_only=local_only).path == folder
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    jsons = [name for name in files if name.endswith(".json")]
    assert there == set(given) == {*jsons, *weights}
    assert size == sum(len(files[name]) for name in there)
    if weights:
        assert [file.name for file in weight_files(folder).files] == weights


def test_what_the_hub_lacks_is_known_before_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with hub("org/name", {"config.json": b"{}", "deep/m.gguf": b"GGUF"}) as (address, given):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for there in ("org/name", "hf:org/name/deep/m.gguf", "organism:llama-s", str(tmp_path)):
            require_there(there)
        with pytest.raises(CheckpointError, match="no such public repository on the hub"):
            require_there("org/nam")
        with pytest.raises(CheckpointError, match="no such public repository on the hub"):
            require_there("hf:org/nam/m.gguf")
        with pytest.raises(CheckpointError, match=r"name/m\.gguf: the repository lacks that file"):
            require_there("hf:org/name/m.gguf")
        # so does a plan, which names all of them
        monkeypatch.chdir(tmp_path)
        spec = parse_spec(
            "name: s\nmodels: [{name: m, source: 'organism:llama-s', cells: [{precision: FP16}, "
            "{precision: BF16, source: org/nam}, "
            "{precision: Q4_0, source: 'hf:org/name/x.gguf'}]}]",
            "s",
        )
        found = spec_problems(spec, tmp_path / "run", local_only=True).listed
        assert [(one.check, one.where) for one in found] == [
            ("source", "m/BF16@transformers"), ("source", "m/Q4_0@llama.cpp"),
        ]  # fmt: skip
    assert given == []
    require_there("org/nam")  # the hub is out of reach now: nobody knows
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    require_there("hf:org/nam/m.gguf")
