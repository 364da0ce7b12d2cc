"""The floors of the house hold: a room imports only from rooms below it (docs/architecture.md)."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mechprobe"
FLOORS = {
    "errors": 0,
    "cache": 0,
    "progress": 0,
    "openmp": 0,
    "exit_codes": 0,
    "textfiles": 0,
    "stats": 0,
    "holding": 1,
    "journal": 1,
    "organisms": 1,
    "models": 2,
    "activations": 3,
    "preflight": 3,
    "generation": 4,
    "session": 5,
    "behavior": 6,
    "probes": 7,
    "analysis": 8,
    "controls": 9,
    "report": 9,
    "experiments": 10,
    "cli": 11,
    "__main__": 12,
    "entropy": 12,
    "refusal_direction": 12,
    "calibration": 12,
    "safety_neurons": 12,
}


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[int, str]]:
    """Line and target room of every import of mechprobe in a file, lazy ones included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = (
                [f"mechprobe.{alias.name}" for alias in node.names]
                if node.module == "mechprobe"
                else [node.module or ""]
            )
        else:
            continue
        found += [(node.lineno, n.split(".")[1]) for n in names if n.startswith("mechprobe.")]
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_floor():
    rooms = {_room(path) for path in MODULES} - {"__init__"}
    assert rooms <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = _room(path)
    if room == "__init__":
        return
    for line, target in _imports(path):
        if target in FLOORS and target != room:
            assert FLOORS[target] < FLOORS[room], f"{path}:{line}: {room} imports {target}"


def _run_time(node: ast.AST):
    """What runs: everything but the bodies of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from _run_time(child)


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count: a circle that is put off is one."""
    names = {
        ".".join(("mechprobe", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in MODULES
    }
    graph = TopologicalSorter()
    for name, path in names.items():
        for node in _run_time(ast.parse(path.read_text())):
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [each if each in names else node.module for each in whole]
            graph.add(name, *(each for each in found if each in names and each != name))
    graph.prepare()  # raises CycleError, which names the circle


def test_analysis_is_free_of_torch():
    for path in (PACKAGE / "analysis").rglob("*.py"):
        tree = ast.parse(path.read_text())
        roots = {
            name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
        }
        assert "torch" not in roots, path


def test_the_three_doors_show_the_pipeline():
    for door in ("activations", "probes", "experiments"):
        link = PACKAGE.parent / door
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == PACKAGE / door


@pytest.mark.parametrize(
    "statement",
    [
        "import mechprobe",
        # a mistake is said at once
        "from mechprobe.cli import main; main(['probe', 'all', '--model', 'typo.gguf'])",
    ],
)
def test_importing_loads_no_torch(statement):
    code = f"{statement}; import sys; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
