"""What batching brings: tokens per second against transformers' `generate`, a prompt at a time.

One run, on one random-weight model or on a checkpoint of your own. Both sides answer the same
prompts greedily; the ids are compared, and the ratio counts the same tokens on both sides. The
sides take turns, and the ratio is the median over rounds of the ratio within the round, of wall
time and of the process's CPU time.

    python benchmarks/generation.py [--json] [--rounds 3] [--model SOURCE] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mechprobe.generation.hf import TransformersEngine, stop_ids
from mechprobe.models.architectures import architecture_for
from mechprobe.models.checkpoint import Checkpoint, QuantInfo

VOCABULARY = 8192
BUDGET = 4.0
Ids = list[list[int]]


def build(args: argparse.Namespace) -> Checkpoint:
    """A random-weight Llama, or the checkpoint named by `--model`."""
    dtype = getattr(torch, args.dtype)
    if args.model:
        from mechprobe.models.load import load_checkpoint

        return load_checkpoint(args.model, dtype=dtype, device=args.device)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

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
    words = {f"w{i}": i for i in range(VOCABULARY)}
    return Checkpoint(
        source="random Llama",
        path=Path(),
        quant=QuantInfo("FP32", "none"),
        kernel="dense",
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")),
            pad_token="w0",
            bos_token="w1",
            eos_token="w2",
            unk_token="w3",
        ),
        digest="0" * 64,
        module=model.to(device=args.device, dtype=dtype),
        architecture=architecture_for(model),
    )


def make_prompts(args: argparse.Namespace, checkpoint: Checkpoint) -> Ids:
    """The built-in requests for a real model; random ids, half of them shared, for a random one."""
    if args.model:
        from mechprobe.behavior.prompts import load_builtin
        from mechprobe.models.rendering import encode

        texts = load_builtin().texts(split="test")[: args.prompts]
        return [list(row) for row in encode(checkpoint.tokenizer, texts).ids]
    draw = torch.Generator().manual_seed(1)
    head = torch.randint(4, VOCABULARY, (args.tokens // 2,), generator=draw).tolist()
    own = torch.randint(1, args.tokens + 1, (args.prompts,), generator=draw).tolist()
    return [
        head + torch.randint(4, VOCABULARY, (length,), generator=draw).tolist() for length in own
    ]


def one_at_a_time(checkpoint: Checkpoint, prompts: Ids, new: int) -> Ids:
    """A loop over prompts, each through transformers' own `generate`."""
    module: Any = checkpoint.module
    ends = stop_ids(checkpoint)
    answers = []
    for row in prompts:
        ids = torch.tensor([row], device=module.device)
        out = module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=sorted(ends) or None,
            pad_token_id=0,
        )[0, len(row) :].tolist()
        answers.append(out[:-1] if out and out[-1] in ends else out)
    return answers


def batched(engine: TransformersEngine, prompts: Ids, new: int) -> Ids:
    """The same through the engine."""
    return [list(answer.ids) for answer in engine.generate(prompts, max_new_tokens=new)]


def timed(run: Callable[[], Ids], device: str) -> tuple[Ids, float, float]:
    """Answers, wall seconds, CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    answers = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return answers, time.perf_counter() - wall, time.process_time() - cpu


def n_parameters(checkpoint: Checkpoint) -> int:
    module: Any = checkpoint.module
    return sum(weight.numel() for weight in module.parameters())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one flat object of ratios on stdout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48, help="mean prompt length")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
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
    checkpoint = build(args)
    prompts = make_prompts(args, checkpoint)
    engine = TransformersEngine(checkpoint, batch_size=args.batch_size)
    sides: dict[str, Callable[[], Ids]] = {
        "single": lambda: one_at_a_time(checkpoint, prompts, args.new_tokens),
        "batched": lambda: batched(engine, prompts, args.new_tokens),
    }
    one_at_a_time(checkpoint, prompts[:2], 4)
    batched(engine, prompts[:2], 4)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    answers: dict[str, Ids] = {}
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("rounds", total=args.rounds * len(sides))
        for turn in range(args.rounds):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                answers[name], wall, cpu = timed(sides[name], args.device)
                times[name].append((wall, cpu))
                bar.advance(task)

    same = [a == b for a, b in zip(answers["single"], answers["batched"], strict=True)]
    pairs = list(zip(times["single"], times["batched"], strict=True))
    tokens = sum(map(len, answers["batched"]))
    found = {
        "batched_over_single": statistics.median(a[0] / b[0] for a, b in pairs),
        "batched_over_single_cpu": statistics.median(a[1] / b[1] for a, b in pairs),
        "same_text": sum(same) / len(same),
        "prompts": len(prompts),
        "tokens": tokens,
        "parameters_millions": n_parameters(checkpoint) / 1e6,
    }
    if args.json:
        print(json.dumps({name: round(float(value), 4) for name, value in found.items()}))
        return
    table = Table(title=f"{checkpoint.source}, {found['parameters_millions']:.1f} M parameters")
    for column in ("side", "tokens/s", "ratio", "CPU", "budget"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for name in sides:
        rate = f"{tokens / statistics.median(wall for wall, _ in times[name]):.0f}"
        ratios = (found["batched_over_single"], found["batched_over_single_cpu"], BUDGET)
        rest = [f"{value:.1f}" for value in ratios] if name == "batched" else []
        table.add_row(name, rate, *rest)
    Console().print(table)
    print(f"same greedy text: {sum(same)} of {len(same)}; {tokens} tokens")


if __name__ == "__main__":
    main()
