"""What the four probes cost: one observational pass against four, interventions, and memory.

One run. Tokens and time: every prompt set through a random-weight model once for all probes,
against once for each probe that asks for it, each with its own needs; the sides take turns, and
the ratio of times is the median over rounds of the ratio within the round, of wall time and of the
process's CPU time. Interventions, on the same model: see `interventions.py`. Memory: a process of
its own loads a model of `--megabytes` and then a cell of the same size from files, runs the whole
battery on both, and reports how far its resident memory rose above what its imports take.

    python benchmarks/probes.py [--json] [--rounds 3] [--megabytes 1000] [--stored float16]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import interventions
import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mechprobe.activations.batching import padded_batches
from mechprobe.models.architectures import architecture_for
from mechprobe.models.checkpoint import Checkpoint, QuantInfo
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import EncodedPrompts
from mechprobe.probes import battery
from mechprobe.probes.folder import ProbeFolder
from mechprobe.probes.observation import observe
from mechprobe.probes.refusal_tokens import RefusalTokens

BUDGETS = {
    "forward_tokens_over_separate": 0.4,
    "memory_over_model": 1.3,
    **interventions.BUDGETS,
}
STUDY = {"fit": 128, "select": 32, "evaluate": 100}
"""Prompts of each label, as Arditi et al. split them and the study evaluates."""
FEW = {"fit": 16, "select": 8, "evaluate": 8}
"""For what runs the model again and again: selection, steering, patching."""
REFUSAL = 4
"""The token that the model is given to refuse with."""
HEAD, OWN, TAIL = 24, 16, 3
"""Tokens of a prompt: the template before the request, the request, the template after it."""


def random_llama(width: int, layers: int, vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=int(width * 2.75),
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(width // 256, 1),
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def word_tokenizer(vocabulary: int) -> Any:
    """One word per id: the prompts are ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(vocabulary)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")),
        pad_token="w0",
        bos_token="w1",
        eos_token="w2",
        unk_token="w3",
    )


def make_prompts(counts: dict[str, int], vocabulary: int) -> dict[str, EncodedPrompts]:
    """Random requests between a common head and tail; a harmful one has words of its own kind."""
    draw = torch.Generator().manual_seed(1)

    def words(low: int, high: int, count: int) -> tuple[int, ...]:
        return tuple(torch.randint(low, high, (count,), generator=draw).tolist())

    middle = vocabulary // 2
    head, tail = words(8, vocabulary, HEAD), words(8, vocabulary, TAIL)
    prompts = {}
    for split, count in counts.items():
        for label, low, high in (("harmful", 8, middle), ("harmless", middle, vocabulary)):
            lengths = (OWN - 4 + words(0, 9, 1)[0] for _ in range(count))
            ids = tuple(head + words(low, high, length) + tail for length in lengths)
            blank = tuple("" for _ in ids)
            prompts[f"{split}/{label}"] = EncodedPrompts(
                ids, blank, tuple(() for _ in ids), TAIL, "raw"
            )
    return prompts


def teach_refusal(model: Any, prompts: dict[str, EncodedPrompts]) -> None:
    """Give the model a token that it begins with after harmful prompts and not after others.

    Without one nothing can be selected, steered or patched. It is a row of the last matrix: the
    difference of the final states, scaled so that the token's probability is far from a half.
    """
    states = []
    for label in ("harmful", "harmless"):
        batches = padded_batches(prompts[f"fit/{label}"], 16, 0, "cpu")
        rows = [model.model(**b.model_inputs()).last_hidden_state[:, -1] for b in batches]
        states.append(torch.cat(rows).double())
    harmful, harmless = (side.mean(0) for side in states)
    spread = sum(torch.cov(side.T) for side in states)
    ridge = spread.diagonal().mean() * torch.eye(len(harmful), dtype=torch.float64)
    across = torch.linalg.solve(spread + ridge, harmful - harmless)
    middle = (harmful + harmless) / 2
    level = middle - across * (middle @ across) / (across @ across)
    across *= 12 / (across @ (harmful - harmless))
    rest = float(torch.logsumexp(model.lm_head(middle.float()).double(), 0))
    level *= (rest - middle @ across) / (level @ middle)
    model.lm_head.weight[REFUSAL] = (across + level).float()


