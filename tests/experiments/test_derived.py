import ast

import pytest

from mechprobe.experiments import derived
from mechprobe.experiments.plan import make_plan
from mechprobe.experiments.spec_file import load_spec
from mechprobe.experiments.steps import Result, step_key

BESIDE = {
    "mechprobe.activations.npz",
    "mechprobe.cache",
    "mechprobe.errors",
    "mechprobe.generation.likelihood",
    "mechprobe.models.provenance",
    "mechprobe.models.rendering",
    "mechprobe.behavior.judges",
    "mechprobe.behavior.multiple_choice",
    "mechprobe.behavior.records",
    "mechprobe.behavior.tasks",
    "mechprobe.progress",
    "mechprobe.textfiles",
    *(
        f"mechprobe.experiments.{name}"
        for name in (
            "derived", "factorial_plan", "fingerprints", "integrity", "judging", "loading", "locks",
            "plan_judges", "questions", "rendered", "rundir", "sources", "spec", "spec_judges",
            "steps", "suite", "yaml_lines",
        )
    ),
}  # fmt: skip
"""What deriving code imports that reads, asks, measures or plans: it decides no number of a table.

A module that does belongs in `derived.DERIVING` instead.
"""


def _files(kind):
    for part in derived.DERIVING[kind]:
        path = derived.PACKAGE / part
        assert path.exists(), f"{kind}: {part} has moved"
        yield from path.rglob("*.py") if path.is_dir() else [path]


def _imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mechprobe."):
            names = [f"{node.module}.{one.name}" for one in node.names]
            inside = [name for name in names if _file(name)]
            yield from inside or [node.module]


def _file(module):
    path = derived.PACKAGE.joinpath(*module.split(".")[1:])
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


@pytest.mark.parametrize("kind", list(derived.DERIVING))
def test_code_that_derives_counts_all_the_code_that_it_uses(kind):
    mine = set(_files(kind))
    others = {n for file in mine for n in _imports(file) if _file(n) not in mine} - BESIDE
    steps = {"mechprobe.experiments.judge_steps"}  # of which tables take nothing
    pages = {n for n in others if n.startswith("mechprobe.report")}
    pages.add("mechprobe.experiments.reporting")
    anew = {"mechprobe.experiments.analysing"}  # only for a copy of a run without its markers
    apart = {"tables": steps, "factorial": pages, "report": anew, "factorial report": anew}
    assert others - apart.get(kind, set()) == set()


def test_other_code_derives_again_and_measures_nothing_again(monkeypatch):
    spec = load_spec("demo")

    def keys():
        found = {}
        for step in make_plan(spec, local_only=True).steps:
            found[step.name] = Result("done", step_key(step, found))
        return {name: result.key for name, result in found.items()}

    before = keys()
    assert keys() == before
    digest = derived.sources_digest
    monkeypatch.setattr(derived, "sources_digest", lambda *given: f"{digest(*given)} changed")
    after = keys()
    again = {name for name in before if after[name] != before[name]}
    assert {"tables", "analysis", "report"} < again
    assert {name.rpartition("/")[2] for name in again} == {"cell", "tables", "analysis", "report"}


def test_a_digest_is_of_names_and_contents_alone(tmp_path):
    def package(name, more=""):
        folder = tmp_path / name / "part"
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "a.py").write_text(f"x = 1\n{more}")
        (folder / "__pycache__" / f"{name}.pyc").write_text(name)
        return derived.sources_digest(tmp_path / name, ("part",))

    assert package("one") == package("two") != package("three", "y = 2\n")
    assert len({derived.code_digest(kind) for kind in derived.DERIVING}) == len(derived.DERIVING)
