"""Write a transformers checkpoint with a byte-level tokenizer as a 16-bit GGUF file.

llama.cpp's converter recognises tokenizers by a hash from a known list and rejects any other, so
models trained here go through the `gguf` package. Other tokenizers are left to that converter.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mechprobe.errors import ArchitectureError, CheckpointError, warn_of_checkpoint
from mechprobe.models.end_tokens import end_tokens, folder_end_tokens, gguf_end_tokens
from mechprobe.models.gguf_check import compare_with_source
from mechprobe.models.gguf_config import metadata_from_config
from mechprobe.models.gguf_file import read_gguf
from mechprobe.models.gguf_names import ARCHITECTURES, GgufArchitecture, architecture_of_model
from mechprobe.models.gguf_pretokenizer import pre_tokenizer_name
from mechprobe.models.gguf_tensors import add_tensors
from mechprobe.models.quantized import read_claim
from mechprobe.models.weight_files import unambiguous, weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Array = np.ndarray[Any, np.dtype[Any]]
_NORMAL: Final = 1
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_UNUSED: Final = 5
CONVERTER_VARIABLE: Final = "LLAMA_CPP_CONVERT"
"""Environment variable that names llama.cpp's `convert_hf_to_gguf.py`."""


def _merges(description: dict[str, Any]) -> list[str]:
    merges = description["model"]["merges"]
    return [m if isinstance(m, str) else " ".join(m) for m in merges]


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[int]]:
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for i in range(size):
        tokens.append(by_id.get(i, f"[PAD{i}]"))
        if i not in by_id:
            kinds.append(_UNUSED)
        elif i in added:
            kinds.append(_CONTROL if added[i].special else _USER_DEFINED)
        else:
            kinds.append(_NORMAL)
    return tokens, kinds


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before a text, and EOS behind it.

    Raises:
        CheckpointError: It adds other tokens, which GGUF cannot say.
    """
    text = "a"
    bare, ids = (tokenizer(text, add_special_tokens=add)["input_ids"] for add in (False, True))
    for bos, eos in itertools.product((False, True), repeat=2):
        before = [tokenizer.bos_token_id] if bos else []
        if [*before, *bare, *([tokenizer.eos_token_id] if eos else [])] == ids:
            return bos, eos
    raise CheckpointError(
        f"{tokenizer.name_or_path}: the tokenizer reads {text!r} as "
        f"{tokenizer.convert_ids_to_tokens(ids)}; a GGUF file can say that BOS comes first and EOS "
        "last, nothing else"
    )


def _more_ends(folder: Path, tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, int]:
    """Ids by the keys that declare them, at which llama.cpp would not stop for EOS or a name."""
    known = end_tokens(tokenizer.get_vocab(), {"eos": tokenizer.eos_token_id})
    more = sorted(i for i in folder_end_tokens(folder) - known if i < size)
    return dict(zip(("eot", "eom"), more, strict=False))


def _ends_lost(folder: Path, file: Path) -> tuple[str, ...]:
    """What to say of ids that end an answer of the folder and that llama.cpp runs past."""
    metadata = read_gguf(file).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    lost = sorted(folder_end_tokens(folder) - gguf_end_tokens(metadata))
    names = ", ".join(repr(tokens[i]) for i in lost if i < len(tokens))
    return (f"answers of the folder end at {names}, those of the file do not",) if names else ()


def _add_tokenizer(
    writer: Any,
    tokenizer: PreTrainedTokenizerBase,
    description: dict[str, Any],
    size: int,
    ends: dict[str, int],
) -> None:
    """Vocabulary, merges and special tokens, so that llama.cpp cuts text into the same ids."""
    tokens, kinds = _vocabulary(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(description))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(_merges(description))
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for key, token in ends.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    bos, eos = _added(tokenizer)
    writer.add_add_bos_token(bos)
    writer.add_add_eos_token(eos)
    own = tokenizer.chat_template
    templates = {"default": own} if isinstance(own, str) else dict(own or {})
    for name, template in sorted(templates.items()):
        key = "" if name == "default" else f".{name}"
        writer.add_string(f"tokenizer.chat_template{key}", template)
    if names := sorted(templates.keys() - {"default"}):
        writer.add_array("tokenizer.chat_templates", names)


def _add_metadata(writer: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, str(value))


_FLOAT_KEYS: Final = ("scale", "epsilon", "softcapping", "factor", "freq_base")


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """Configs hold whole numbers where llama.cpp demands a float."""
    return {
        key: float(value) if type(value) is int and key.endswith(_FLOAT_KEYS) else value
        for key, value in values.items()
    }


def _metadata(
    folder: Path, config: PretrainedConfig, architecture: GgufArchitecture
) -> tuple[dict[str, Any], dict[str, Array]]:
    """`metadata_from_config`, whose refusals name the folder."""
    try:
        return metadata_from_config(config, architecture)
    except ArchitectureError as error:
        raise ArchitectureError(
            f"{folder}: {error}; measure the folder itself, or a copy whose config.json is changed"
        ) from error


def _write(folder: Path, out: Path, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    from gguf import GGUFWriter, LlamaFileType

    from mechprobe.models.hf import read_config

    config = read_config(folder, trust_remote_code=False)
    architecture = architecture_of_model(config.model_type)
    metadata, factors = _metadata(folder, config, architecture)
    writer = GGUFWriter(out, architecture.name, use_temp_file=True)
    # No general.name: llama.cpp guesses at tokenizers by it and dies on a guess that does not fit.
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(config.vocab_size)
    _add_metadata(writer, _typed(metadata))
    ends = _more_ends(folder, tokenizer, config.vocab_size)
    _add_tokenizer(writer, tokenizer, json.loads(text), config.vocab_size, ends)
    for name, array in factors.items():
        writer.add_tensor(name, array)
    add_tensors(writer, folder, config, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _require_same_graph(folder: Path) -> None:
    """Refuse what llama.cpp's graph computes otherwise, whoever writes the file.

    Architectures outside the table are left to the comparison.
    """
    from mechprobe.models.hf import read_config

    config = read_config(folder, trust_remote_code=False).get_text_config()
    if any(config.model_type in architecture.model_types for architecture in ARCHITECTURES):
        _metadata(folder, config, architecture_of_model(config.model_type))


def _converter(folder: Path) -> str:
    """Path of llama.cpp's converter, for a folder that only it can write."""
    named = os.environ.get(CONVERTER_VARIABLE) or shutil.which("convert_hf_to_gguf.py")
    if not named:
        raise CheckpointError(
            f"{folder}: its tokenizer needs llama.cpp's converter; put convert_hf_to_gguf.py on "
            f"PATH or name it in {CONVERTER_VARIABLE}, or pass an F16 .gguf"
        )
    return named


