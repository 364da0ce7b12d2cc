"""What capturing costs: against a bare forward pass, TransformerLens, nnsight and hidden states.

One run, on one random-weight model. Contenders take turns within every round, so that a busy
moment of the machine meets all of them; each ratio is the median over rounds of the ratio within
the round, of wall time and of the process's CPU time. Memory is the peak of a process of its own.

    python benchmarks/capture.py [--json] [--rounds 5] [--device cuda --dtype bfloat16]
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mechprobe.activations import capture, to_transformer_lens
from mechprobe.activations.batching import padded_batches
from mechprobe.models.architectures import architecture_for
from mechprobe.models.checkpoint import Checkpoint, QuantInfo
from mechprobe.models.rendering import EncodedPrompts

VOCABULARY = 8192
POINTS = "blocks.*.hook_resid_*"
BUDGETS: dict[str, Callable[[float], float]] = {
    "capture_over_bare": lambda s: 1.03,
    "capture_over_bare_shared_prefix": lambda s: 1 - s + 0.08,
    "capture_over_transformer_lens": lambda s: 1.0,
    "capture_over_nnsight": lambda s: 1.0,
    "memory_2000_over_200": lambda s: 1.05,
}


def build(args: argparse.Namespace) -> Checkpoint:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.width,
        intermediate_size=int(args.width * 2.75),
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        num_key_value_heads=max(args.width // 128, 1),
        max_position_embeddings=2048,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    model = model.to(device=args.device, dtype=getattr(torch, args.dtype))
    return Checkpoint(
        source="random Llama",
        path=Path(),
        quant=QuantInfo("FP32", "none"),
        kernel="dense",
        tokenizer=word_tokenizer(),
        digest="0" * 64,
        module=model,
        architecture=architecture_for(model),
    )


def word_tokenizer() -> Any:
    """One word per id: the prompts are ids already, and libraries want a tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(VOCABULARY)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")),
        pad_token="w0",
        bos_token="w1",
        eos_token="w2",
        unk_token="w3",
    )


