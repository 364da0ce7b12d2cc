"""AWQ and GPTQ checkpoints, written by GPTQModel, and AWQ ones by AutoAWQ."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from mechprobe.errors import CheckpointError, require
from mechprobe.models.quiet import import_gptqmodel, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Writer = Literal["gptqmodel", "autoawq"]
_PACKAGES: Final = {"gptqmodel": "gptqmodel", "autoawq": "autoawq"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights are rounded."""

    method: Literal["awq", "gptq"]
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    desc_act: bool = False


def writer_version(writer: Writer) -> str:
    """The writer's installed version; empty when it is not installed."""
    try:
        return importlib.metadata.version(_PACKAGES[writer])
    except importlib.metadata.PackageNotFoundError:
        return ""


def write_gptqmodel(
    folder: Path,
    out: Path,
    scheme: Scheme,
    ids: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
    device: str,
    seed: int,
    verbose: bool = False,
    batch_size: int = 8,
) -> None:
    """Quantize a plain folder with GPTQModel.

    GPTQModel would load any model as bfloat16 on a CPU; `dtype` keeps what is not quantized as it
    is stored. Its C++ packing, compiled on first use, is not asked for.

    Raises:
        MissingExtraError: GPTQModel is not installed.
        CheckpointError: It fails.
    """
    with quiet(seed=seed, verbose=verbose):
        gptqmodel = import_gptqmodel()
        try:
            config = gptqmodel.QuantizeConfig(
                bits=scheme.bits,
                group_size=scheme.group_size,
                sym=scheme.symmetric,
                desc_act=scheme.desc_act,
                method=scheme.method,
                format="gemm" if scheme.method == "awq" else "gptq",
                offload_to_disk=False,
                pack_impl="original",
            )
            model = gptqmodel.GPTQModel.load(str(folder), config, device=device, dtype=dtype)
            options: dict[str, Any] = {}
            if scheme.method == "awq" and torch.device(device).type == "cpu":
                options["backend"] = gptqmodel.BACKEND.AWQ_TORCH
            rows = [{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in ids]
            model.quantize(
                rows,
                batch_size=batch_size,
                tokenizer=tokenizer,
                calibration_data_min_length=1,
                **options,
            )
            model.save(str(out))
        except (RuntimeError, ValueError, KeyError, TypeError, OSError, AttributeError) as error:
            raise _failed(folder, "GPTQModel", scheme, error) from error


def write_autoawq(
    folder: Path,
    out: Path,
    scheme: Scheme,
    ids: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: str,
    seed: int,
    verbose: bool = False,
) -> None:
    """Quantize a plain folder with AutoAWQ 0.2.9, no longer maintained.

    It joins the calibration lines and cuts them into windows, and drops every line longer than
    one: the window is therefore the longest line.

    Raises:
        MissingExtraError: AutoAWQ is not installed.
        CheckpointError: It fails, or the scheme is not 4-bit AWQ.
    """
    if scheme.method != "awq" or scheme.bits != 4:
        raise CheckpointError("AutoAWQ writes 4-bit AWQ alone; use writer='gptqmodel'")
    window = max(len(row) for row in ids)
    with quiet(seed=seed, verbose=verbose):
        awq = require("awq", "autoawq")
        try:
            model = awq.AutoAWQForCausalLM.from_pretrained(
                str(folder), device_map=device, safetensors=True
            )
            model.quantize(
                tokenizer,
                quant_config={
                    "zero_point": not scheme.symmetric,
                    "q_group_size": scheme.group_size,
                    "w_bit": scheme.bits,
                    "version": "GEMM",
                },
                calib_data=[list(row) for row in ids],
                max_calib_samples=len(ids),
                max_calib_seq_len=window,
            )
            model.save_quantized(str(out))
        except (RuntimeError, ValueError, KeyError, TypeError, OSError, AttributeError) as error:
            raise _failed(folder, "AutoAWQ", scheme, error) from error


def _failed(folder: Path, writer: str, scheme: Scheme, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return CheckpointError(
        f"{folder}: {writer} cannot quantize it to {scheme.method.upper()} {scheme.bits}-bit: "
        f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    )