def _convert_with_llama_cpp(folder: Path, out: Path) -> None:
    import sys

    named = _converter(folder)
    with unambiguous(weight_files(folder)) as readable:
        command = [sys.executable, named, str(readable), "--outtype", "f16", "--outfile", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        last = last.replace(str(readable), str(folder))
        raise CheckpointError(f"{folder}: convert_hf_to_gguf.py failed: {last}")


def require_writable(model_dir: Path) -> tuple[PreTrainedTokenizerBase, str | None]:
    """Refuse a folder that cannot become a GGUF, as far as its configuration shows.

    Returns:
        Its tokenizer, and that tokenizer's description; None where llama.cpp's converter is needed.

    Raises:
        CheckpointError: It is quantized, lacks a usable tokenizer, or there is no converter.
        ArchitectureError: llama.cpp computes something else where `config.json` has a field.
    """
    from transformers import AutoTokenizer

    from mechprobe.models.hf import read_config

    if (claim := read_claim(model_dir)).method != "none":
        raise CheckpointError(
            f"{model_dir}: is {claim.method.upper()} already; make a GGUF from the 16-bit folder"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model_dir}: no tokenizer could be loaded") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else "{}"
    if pre_tokenizer_name(json.loads(text)) is None:
        _require_same_graph(model_dir)
        _converter(model_dir)
        return tokenizer, None
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{model_dir}: the tokenizer has no end-of-sequence token")
    config = read_config(model_dir, trust_remote_code=False)
    _metadata(model_dir, config, architecture_of_model(config.model_type))
    return tokenizer, text


def write_f16_gguf(model_dir: Path, out: Path) -> Path:
    """Write a model folder as an F16 GGUF, whole or not at all, and compare it with the folder.

    The logits of the folder in transformers, of the file in the dense graph and of the file in
    llama.cpp are compared; how far they are apart is recorded in `<out>.json`.

    Args:
        model_dir: A transformers folder with safetensors weights. A byte-level BPE tokenizer that
            cuts text as GPT-2, Llama 3, Qwen2 or SmolLM do is written here; for any other,
            llama.cpp's own converter is called.
        out: The `.gguf` to write; replaced if it exists.

    Returns:
        `out`.

    Raises:
        CheckpointError: Weights or tokenizer are missing or unfit, there is no converter, or the
            file would be another model.
        ArchitectureError: The architecture cannot be written, or llama.cpp computes something else
            where `config.json` has a field; the message names it.
    """
    tokenizer, text = require_writable(model_dir)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    half_written = temporary.with_suffix(".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if text is None:
            _convert_with_llama_cpp(model_dir, temporary)
        else:
            _write(model_dir, temporary, tokenizer, text)
        comparison = compare_with_source(temporary, model_dir, converted=text is None)
        lost = _ends_lost(model_dir, temporary)
        comparison = replace(comparison, notes=(*comparison.notes, *lost))
        warn_of_checkpoint(str(model_dir), comparison.notes)
        writer = "convert_hf_to_gguf.py" if text is None else "mechprobe (gguf)"
        record = {"writer": writer, "compared": asdict(comparison)}
        half_written.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        half_written.replace(out.with_name(f"{out.name}.json"))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
        half_written.unlink(missing_ok=True)
    return out
