"""Quantize a model for real: AWQ, GPTQ, or a level of llama.cpp's ladder.

A GGUF file that the target is not made from is dequantized into a folder first (`models.export`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mechprobe.errors import CheckpointError, warn_of_checkpoint
from mechprobe.models import export
from mechprobe.models.located import lying_at
from mechprobe.models.makeable import (
    TARGETS,
    THROUGH,
    makeable_level,
    needs_export,
    require_makeable,
)
from mechprobe.models.provenance import QUANTIZED, dequantized_from
from mechprobe.models.source import Source, resolve_source
from mechprobe.models.weight_files import unambiguous, weight_files
from mechprobe.models.weights import (
    digest_files,
    read_json,
    read_table,
    stored_dtype,
)
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from mechprobe.models.quantize_awq_gptq import Writer


def quantize(
    model: str,
    to: str,
    out: Path,
    *,
    calibration: Sequence[str] | None = None,
    calibration_name: str | None = None,
    writer: Writer = "gptqmodel",
    group_size: int | None = None,
    symmetric: bool | None = None,
    desc_act: bool = False,
    device: str = "cpu",
    seed: int = 0,
    verbose: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write a quantized checkpoint, whole or not at all, with a record of how it was made.

    Args:
        model: Any source: an unquantized folder or a `.gguf`. Of a quantized `.gguf` the result
            records what it was dequantized from.
        to: `awq`, `gptq`, `gptq-int8`, or any level that llama.cpp writes: `F16`, `Q4_0`, ….
            `FP16` and `FP32` are the folder that `export` writes.
        out: The folder to write; for GGUF levels a `.gguf` file, or a folder to put one in.
            It must not exist.
        calibration: User messages for AWQ and GPTQ; `mechprobe.quantize` has a default.
        calibration_name: What the record calls them.
        writer: `gptqmodel`, or `autoawq` for AWQ.
        group_size: Input features that share a scale; -1 is a whole row. None is 128, or the larger
            of 64 and 32 that divides every width where 128 does not.
        symmetric: Zero points in the middle. None is the formats' habit: AWQ asymmetric, GPTQ
            symmetric.
        desc_act: GPTQ's activation ordering.
        device: Where the quantizer computes.
        seed: Of the writer. The same seed gives the same tensors on the same
            kind of processor: the number of threads is fixed. On a GPU nobody promises that.
        verbose: Let the writer print.
        progress: Told of layers done and in all by GPTQModel, of tensors by llama.cpp.

    Returns:
        `out`, or the `.gguf` file inside it.

    Raises:
        CheckpointError: The model is quantized already, the target is unknown, `out` holds
            something, or the writer fails.
        MissingExtraError: The writer is not installed.
    """
    out = Path(out)
    if out.exists() and not (out.suffix.lower() != ".gguf" and export.may_fill(out)):
        advice = "remove it or choose another (--out)"
        file = out / f"model-{to.upper()}.gguf"
        is_level = {to.lower(), to.upper()}.isdisjoint({*TARGETS, *export.TARGETS})
        if is_level and out.is_dir() and not file.exists():
            advice = f"a further level goes to a file of its own, {file} (--out)"
        raise CheckpointError(f"{out}: exists already; {advice}")
    lower = to.lower()
    source = resolve_source(model)
    if (dtype := export.TARGETS.get(to.upper())) is not None:
        return export.export(model, out, dtype=dtype, device=device)
    if needs_export(source, to):
        require_makeable(source, to, writer)
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            folder = export.export(
                model, Path(scratch) / "export", dtype=export.TARGETS[THROUGH], device=device
            )
            with lying_at({source.text: folder}):
                return quantize(
                    model, to, out, calibration=calibration, calibration_name=calibration_name,
                    writer=writer, group_size=group_size, symmetric=symmetric, desc_act=desc_act,
                    device=device, seed=seed, verbose=verbose, progress=progress,
                )  # fmt: skip
    if lower not in TARGETS:
        level = makeable_level(source, to)
        out.parent.mkdir(parents=True, exist_ok=True)
        return _quantize_gguf(source, level, out, progress)
    require_makeable(source, to, writer)
    out.parent.mkdir(parents=True, exist_ok=True)
    from mechprobe.models.calibration import calibration_ids, named_calibration
    from mechprobe.models.quantize_awq_gptq import (
        THREADS,
        Job,
        Scheme,
        fitting_group_size,
        write,
        writer_version,
    )
    from mechprobe.models.tokenizer import load_tokenizer

    folder = source.path
    weights = weight_files(folder)
    warn_of_checkpoint(source.text, weights.warnings)
    table = read_table(weights.files)
    scheme = Scheme(
        method="awq" if lower == "awq" else "gptq",
        bits=8 if lower == "gptq-int8" else 4,
        group_size=fitting_group_size(table.values()) if group_size is None else group_size,
        symmetric=lower != "awq" if symmetric is None else symmetric,
        desc_act=desc_act,
    )
    dtype = stored_dtype(table)
    config = read_json(folder / "config.json")
    prompts = named_calibration(calibration, calibration_name)
    window = min(int(config.get("max_position_embeddings") or 512), 512)
    ids = calibration_ids(prompts, load_tokenizer(folder), window)
    record = {
        "source": source.text,
        "source_digest": digest_files(weights.files),
        "dequantized_from": dequantized_from(folder),
        "to": lower,
        "writer": writer,
        "writer_version": writer_version(writer),
        **asdict(scheme),
        "calibration": {
            "name": prompts.name,
            "digest": prompts.digest,
            "prompts": len(prompts.texts),
            "tokens": sum(map(len, ids)),
        },
        "seed": seed,
        "threads": THREADS,
    }
    temporary = export.beside(out)
    kept = "bfloat16" if dtype == "bfloat16" else "float16"
    try:
        with unambiguous(weights) as readable:
            job = Job(str(readable), str(temporary), writer, scheme, ids, kept, device, seed)
            write(job, source.text, verbose=verbose, progress=progress)
        _make_self_contained(folder, temporary, config)
        _write_json(temporary / QUANTIZED, record)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _make_self_contained(folder: Path, out: Path, config: dict[str, Any]) -> None:
    """Give the result the source's configuration and tokenizer, its quantization added.

    Both writers edit them in passing (`use_cache`, `pad_token_id`, `do_sample`, a local temporary
    path), and a cell and its baseline shall differ in weights alone.
    """
    written = read_json(out / "config.json").get("quantization_config")
    if not isinstance(written, dict):
        raise CheckpointError(f"{folder}: the writer left no quantization_config")
    (written.get("meta") or {}).pop("offload_to_disk_path", None)
    (out / "quant_log.csv").unlink(missing_ok=True)
    if (out / "quantize_config.json").is_file():
        _write_json(out / "quantize_config.json", written)
    for name in export.TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)
    _write_json(out / "config.json", {**config, "quantization_config": written})