def random_prompts(count: int, tokens: int, shared: float) -> EncodedPrompts:
    """Prompts of about `tokens` tokens, ± a fifth, that share about a part `shared` of them."""
    draw = torch.Generator().manual_seed(1)
    prefix = torch.randint(1, VOCABULARY, (round(tokens * shared),), generator=draw).tolist()
    own = tokens - len(prefix)
    spread = max(1, min(own // 2, tokens // 5))
    ids = []
    for _ in range(count):
        length = own + int(torch.randint(-spread, spread + 1, (1,), generator=draw))
        ids.append((*prefix, *torch.randint(1, VOCABULARY, (length,), generator=draw).tolist()))
    blank = tuple("" for _ in ids)
    return EncodedPrompts(tuple(ids), blank, tuple(() for _ in ids), 1, "raw")


class Contenders:
    """The same batches, the same points, the last position: five ways."""

    def __init__(self, checkpoint: Checkpoint, prompts: EncodedPrompts, batch_size: int) -> None:
        self.checkpoint, self.prompts, self.batch_size = checkpoint, prompts, batch_size
        model: Any = checkpoint.module
        self.model = model
        self.batches = list(padded_batches(prompts, batch_size, 0, model.device))
        self.folder = Path(tempfile.mkdtemp(prefix="mechprobe-benchmark-"))
        self.runs: dict[str, Callable[[], object]] = {
            "bare": self.bare,
            "capture": lambda: self.capture(share=False),
            "capture_shared": lambda: self.capture(share=True),
            "hidden_states": self.hidden_states,
        }

    def bare(self) -> None:
        """Forward passes and nothing else."""
        with torch.no_grad():
            for batch in self.batches:
                self.model(**batch.model_inputs(), use_cache=False, logits_to_keep=1)

    def capture(self, *, share: bool) -> Any:
        """Into a fresh store, disk included."""
        shutil.rmtree(self.folder, ignore_errors=True)
        return capture(
            self.checkpoint,
            self.prompts,
            POINTS,
            "last",
            self.folder,
            batch_size=self.batch_size,
            share_prefix=share,
        )

    def hidden_states(self) -> list[torch.Tensor]:
        """The way of transformers itself; there is no stream between attention and MLP in it."""
        taken = []
        with torch.no_grad():
            for batch in self.batches:
                out = self.model(
                    **batch.model_inputs(),
                    use_cache=False,
                    logits_to_keep=1,
                    output_hidden_states=True,
                )
                taken += [state[:, -1].float().cpu() for state in out.hidden_states]
        return taken

    def own_copy(self) -> Checkpoint:
        """Other libraries put wrappers into the graph they are given, which would slow us too."""
        return dataclasses.replace(self.checkpoint, module=copy.deepcopy(self.model))

    def add_transformer_lens(self) -> None:
        """`run_with_cache` of the bridge over the same weights, positions sliced by it."""
        bridge = to_transformer_lens(self.own_copy())
        names = [
            f"blocks.{layer}.hook_resid_{place}"
            for layer in range(self.model.config.num_hidden_layers)
            for place in ("pre", "mid", "post")
        ]

        def run() -> int:
            count = 0
            with torch.no_grad():
                for batch in self.batches:
                    _, cache = bridge.run_with_cache(
                        batch.input_ids,
                        attention_mask=batch.attention_mask,
                        names_filter=names,
                        pos_slice=-1,
                    )
                    count += len([cache[name].float().cpu() for name in names])
            return count

        self.runs["transformer_lens"] = run

    def add_nnsight(self) -> None:
        """`tracer.cache` over the same modules."""
        from nnsight import NNsight

        wrapped = NNsight(self.own_copy().module)
        blocks = list(wrapped.model.layers)
        middles = [block.post_attention_layernorm for block in blocks]

        def run() -> int:
            count = 0
            with torch.no_grad():
                for batch in self.batches:
                    inputs = {**batch.model_inputs(), "use_cache": False, "logits_to_keep": 1}
                    with wrapped.trace(**inputs) as tracer:
                        ends = tracer.cache(modules=blocks, include_inputs=True)
                        mids = tracer.cache(
                            modules=middles, include_inputs=True, include_output=False
                        )
                    for block, middle in zip(blocks, middles, strict=True):
                        for value in (
                            ends[block.path].inputs[0][0],
                            mids[middle.path].inputs[0][0],
                            ends[block.path].output,
                        ):
                            tensor = value[0] if isinstance(value, tuple) else value
                            tensor[:, -1].float().cpu()
                            count += 1
            return count

        self.runs["nnsight"] = run

    def agreement(self) -> float:
        """Largest difference between captured streams and transformers' hidden states."""
        hidden = self.hidden_states()
        store = self.capture(share=True)
        layers = self.model.config.num_hidden_layers
        worst = 0.0
        for place, batch in enumerate(self.batches):
            for layer in range(layers):
                want = hidden[place * (layers + 1) + layer]
                got = store.read(f"blocks.{layer}.hook_resid_pre", batch.indices)[:, 0]
                worst = max(worst, float((torch.from_numpy(got) - want).abs().max()))
        return worst


def measure(
    runs: dict[str, Callable[[], object]], rounds: int, device: str, tick: Callable[[], None]
) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of every contender in every round, the order turning round by round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(-1, rounds):  # the first round warms up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn >= 0:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            tick()
    return times


def ratio(times: dict[str, list[tuple[float, float]]], over: str, under: str, which: int) -> float:
    pairs = zip(times[over], times[under], strict=True)
    return statistics.median(a[which] / b[which] for a, b in pairs)


def peak_memory(args: argparse.Namespace, count: int) -> int:
    """Peak resident bytes of a fresh process that captures `count` prompts."""
    command = [sys.executable, __file__, "--memory-of", str(count)]
    for name in ("width", "layers", "batch_size", "device", "dtype", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def capture_and_report_peak(args: argparse.Namespace) -> None:
    checkpoint = build(args)
    with tempfile.TemporaryDirectory() as folder:
        capture(
            checkpoint,
            random_prompts(args.memory_of, tokens=16, shared=0.4),
            POINTS,
            "last",
            Path(folder) / "store",
            batch_size=args.batch_size,
        )
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss survives exec, and would tell of the parent
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        print(int(line.split()[1]) * 1024)
    else:
        import resource

        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one flat object of ratios on stdout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=96, help="mean prompt length")
    parser.add_argument("--shared", type=float, default=0.55, help="part of the tokens shared")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-memory", action="store_true", help="leave the memory runs out")
    parser.add_argument("--no-others", action="store_true", help="leave the other libraries out")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    if args.memory_of:
        capture_and_report_peak(args)
        return
    console = Console(stderr=True)
    checkpoint = build(args)
    prompts = random_prompts(args.prompts, args.tokens, args.shared)
    shared = prompts.common_prefix() * len(prompts) / int(prompts.lengths().sum())
    contenders = Contenders(checkpoint, prompts, args.batch_size)
    worst = contenders.agreement()
    if not args.no_others:
        contenders.add_transformer_lens()
        contenders.add_nnsight()
    runs = contenders.runs
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("rounds", total=(args.rounds + 1) * len(runs))
        times = measure(runs, args.rounds, args.device, lambda: bar.advance(task))
    shutil.rmtree(contenders.folder, ignore_errors=True)

    pairs = {
        "capture_over_bare": ("capture", "bare"),
        "capture_over_bare_shared_prefix": ("capture_shared", "bare"),
        "capture_over_transformer_lens": ("capture", "transformer_lens"),
        "capture_over_nnsight": ("capture", "nnsight"),
        "capture_over_hidden_states": ("capture", "hidden_states"),
        "capture_shared_prefix_over_transformer_lens": ("capture_shared", "transformer_lens"),
        "capture_shared_prefix_over_nnsight": ("capture_shared", "nnsight"),
        "capture_shared_prefix_over_hidden_states": ("capture_shared", "hidden_states"),
    }
    pairs = {name: pair for name, pair in pairs.items() if pair[1] in runs}
    found = {name: ratio(times, *pair, 0) for name, pair in pairs.items()}
    found |= {f"{name}_cpu": ratio(times, *pair, 1) for name, pair in pairs.items()}
    if not args.no_memory:
        low, high = peak_memory(args, 200), peak_memory(args, 2000)
        found["memory_2000_over_200"] = high / low
    found["shared"] = shared
    found["largest_difference"] = worst
    found["parameters_millions"] = sum(p.numel() for p in contenders.model.parameters()) / 1e6

    if args.json:
        print(json.dumps({name: round(value, 7) for name, value in found.items()}))
        return
    table = Table(title=f"capture, {found['parameters_millions']:.0f} M parameters, s={shared:.2f}")
    for column in ("ratio", "wall", "CPU", "budget"):
        table.add_column(column, justify="left" if column == "ratio" else "right")
    for name in (*pairs, *(["memory_2000_over_200"] if not args.no_memory else [])):
        budget = f"{BUDGETS[name](shared):.2f}" if name in BUDGETS else ""
        cpu = f"{found[f'{name}_cpu']:.3f}" if f"{name}_cpu" in found else ""
        table.add_row(name, f"{found[name]:.3f}", cpu, budget)
    Console().print(table)
    print(f"largest difference from transformers' hidden states: {worst:.1e}")


if __name__ == "__main__":
    main()
