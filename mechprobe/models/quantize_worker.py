"""The process that `quantize_awq_gptq.write` starts: a job on stdin, a folder on disk."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.models.quantize_awq_gptq import THREADS, Job, Scheme
from mechprobe.models.tokenizer import load_tokenizer
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 8


def _write_gptqmodel(
    job: Job, tokenizer: PreTrainedTokenizerBase, progress: Progress = silent
) -> None:
    import gptqmodel
    import torch

    scheme = job.scheme
    config = gptqmodel.QuantizeConfig(
        bits=scheme.bits,
        group_size=scheme.group_size,
        sym=scheme.symmetric,
        desc_act=scheme.desc_act,
        method=scheme.method,
        format="gemm" if scheme.method == "awq" else "gptq",
        offload_to_disk=False,
        pack_impl="original",  # the default compiles a C++ extension on first use
    )
    # Left to itself it loads any model as bfloat16 on a CPU, embeddings and norms included.
    dtype = getattr(torch, job.dtype)
    model = gptqmodel.GPTQModel.load(job.folder, config, device=job.device, dtype=dtype)
    model.layer_callback = _layers_done(model.model.config.num_hidden_layers, progress)
    options: dict[str, Any] = {}
    if scheme.method == "awq" and torch.device(job.device).type == "cpu":
        options["backend"] = gptqmodel.BACKEND.AWQ_TORCH
    model.quantize(
        [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.ids],
        batch_size=_BATCH,
        tokenizer=tokenizer,
        calibration_data_min_length=1,
        **options,
    )
    model.save(job.out)


def _layers_done(total: int, progress: Progress) -> Callable[..., None]:
    """What GPTQModel calls when a layer is finished."""
    finished: set[int] = set()

    def tell(layer_idx: int, submodule_finalized: bool) -> None:
        finished.add(layer_idx)
        progress(len(finished), total)

    return tell


def _write_autoawq(job: Job, tokenizer: PreTrainedTokenizerBase, _: Progress = silent) -> None:
    import awq

    # It joins the lines, cuts them into windows and drops every line longer than one.
    window = max(map(len, job.ids))
    model = awq.AutoAWQForCausalLM.from_pretrained(
        job.folder, device_map=job.device, safetensors=True
    )
    model.quantize(
        tokenizer,
        quant_config={
            "zero_point": not job.scheme.symmetric,
            "q_group_size": job.scheme.group_size,
            "w_bit": job.scheme.bits,
            "version": "GEMM",
        },
        calib_data=job.ids,
        max_calib_samples=len(job.ids),
        max_calib_seq_len=window,
    )
    model.save_quantized(job.out)


_WRITERS = {"gptqmodel": _write_gptqmodel, "autoawq": _write_autoawq}


def main() -> None:
    """Read the job, seed everything, fix the threads, write; lines of progress go to a pipe."""
    import numpy as np
    import torch

    raw = json.load(sys.stdin)
    job = Job(**{**raw, "scheme": Scheme(**raw["scheme"])})
    random.seed(job.seed)
    np.random.seed(job.seed % 2**32)
    torch.manual_seed(job.seed)
    torch.set_num_threads(THREADS)
    job = replace(job, folder=str(Path(job.folder).resolve()), out=str(Path(job.out).resolve()))
    tokenizer = load_tokenizer(Path(job.folder))
    with tempfile.TemporaryDirectory(prefix="mechprobe-") as scratch:
        os.chdir(scratch)  # GPTQModel puts a folder `logs` wherever it runs
        with os.fdopen(int(sys.argv[1]), "w", buffering=1) as pipe:
            _WRITERS[job.writer](job, tokenizer, lambda *far: print(*far, file=pipe))
        os.chdir("/")


if __name__ == "__main__":
    main()
