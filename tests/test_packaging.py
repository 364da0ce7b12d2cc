"""What a user installs is the whole house: sdist → wheel → a folder elsewhere."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPECS = ("demo", "demo-51", "qwen2.5-0.5b", "smollm2-135m", "smollm2-refuses", "study-51")
SHIPPED = {
    "mechprobe/py.typed",
    *(f"mechprobe/experiments/specs/{name}.yaml" for name in SPECS),
    "mechprobe/experiments/notebooks/neurons.ipynb",
    "mechprobe/experiments/notebooks/refusal_direction.ipynb",
    "mechprobe/behavior/data/requests.jsonl",
    "mechprobe/organisms/data/llama-s/model.safetensors",
    "mechprobe/organisms/data/llama-s/card.json",
    "mechprobe/controls/data/llama-s-planted/model.safetensors",
    "mechprobe/controls/data/llama-s-planted/truth.json",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # the sdist is built from what git tracks, as a release would be
    work = tmp_path_factory.mktemp("build")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    clone = work / "clone"
    for name in filter(None, tracked.split("\0")):
        source, target = ROOT / name, clone / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.write_bytes(source.read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(work)]
    subprocess.run([*build, "--sdist", str(clone)], check=True, capture_output=True)
    (sdist,) = work.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (source,) = (work / "unpacked").iterdir()
    subprocess.run([*build, "--wheel", str(source)], check=True, capture_output=True)
    (built,) = work.glob("*.whl")
    return built


def test_the_wheel_carries_every_module_and_every_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "mechprobe").rglob("*.py")}
    assert modules <= names
    assert names >= SHIPPED
    assert not [n for n in names if n.startswith(("tests/", "activations/", "probes/"))]


def test_every_room_imports_from_an_installed_wheel(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(wheel)], check=True)
    code = (
        "import sys, importlib, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "import mechprobe; root = pathlib.Path(mechprobe.__file__).parent\n"
        "assert str(root).startswith(sys.argv[1]), root\n"
        "for room in sorted(p.parent.name for p in root.glob('*/__init__.py')):\n"
        "    importlib.import_module(f'mechprobe.{room}')\n"
        "from mechprobe.experiments import load_spec\n"
        "for name in sys.argv[2:]: load_spec(name)\n"
        "from mechprobe.organisms import organism_path; print(organism_path('llama-s'))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), *SPECS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip().startswith(str(tmp_path / "site"))


def test_the_readme_names_every_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = readme[readme.index("Extras:") :].partition("\n\n")[0]
    assert [name for name in project["optional-dependencies"] if f"`{name}`" not in listed] == []