def _quantize_gguf(source: Source, level: str, out: Path, progress: Progress) -> Path:
    from mechprobe.models.gguf_write import write_f16_gguf
    from mechprobe.models.quantize_gguf import quantize_gguf

    folder = out if out.suffix.lower() != ".gguf" else out.parent
    temporary = export.beside(out)
    temporary.mkdir()
    try:
        name = out.name if folder is not out else f"model-{level}.gguf"
        made, f16 = temporary / name, source.path
        sidecar = made.with_name(f"{name}.json")
        origin = dequantized_from(source.path)
        record: dict[str, Any] = {"source": source.text, "dequantized_from": origin, "to": level}
        if source.kind == "folder":
            f16 = temporary / ".f16.gguf"
            weights = weight_files(source.path)
            warn_of_checkpoint(source.text, weights.warnings)
            write_f16_gguf(source.path, f16)
            record["source_digest"] = digest_files(weights.files)
            compared = f16.with_name(f"{f16.name}.json")
        else:
            record["source_digest"] = digest_files([f16])
        if level == "F16" and source.kind == "folder":
            f16.replace(made)
            compared.replace(sidecar)
        else:
            quantize_gguf(f16, level, made, source=source.text, progress=progress)
            if source.kind == "folder":
                record["f16"] = read_json(compared)
                f16.unlink()
                compared.unlink()
        record |= read_json(sidecar)
        sidecar.unlink()
        if folder is out:
            _write_json(temporary / QUANTIZED, record)
            temporary.replace(out)
            return out / name
        _write_json(sidecar, record)
        sidecar.replace(folder / sidecar.name)
        made.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
