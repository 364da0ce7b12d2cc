"""What batching and sharing bring: tokens per second against one answer at a time.

Five ratios, each within one run and on the same answers:

- `batched_over_single`: the transformers engine over transformers' `generate`, a prompt at a time;
- `llamacpp_over_sequential`: the llama.cpp engine over llama.cpp with one slot and its own
  defaults, a prompt at a time;
- `llamacpp_over_batched`: the llama.cpp engine over the transformers engine;
- `k_samples_over_k_singles`: k samples of each prompt, which is read once, over k calls of
  transformers' `generate` that draw the same tokens. `k_samples_over_k_readings` is what sharing
  alone brings: over the same engine reading the prompt anew for each;
- `llamacpp_k_samples_over_k_singles`: the same on llama.cpp, over one slot that draws them one by
  one with the same seeds.

Each engine also stands beside the machine itself:

- `NAME_fraction_of_matmul`: the rate at which it multiplies weights, over that of PyTorch's matrix
  product between the rounds, in float32 on as many threads. Products of 8-bit numbers may exceed 1;
- `NAME_busy_over_quiet_threads` and `…_programs` (`--busy`): the time that answering takes beside
  two programs of one thread, and of two threads, over the time without them, loading included.
  llama.cpp chooses its threads here.

The sides take turns, and a ratio is the median over rounds of the ratio within the round, of wall
time and of the process's CPU time. `--ratio NAME` measures one of them alone. The ids of both sides
are compared, and fewer than 99 % equal answers are an error. The llama.cpp sides run the F16 file
of the same weights, where rounding chooses between nearly equal logits, of which random weights
have many: there a greedy answer also passes if, where it first differs, the float32 logits of the
two tokens are a tie within 1 % of a standard deviation of the logits. Of sampled answers of
llama.cpp the share of equal ones is shown and not held: a draw may fall on the edge between two
tokens.

    python benchmarks/generation.py [--json] [--rounds 3] [--model SOURCE] [--device cuda] [--busy]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mechprobe  # noqa: F401  # before torch: it says how threads wait

# isort: split
import torch
import transformers
from generation_machine import BUSY, beside, matmul_seconds, work
from generation_sides import (
    Ids,
    SequentialLlamaCpp,
    build,
    first_gap,
    make_prompts,
    one_at_a_time,
)
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mechprobe.generation import Sampling
from mechprobe.generation.hf import TransformersEngine
from mechprobe.generation.llamacpp import LlamaCppEngine
from mechprobe.models.checkpoint import Checkpoint
from mechprobe.openmp import yield_cores

PAIRS = {
    "batched_over_single": ("batched", "single", 4.0),
    "llamacpp_over_sequential": ("llama.cpp", "llama.cpp sequential", 2.0),
    "llamacpp_over_batched": ("llama.cpp", "batched", None),
    "llamacpp_fast_over_sequential": ("llama.cpp fast", "llama.cpp sequential", None),
    "k_samples_over_k_singles": ("k samples", "k singles", 2.0),
    "k_samples_over_k_readings": ("k samples", "k readings", None),
    "llamacpp_k_samples_over_k_singles": ("llama.cpp k", "llama.cpp k singles", 2.0),
}
SAME = 0.99
"""Least share of answers that are equal, or equal up to a tie."""
TIE = 0.01
"""Standard deviations of the logits."""
ENGINES = ("batched", "llama.cpp")
Sides = dict[str, Callable[[], Ids]]


def make_sides(args: argparse.Namespace, checkpoint: Checkpoint, gguf: Path, prompts: Ids) -> Sides:
    """Each side as a call that gives its answers."""
    few, new, k = prompts[: args.sampled], args.new_tokens, args.samples
    sampling = Sampling(1.0, samples=k, seed=1)
    engine = TransformersEngine(checkpoint, batch_size=args.batch_size)
    options = {"threads": args.threads, "parallel": args.parallel}
    slots = LlamaCppEngine(gguf, checkpoint.tokenizer, **options)
    fast = LlamaCppEngine(gguf, checkpoint.tokenizer, fast=True, **options)
    sequential = SequentialLlamaCpp(gguf, args.threads)
    again = [row for row in few for _ in range(k)]

    def local(runs: TransformersEngine | LlamaCppEngine, rows: Ids, how: Sampling | None) -> Ids:
        answers = runs.generate(rows, max_new_tokens=new, sampling=how)
        return [list(answer.ids) for answer in answers]

    sides: Sides = {
        "single": lambda: one_at_a_time(checkpoint, prompts, new),
        "batched": lambda: local(engine, prompts, None),
        "llama.cpp sequential": lambda: sequential.answer(
            prompts, new, checkpoint.tokenizer.eos_token_id
        ),
        "llama.cpp": lambda: local(slots, prompts, None),
        "llama.cpp fast": lambda: local(fast, prompts, None),
        "k singles": lambda: one_at_a_time(checkpoint, few, new, sampling),
        "k samples": lambda: local(engine, few, sampling),
        "llama.cpp k singles": lambda: sequential.draw(few, new, checkpoint.tokenizer, sampling),
        "llama.cpp k": lambda: local(slots, few, sampling),
        # every copy draws what sample 0 draws, so it is the work that compares, not the text
        "k readings": lambda: local(engine, again, Sampling(1.0, seed=1)),
    }
    one_at_a_time(checkpoint, prompts[:2], 4)
    for runs in (engine, slots, fast):
        local(runs, prompts[:2], None)
    wanted = {name for ratio in pairs(args).values() for name in ratio[:2]}
    return {name: side for name, side in sides.items() if name in wanted}


def pairs(args: argparse.Namespace) -> dict[str, tuple[str, str, float | None]]:
    """The ratios that were asked for."""
    return {name: pair for name, pair in PAIRS.items() if not args.ratio or name in args.ratio}


def timed(run: Callable[[], Ids], device: str) -> tuple[Ids, float, float]:
    """Answers, wall seconds per token, CPU seconds per token."""
    wall, cpu = time.perf_counter(), time.process_time()
    answers = run()
    if device != "cpu":
        torch.cuda.synchronize()
    tokens = max(sum(map(len, answers)), 1)
    return (
        answers,
        (time.perf_counter() - wall) / tokens,
        (time.process_time() - cpu) / tokens,
    )


def beside_others(
    args: argparse.Namespace, checkpoint: Checkpoint, gguf: Path, prompts: Ids
) -> dict[str, float]:
    """How much longer each engine takes when other programs want the cores, by kind of program."""

    def answer(name: str) -> float:
        begun = time.perf_counter()
        with (
            LlamaCppEngine(gguf, checkpoint.tokenizer)
            if name == "llama.cpp"
            else TransformersEngine(checkpoint, batch_size=args.batch_size)
        ) as engine:
            engine.generate(prompts, max_new_tokens=args.new_tokens)
        return time.perf_counter() - begun

    ratios: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        quiet = {name: answer(name) for name in ENGINES}
        for kind, (code, _budget) in BUSY.items():
            with beside(code):
                for name in ENGINES:
                    ratio = answer(name) / quiet[name]
                    ratios.setdefault(f"{name}_busy_over_quiet_{kind}", []).append(ratio)
    return {name: statistics.median(rounds) for name, rounds in ratios.items()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one flat object of ratios on stdout")
    parser.add_argument("--ratio", action="append", choices=list(PAIRS), help="this one alone")
    parser.add_argument("--busy", action="store_true", help="also beside other programs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48, help="mean prompt length")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--parallel", type=int, default=None, help="slots of llama.cpp")
    parser.add_argument("--samples", type=int, default=8, help="k")
    parser.add_argument("--sampled", type=int, default=8, help="prompts of the sampled sides")
    parser.add_argument("--model", help="a checkpoint, instead of random weights")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, gguf = build(args, Path(folder))
        prompts = make_prompts(args, checkpoint)
        sides = make_sides(args, checkpoint, gguf, prompts)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        answers: dict[str, Ids] = {}
        machine: list[tuple[float, float]] = []
        with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("rounds", total=args.rounds * len(sides))
            for turn in range(args.rounds):
                machine.append(matmul_seconds(args.device))
                for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                    answers[name], wall, cpu = timed(sides[name], args.device)
                    times[name].append((wall, cpu))
                    bar.advance(task)
        found = beside_others(args, checkpoint, gguf, prompts) if args.busy else {}

    for name in ENGINES:
        if name in times:
            effort = work(checkpoint, prompts, answers[name]) / sum(map(len, answers[name]))
            for kind, suffix in enumerate(("", "_cpu")):
                found[f"{name}_fraction_of_matmul{suffix}"] = statistics.median(
                    effort * least[kind] / took[kind]
                    for took, least in zip(times[name], machine, strict=True)
                )
    alike = True
    for ratio, (ours, theirs, _) in pairs(args).items():
        rounds = list(zip(times[theirs], times[ours], strict=True))
        found[ratio] = statistics.median(a[0] / b[0] for a, b in rounds)
        found[f"{ratio}_cpu"] = statistics.median(a[1] / b[1] for a, b in rounds)
        if theirs != "k readings":
            both = list(zip(answers[theirs], answers[ours], strict=True))
            found[f"{ratio}_same_text"] = statistics.fmean(a == b for a, b in both)
            tied = [a == b for a, b in both]
            if theirs in ("llama.cpp sequential", "batched"):
                gaps = (
                    first_gap(checkpoint, row, *p) for row, p in zip(prompts, both, strict=True)
                )
                tied = [gap < TIE for gap in gaps]
            if theirs != "llama.cpp k singles":
                alike = alike and statistics.fmean(tied) >= SAME
    module = checkpoint.module
    assert module is not None
    millions = sum(weight.numel() for weight in module.parameters()) / 1e6
    found |= {
        "tokens": max(sum(map(len, side)) for side in answers.values()),
        "parameters_millions": millions,
    }
    if args.json:
        print(json.dumps({name: round(float(value), 4) for name, value in found.items()}))
    else:
        name = args.model or "random Llama"
        table = Table(title=f"{name}, {millions:.1f} M parameters")
        for column in ("ratio", "wall", "CPU", "budget", "same text", "tokens/s"):
            table.add_column(
                column, justify="left" if column == "ratio" else "right", overflow="fold"
            )
        for ratio, (ours, _, budget) in pairs(args).items():
            share = found.get(f"{ratio}_same_text")
            table.add_row(
                ratio,
                f"{found[ratio]:.2f}",
                f"{found[f'{ratio}_cpu']:.2f}",
                f"≥ {budget:g}" if budget else "",
                f"{share:.3f}" if share is not None else "",
                f"{1 / statistics.median(wall for wall, _ in times[ours]):.0f}",
            )
        for name in found:
            if name.endswith("_of_matmul") or "_busy_over_" in name:
                cpu = f"{found[f'{name}_cpu']:.2f}" if f"{name}_cpu" in found else ""
                kind = name.rpartition("_")[2]
                budget = f"≤ {BUSY[kind][1]:g}" if kind in BUSY else ""
                table.add_row(name, f"{found[name]:.2f}", cpu, budget, "", "")
        Console().print(table)
    if not alike:
        sys.exit("the sides gave different answers, so the ratios compare different work")


if __name__ == "__main__":
    before = dict(os.environ)
    yield_cores(os.environ)
    if os.environ != before:  # as the command does; PyTorch has read it when it was imported above
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
