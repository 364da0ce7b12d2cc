"""Packed weights run as they are: GPTQModel's own loader and kernels in a transformers graph.

The quantized linear layers sit where the dense ones would, so the architecture table's paths,
and hooks, hold. Which kernel and number type ran is written into the checkpoint's notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from mechprobe.errors import CheckpointError
from mechprobe.models.checkpoint import QuantInfo
from mechprobe.models.hf import add_generation_config
from mechprobe.models.quiet import import_gptqmodel, quiet
from mechprobe.models.weight_files import WeightFiles, unambiguous

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATEN_GROUPS: Final = (16, 32, 64, 128)
_DTYPES: Final = (torch.float16, torch.bfloat16)


def load_native(
    weights: WeightFiles,
    quant: QuantInfo,
    *,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load an AWQ or GPTQ checkpoint onto GPTQModel's kernels.

    Args:
        weights: The weight files of the checkpoint's folder.
        quant: What `inspect_tensors` found.
        dtype: Type of activations and of what is not quantized; float16 or bfloat16. The CPU
            kernels have no float32, so that becomes float16, which a note records.
        device: `cpu` or a CUDA device; on CUDA the fastest kernel that fits is chosen.
        trust_remote_code: Allow an architecture that is code in the repository.

    Returns:
        The graph in eval mode, and notes on kernel and dtype.

    Raises:
        MissingExtraError: GPTQModel is not installed.
        CheckpointError: The format has no native kernel here, or GPTQModel cannot load it.
    """
    folder = weights.folder
    if quant.method not in ("awq", "gptq"):
        raise CheckpointError(
            f"{folder}: no native kernel for {quant.method} {quant.precision}; use kernel='dense'"
        )
    notes = []
    if dtype not in _DTYPES:
        notes.append(f"native kernels have no {_name(dtype)}; float16 ran")
        dtype = torch.float16
    with quiet(), unambiguous(weights) as readable:
        gptqmodel = import_gptqmodel()
        backend = gptqmodel.BACKEND[pick_backend(quant, device)]
        try:
            loaded = gptqmodel.GPTQModel.load(
                str(readable),
                device=device,
                backend=backend,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            said = str(error).replace(str(readable), str(folder))
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            raise CheckpointError(
                f"{folder}: GPTQModel cannot load it natively "
                f"({lines[0] if lines else type(error).__name__}); use kernel='dense'"
            ) from error
    model: Any = loaded.model
    add_generation_config(model, folder)
    model.eval().requires_grad_(False)
    if torch.device(device).type == "cpu":
        for layer in model.modules():
            # TorchLinear hides its dequantization behind torch.compile: a C++ compiler and half a
            # minute on first use, for the same numbers.
            if hasattr(layer, "qweight"):
                vars(layer).pop("dequantize_weight", None)
    kernels = sorted({type(m).__name__ for m in model.modules() if hasattr(m, "qweight")})
    ran = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
    notes.append(f"native kernel {', '.join(kernels) or 'unknown'}, {_name(ran)}, on {device}")
    return model, tuple(notes)


def pick_backend(quant: QuantInfo, device: str) -> str:
    """Name of the GPTQModel backend: on a CPU one that neither compiles nor rounds activations."""
    if torch.device(device).type != "cpu":
        return "AUTO"
    prefix = quant.method.upper()
    if quant.bits == 4 and quant.group_size in _ATEN_GROUPS:
        return f"{prefix}_TORCH_ATEN"
    return f"{prefix}_TORCH"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
