"""The notebooks run from a clean state, and are stored clean."""

import re
from pathlib import Path

import pytest

import mechprobe.experiments

FOLDER = Path(mechprobe.experiments.__file__).parent / "notebooks"
NAMES = ("neurons", "refusal_direction")
MACHINE = re.compile(r"(?<![\w.:/])/(?:home|Users|root|work|opt|tmp|usr|mnt|var)/|[A-Z]:\\\\")
SMALL = "N_FIT, N_SELECT, N_EVALUATE, NEW_TOKENS = 48, 24, 12, 8"

nbformat = pytest.importorskip("nbformat")


@pytest.fixture(autouse=True)
def _own_jupyter(tmp_path_factory, monkeypatch):
    """Histories and connection files of the kernels go with the test."""
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path_factory.mktemp("jupyter")))


def notebook(name):
    found = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(found)
    return found


def run(name, where, change=""):
    """Execute a notebook, its parameters changed as papermill would; the executed notebook."""
    nbclient = pytest.importorskip("nbclient")
    found = notebook(name)
    (parameters,) = [c for c in found.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source += f"\n{change}"
    client = nbclient.NotebookClient(
        found, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(where)}}
    )
    client.execute()
    return found


def outputs(executed, kind):
    """What the cells showed in one MIME type, in order."""
    cells = (cell for cell in executed.cells if cell.cell_type == "code")
    shown = (output.get("data", {}) for cell in cells for output in cell.outputs)
    return [data[kind] for data in shown if kind in data]


def noise(executed):
    """What landed on stdout or stderr."""
    cells = (cell for cell in executed.cells if cell.cell_type == "code")
    return [o.text for cell in cells for o in cell.outputs if o.output_type == "stream"]


def test_there_are_no_others():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_clean(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not MACHINE.search(text)
    cells = notebook(name).cells
    assert len({cell.id for cell in cells}) == len(cells)
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_the_machine_pattern_finds_a_path():
    assert MACHINE.search('"/home/me/run"')
    assert not MACHINE.search("https://arxiv.org/abs/2406.11717 and a/tmp/b")


def test_refusal_direction_runs_on_few_prompts(tmp_path):
    """Its own assertion holds TransformerLens and nnsight to our numbers."""
    executed = run("refusal_direction", tmp_path, SMALL)
    assert len(outputs(executed, "image/png")) == 3
    found, conclusion = outputs(executed, "text/markdown")
    assert "Refusals begin with “" in found
    assert "TransformerLens, nnsight and mechprobe agree" in conclusion
    assert "None" not in conclusion
    assert noise(executed) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.verify
@pytest.mark.parametrize(("name", "figures"), [("refusal_direction", 3), ("neurons", 6)])
def test_it_runs_as_it_is(name, figures, tmp_path):
    executed = run(name, tmp_path)
    assert len(outputs(executed, "image/png")) == figures
    conclusion = outputs(executed, "text/markdown")[-1]
    assert conclusion.count("\n- ") >= 4
    assert "None" not in conclusion
    assert "nan" not in conclusion
    assert noise(executed) == []
    assert list(tmp_path.iterdir()) == []
