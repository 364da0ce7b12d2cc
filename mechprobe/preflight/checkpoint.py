"""A checkpoint that a command names, looked at before it is loaded."""

from __future__ import annotations

from mechprobe.models.checkpoint import Kernel
from mechprobe.models.load import require_device
from mechprobe.models.precision import check_expected
from mechprobe.models.source import resolve_source
from mechprobe.preflight.header import Header, read_header, require_dense, require_layer
from mechprobe.preflight.problems import Problems
from mechprobe.preflight.vocabulary import require_same_vocabulary


def check_checkpoint(
    problems: Problems,
    text: str,
    *,
    revision: str | None = None,
    expect: str | None = None,
    kernel: Kernel = "dense",
    layer: int | None = None,
) -> Header | None:
    """Check a checkpoint by its headers.

    Args:
        problems: Takes what is found.
        text: Its source; one on the hub is downloaded.
        revision: Of a hub source.
        expect: The precision that must be found.
        kernel: What will run it; `dense` needs a graph.
        layer: One that it must have.

    Returns:
        Its header, None where that cannot be read.
    """
    header = None
    with problems.of("source"):
        source = resolve_source(text, revision=revision)
        with problems.of("header"):
            header = read_header(source)
    if header is not None:
        with problems.of("precision"):
            check_expected(header.quant, expect, text)
        if kernel == "dense":
            with problems.of("architecture"):
                require_dense(header)
        if layer is not None:
            with problems.of("layer"):
                require_layer(header, layer)
    return header


def check_loadable(
    problems: Problems,
    text: str,
    *,
    revision: str | None = None,
    expect: str | None = None,
    kernel: Kernel = "dense",
    device: str = "cpu",
    tokenizer: str | None = None,
) -> None:
    """Check what `mechprobe.load` is given, as far as headers show; arguments as there."""
    with problems.of("device"):
        if device != "cpu":
            require_device(device)
    header = check_checkpoint(problems, text, revision=revision, expect=expect, kernel=kernel)
    if tokenizer is not None:
        with problems.of("source"):
            renderer = resolve_source(tokenizer)
            with problems.of("vocabulary"):
                if header is not None:
                    require_same_vocabulary(header, renderer)
