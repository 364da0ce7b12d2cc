"""A checkpoint that cannot be found says which kind of not-found it is, in one line."""

import pytest

from mechprobe.errors import CheckpointError, MechprobeError
from mechprobe.models.source import resolve_source


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
