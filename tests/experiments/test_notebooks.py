"""The notebooks run from a clean state, and are stored clean."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import mechprobe.experiments
from mechprobe.behavior.rate import Rate
from mechprobe.probes.matching import AdjustedRatio
from mechprobe.probes.neuron_patching import Patching
from mechprobe.stats import PairedShift

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


def functions(name, *wanted):
    """Some functions of a notebook, as it defines them, without running the rest of it."""
    cells = [c.source for c in notebook(name).cells if c.cell_type == "code"]
    space = {"Rate": Rate}
    for source in cells:
        if any(f"def {one}(" in source for one in wanted):
            found = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
            exec(compile(ast.Module(found, []), name, "exec"), space)
    return [space[one] for one in wanted]


def shift(value, half, n=48):
    return PairedShift(value, value - half, value + half, n, 0.0, None)


@pytest.mark.parametrize(
    ("excess", "p", "words"),
    [
        (shift(0.77, 0.7), 0.03, "return more than"),
        (shift(-0.77, 0.7), 0.03, "return less than"),  # Q2_K: +1.57 against +2.34
        (shift(-0.1, 0.7), 0.7, "neither clearly more nor clearly less than"),
        (shift(0.0, 0.0), None, "the same as random neurons"),
        (None, None, "too few others of their scale"),
    ],
)
def test_a_conclusion_names_what_went_the_other_way(excess, p, words):
    (returned,) = functions("neurons", "returned")
    part = Patching(
        "residual", 0.05, (1,), (-1,), 48, 13, 1, margin_lost=shift(3.2, 0.5),
        whole=shift(1.6, 0.4), everything=shift(3.0, 0.5),
        matched=excess and shift(1.57, 0.4), random=(2.34, 2.34) if excess else (),
        excess=excess, p=p,
    )  # fmt: skip
    said = returned(part)
    assert words in said and "returns 50% of the 3.20 nats lost" in said
    if p is not None:
        assert f"(+1.57 nats against +2.34, p = {p})" in said
    assert "costs 1.60 nats more" in returned(dataclasses.replace(part, whole=shift(-1.6, 0.4)))
    assert "returns none" in returned(dataclasses.replace(part, whole=shift(0.1, 0.4)))
    grown = dataclasses.replace(part, margin_lost=shift(-1.0, 0.5))
    assert returned(grown).startswith("the refusal margin grew")


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(1.5, "more error than"), (0.7, "less error than"), (1.05, "not clearly another than")],
)
def test_a_ratio_below_one_is_said_as_such(ratio, words):
    of_scale, said = functions("neurons", "of_scale", "said")
    found = AdjustedRatio(ratio, ratio - 0.1, ratio + 0.1, 0.01)
    assert words in of_scale(found) and said(found) in of_scale(found)
    assert "could not be compared" in of_scale(None)


def test_steering_less_than_random_is_said_as_such():
    (beside,) = functions("refusal_direction", "beside")
    few, half, most = (Rate.of(count, 100) for count in (3, 50, 97))
    assert ", more than a random" in beside("x", few, half, more=False)
    assert ", less than a random" in beside("x", most, half, more=False)
    assert ", more than a random" in beside("x", most, half, more=True)
    assert ", less than a random" in beside("x", few, half, more=True)
    assert "neither more nor less" in beside("x", half, Rate.of(55, 100), more=True)


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