def wrap(model: Any, vocabulary: int, digest: str = "0" * 64) -> Checkpoint:
    """A model in memory as loading would return it."""
    return Checkpoint(
        source="random Llama",
        path=Path(),
        quant=QuantInfo("FP32", "none"),
        kernel="dense",
        tokenizer=word_tokenizer(vocabulary),
        digest=digest,
        module=model,
        architecture=architecture_for(model),
    )


def disturb(model: Any) -> None:
    """Put every weight a little off, as quantization does."""
    for weight in model.parameters():
        weight += 0.02 * weight.std() * torch.randn_like(weight)


def compare_interventions(args: argparse.Namespace) -> dict[str, float]:
    """Selection and patching over every pass of every prompt, see `interventions.py`."""
    model = random_llama(args.width, args.layers, args.vocabulary)
    prompts = make_prompts(FEW | {"select": 32, "evaluate": 48}, args.vocabulary)
    teach_refusal(model, make_prompts(STUDY, args.vocabulary))

    def cell() -> Checkpoint:
        disturb(model)
        return wrap(model, args.vocabulary, "1" * 64)

    given = RefusalTokens((REFUSAL,), (f"w{REFUSAL}",), "given")
    setup = battery.Setup(prompts, tokens=given)
    return interventions.compare(lambda: wrap(model, args.vocabulary), cell, setup)


def compare_passes(args: argparse.Namespace, console: Console) -> dict[str, float]:
    """Tokens and wall time of one pass over those of four, on one cell."""
    checkpoint = wrap(random_llama(args.width, args.layers, args.vocabulary), args.vocabulary)
    prompts = make_prompts(STUDY, args.vocabulary)
    whole = battery.Setup(prompts)
    setups = {"one": [whole], "four": [replace(whole, probes=(p,)) for p in battery.PROBES]}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in setups}
    tokens: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory(prefix="mechprobe-benchmark-") as scratch,
        Progress(console=console, disable=not console.is_terminal, transient=True) as bar,
    ):
        task = bar.add_task("passes", total=2 * (args.rounds + 1))
        for turn in range(-1, args.rounds):  # the first round warms up
            for name in list(setups)[:: 1 if turn % 2 else -1]:
                gc.collect()
                wall, cpu = time.perf_counter(), time.process_time()
                tokens[name] = 0
                for k, setup in enumerate(setups[name]):
                    needs = battery.needs_of(setup, checkpoint, is_baseline=False)
                    seen = observe(checkpoint, prompts, needs, Path(scratch) / str(k))
                    tokens[name] += seen.facts.forward_tokens
                if turn >= 0:
                    spent = time.perf_counter() - wall, time.process_time() - cpu
                    seconds[name].append(spent)
                for k in range(len(setups[name])):
                    shutil.rmtree(Path(scratch) / str(k))
                bar.advance(task)
    pairs = list(zip(seconds["one"], seconds["four"], strict=True))
    return {
        "forward_tokens_over_separate": tokens["one"] / tokens["four"],
        "wall_over_separate": statistics.median(a[0] / b[0] for a, b in pairs),
        "cpu_over_separate": statistics.median(a[1] / b[1] for a, b in pairs),
    }


