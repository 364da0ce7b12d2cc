"""What many rows and many workers cost.

- `ray_two_workers_speedup`: 64 steps that each wait one second, spread by the Ray engine over two
  workers of one core against one such worker. They wait and do not compute, so that it is
  scheduling that is measured, on a machine of any size; the clusters are real and already up.
- `rows_10k_seconds`: analysis and report of a simulated matrix of 10,000 rows (220 prompts under
  two instruments, 100 quality items and 27 probe metrics in each).
- `growth_exponent`: how that time grows over three sizes, the slope of log(seconds) over log(rows);
  1 is linear.

    python benchmarks/scale.py [--json] [--rows 10000] [--steps 64] [--skip-ray]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scale_matrix import simulate

BUDGETS = {
    "ray_two_workers_speedup": "≥ 1.8",
    "rows_10k_seconds": "≤ 60",
    "growth_exponent": "~ 1",
}


def wait_a_second(task: object) -> None:
    """A step that takes one second of nobody's time."""
    from mechprobe.experiments.rundir import write_text
    from mechprobe.experiments.steps import Task

    assert isinstance(task, Task)
    time.sleep(task.step.params["seconds"])
    write_text(task.run / task.step.outputs[0], "done")


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[None]:
    """A Ray cluster of so many nodes with one core each, on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(workers - 1):
            made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def ray_seconds(workers: int, count: int) -> float:
    """Wall time of `count` cells of one step each, after one cell for each worker to start up."""
    from mechprobe.experiments.engine_ray import RayEngine
    from mechprobe.experiments.locks import opened
    from mechprobe.experiments.progress import NoDisplay
    from mechprobe.experiments.steps import Step

    def steps(name: str, number: int, seconds: float) -> list[Step]:
        names = [f"{name}/{i}" for i in range(number)]
        action, params = "scale:wait_a_second", {"seconds": seconds}
        return [Step(f"cells/{n}", action, params, (f"cells/{n}.txt",), cell=n) for n in names]

    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(workers),
        opened(Path(folder) / "run", "name: scale\n", {}) as run,
    ):
        engine = RayEngine(cpus=1)
        engine.run(steps("warm", 2 * workers, 0.2), run, NoDisplay())
        begun = time.perf_counter()
        outcome = engine.run(steps("wait", count, 1.0), run, NoDisplay())
        taken = time.perf_counter() - begun
    assert outcome.count("done") == count
    return taken


def rows_seconds(rows: int) -> dict[str, float]:
    """Seconds of analysis and of report for a simulated matrix."""
    from mechprobe.analysis.document import analyse
    from mechprobe.report import Material, make_report

    outcomes, matrix, templates, gaps = simulate(rows)
    begun = time.perf_counter()
    document = analyse(
        outcomes,
        matrix,
        templates,
        gaps,
        quality="quality",
        instrument="hard",
        second_instrument="oracle",
    )
    analysed = time.perf_counter()
    assert len(document["rows"]) == rows
    report = make_report(Material("simulated", document, matrix))
    done = time.perf_counter()
    assert report.html
    return {"analysis": analysed - begun, "report": done - analysed}


def main() -> int:
    """Measure, print, and say with the exit code whether the budgets hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="One flat object on stdout.")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--skip-ray", action="store_true", help="Only the simulated matrix.")
    args = parser.parse_args()
    console = Console(stderr=args.json)
    found: dict[str, float] = {}
    if not args.skip_ray:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [here, os.environ.get("PYTHONPATH")])
        )
        one, two = ray_seconds(1, args.steps), ray_seconds(2, args.steps)
        console.print(f"{args.steps} steps: one worker {one:.1f} s, two workers {two:.1f} s")
        found["ray_two_workers_speedup"] = round(one / two, 3)
    rows_seconds(max(args.rows // 40, 50))  # imports, first figure
    sizes = [args.rows // 4, args.rows // 2, args.rows]
    times = []
    for size in sizes:
        parts = rows_seconds(size)
        times.append(sum(parts.values()))
        said = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items())
        console.print(f"{size} rows: {said}")
    name = "rows_10k_seconds" if args.rows == 10_000 else f"rows_{args.rows}_seconds"
    found[name] = round(times[-1], 2)
    found["growth_exponent"] = round(float(np.polyfit(np.log(sizes), np.log(times), 1)[0]), 3)
    if args.json:
        print(json.dumps(found))
        return 0
    table = Table("ratio", "measured", "budget")
    for name, value in found.items():
        table.add_row(name, f"{value:g}", BUDGETS.get(name, ""))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
