"""What `generation.py` compares: the model, the prompts, and both sides of each ratio."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from mechprobe.generation import Sampling
from mechprobe.generation.base import stream_seed
from mechprobe.generation.graph import stop_ids
from mechprobe.generation.sampling import Sampler
from mechprobe.models.checkpoint import Checkpoint
from mechprobe.models.load import load_checkpoint

VOCABULARY = 8192
Ids = list[list[int]]


def build(args: argparse.Namespace, folder: Path) -> tuple[Checkpoint, Path]:
    """A random-weight Llama, or the checkpoint named by `--model`; and the same as GGUF F16."""
    source = args.model
    if source is None:
        source = str(_random_llama(args, folder / "random-llama"))
    from mechprobe.models.quantize import quantize

    gguf = quantize(source, "F16", folder / "model-F16.gguf")
    dtype = getattr(torch, args.dtype)
    return load_checkpoint(source, dtype=dtype, device=args.device), gguf


def _random_llama(args: argparse.Namespace, folder: Path) -> Path:
    from mechprobe.models.tokenizer import load_tokenizer
    from mechprobe.organisms import organism_path

    torch.manual_seed(0)
    tokenizer = load_tokenizer(organism_path("llama-s"))
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=args.width,
        intermediate_size=int(args.width * 2.75) // 32 * 32,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        num_key_value_heads=max(args.width // 128, 1),
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # 16-bit values from the start, so that the float32 graph and the F16 file hold the same ones
    transformers.LlamaForCausalLM(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_prompts(args: argparse.Namespace, checkpoint: Checkpoint) -> Ids:
    """The built-in requests for a real model; random ids, half of them shared, for a random one."""
    if args.model:
        from mechprobe.behavior.prompts import load_builtin
        from mechprobe.models.rendering import encode

        texts = load_builtin().texts(split="test")[: args.prompts]
        return [list(row) for row in encode(checkpoint.tokenizer, texts).ids]
    draw = torch.Generator().manual_seed(1)
    most = len(checkpoint.tokenizer)
    head = torch.randint(4, most, (args.tokens // 2,), generator=draw).tolist()
    own = torch.randint(1, args.tokens + 1, (args.prompts,), generator=draw).tolist()
    return [head + torch.randint(4, most, (length,), generator=draw).tolist() for length in own]


class _Race(transformers.LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Makes transformers' own `generate` draw what mechprobe draws for one sample."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], sample: int) -> None:
        self.sampler = Sampler(sampling, [prompt])
        self.sample = sample

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        chosen = self.sampler.draw(scores, [self.sample])
        return torch.zeros_like(scores).scatter(1, chosen.unsqueeze(1), 1.0)


def one_at_a_time(
    checkpoint: Checkpoint, prompts: Ids, new: int, sampling: Sampling | None = None
) -> Ids:
    """A loop over prompts (and samples), each through transformers' own `generate`."""
    module: Any = checkpoint.module
    ends = stop_ids(checkpoint)
    answers = []
    for row in prompts:
        for sample in range(sampling.samples if sampling else 1):
            ids = torch.tensor([row], device=module.device)
            out = module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                logits_processor=[_Race(sampling, row, sample)] if sampling else [],
                eos_token_id=sorted(ends) or None,
                pad_token_id=0,
            )[0, len(row) :].tolist()
            answers.append(out[:-1] if out and out[-1] in ends else out)
    return answers


def first_gap(checkpoint: Checkpoint, prompt: list[int], a: list[int], b: list[int]) -> float:
    """How far apart the model holds two answers where they first differ.

    Returns:
        Difference of the two tokens' logits in standard deviations of the logits; 0 for equal
        answers.
    """
    if a == b:
        return 0.0
    pairs = enumerate(zip(a, b, strict=False))
    at = next((i for i, (x, y) in pairs if x != y), None)
    if at is None:
        return float("inf")  # one ended where the other went on
    module: Any = checkpoint.module
    with torch.no_grad():
        ids = torch.tensor([prompt + a[:at]], device=module.device)
        logits = module(ids).logits[0, -1].float()
    return float((logits[a[at]] - logits[b[at]]).abs() / logits.std())


class SequentialLlamaCpp:
    """llama.cpp as its binding gives it: one slot, a prompt at a time, beginnings reused.

    Its defaults, but for the prompts it would remember from one round to the next.
    """

    def __init__(self, gguf: Path, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_parallel = 1
        params.n_ctx = 1024
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = -1
        params.fit_params = False
        params.cache_ram_mib = 0
        self._server = xllamacpp.Server(params)

    def answer(self, prompts: Ids, new: int, end: int | None) -> Ids:
        """Greedy ids of each prompt, the end of sequence left out."""
        answers = []
        for row in prompts:
            found = self._server.handle_completions(
                {"prompt": row, "max_tokens": new, "temperature": 0.0,
                 "return_tokens": True, "verbose": True}
            )  # fmt: skip
            ids = list(found["__verbose"]["tokens"])
            answers.append(ids[:-1] if ids and ids[-1] == end else ids)
        return answers

    def draw(self, prompts: Ids, new: int, tokenizer: Any, sampling: Sampling) -> Ids:
        """Each sample of each prompt by itself, with the seed that the engine gives it."""
        answers = []
        for row in prompts:
            for sample in range(sampling.samples):
                found = self._server.handle_completions(
                    {"prompt": row, "max_tokens": new, "temperature": sampling.temperature,
                     "top_p": sampling.top_p, "top_k": sampling.top_k,
                     "samplers": ["temperature", "top_k", "top_p"],
                     "seed": stream_seed(sampling.seed, row) % (1 << 31) + sample,
                     "return_tokens": True, "verbose": True}
                )  # fmt: skip
                ids = list(found["__verbose"]["tokens"])
                ended = ids and ids[-1] == tokenizer.eos_token_id
                answers.append(ids[:-1] if ended else ids)
        return answers