def save_models(args: argparse.Namespace, folder: Path) -> None:
    """A model of the size asked for, and the same with every weight a little off, as files."""
    width, vocabulary = 1024, 32_000
    embeddings = 2 * width * vocabulary
    block = width**2 * 2.5 + 3 * width * int(width * 2.75)
    layers = max(8, round((args.megabytes * 1e6 / 4 - embeddings) / block))
    model = random_llama(width, layers, vocabulary)
    teach_refusal(model, make_prompts(STUDY, vocabulary))
    tokenizer = word_tokenizer(vocabulary)
    for name in ("baseline", "cell"):
        model.to(getattr(torch, args.stored)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        disturb(model.float())


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak resident memory of the whole battery, in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="mechprobe-benchmark-") as scratch:
        tail = ["--megabytes", str(args.megabytes), "--stored", args.stored]
        for flag in ("--save-models", "--battery"):
            command = [sys.executable, __file__, flag, scratch, *tail]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def resident(what: str) -> int:
    """Bytes, `VmRSS` now or `VmHWM` at the highest."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would tell of the parent
    line = next(x for x in status.splitlines() if x.startswith(what))
    return int(line.split()[1]) * 1024


def run_battery(folder: Path, verbose: bool) -> None:
    """Baseline, then cell: observe, measure all four, select, steer, patch; print the ratios."""
    import h5py  # noqa: F401
    import pandas as pd  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import statsmodels.stats.proportion  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import mechprobe.activations.capturing
    import mechprobe.generation.hf
    import mechprobe.models.hf
    import mechprobe.models.native  # noqa: F401

    imports = resident("VmRSS")
    size = 0

    def say(what: str) -> None:
        if verbose:
            now, most = (resident(name) - imports for name in ("VmRSS", "VmHWM"))
            print(f"{what:32} now {now / 1e6:6.0f} MB, peak {most / 1e6:6.0f} MB", file=sys.stderr)

    given = RefusalTokens((REFUSAL,), (f"w{REFUSAL}",), "given")
    before: dict[str, ProbeFolder | None] = {"study": None, "few": None}
    for cell in ("baseline", "cell"):
        checkpoint = load_checkpoint(folder / cell)
        model: Any = checkpoint.module
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        vocabulary = int(model.config.vocab_size)
        say(f"{cell}: loaded")
        for name, counts in (("study", STUDY), ("few", FEW)):
            setup = battery.Setup(
                make_prompts(counts, vocabulary),
                tokens=given,
                place=(-1, 4) if name == "study" else None,
                causal=name == "few",
                max_new_tokens=4,
            )
            found, baseline = ProbeFolder(folder / f"{name}-{cell}"), before[name]
            battery.observe_cell(checkpoint, setup, found, is_baseline=baseline is None)
            say(f"{cell}, {name}: observed")
            if baseline is None:
                battery.choose_tokens(checkpoint, setup, found)
            battery.read_answers(checkpoint, setup, found)
            say(f"{cell}, {name}: answers")
            battery.probe_entropy(setup, found, baseline)
            battery.probe_calibration(setup, found, baseline)
            say(f"{cell}, {name}: entropy, calibration")
            battery.probe_direction(checkpoint, setup, found, baseline)
            say(f"{cell}, {name}: direction")
            battery.probe_neurons(checkpoint, setup, found, baseline)
            say(f"{cell}, {name}: neurons")
            before[name] = before[name] or found
        del checkpoint, model
        gc.collect()
        say(f"{cell}: let go")
    peak = resident("VmHWM") - imports
    print(json.dumps({"memory_over_model": peak / size, "model_megabytes": size / 1e6}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one flat object of ratios on stdout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--megabytes", type=int, default=1000, help="of the float32 graph")
    parser.add_argument("--stored", default="float16", help="type of the weights in the file")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory run out")
    parser.add_argument("--save-models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--battery", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--verbose", action="store_true", help="memory step by step")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    if args.save_models:
        save_models(args, args.save_models)
        return
    if args.battery:
        run_battery(args.battery, args.verbose)
        return
    found = compare_passes(args, Console(stderr=True)) | compare_interventions(args)
    size = 0.0
    if not args.no_memory:
        found |= memory(args)
        size = found.pop("model_megabytes")
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
        return
    table = Table(title="four probes, one pass")
    for column in ("ratio", "measured", "budget"):
        table.add_column(column, justify="left" if column == "ratio" else "right")
    for name, value in found.items():
        budget = f"{BUDGETS[name]:.2f}" if name in BUDGETS else ""
        table.add_row(name, f"{value:.3f}", budget)
    Console().print(table)
    if size:
        print(f"memory: a model of {size:.0f} MB in float32, {args.stored} in the file")


if __name__ == "__main__":
    main()
