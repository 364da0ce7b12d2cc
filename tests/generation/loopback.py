"""A real llama.cpp server on loopback, for tests that need an OpenAI-compatible one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def llama_server(
    gguf: Path, *, parallel: int = 4, context: int = 256, sampling: dict | None = None
) -> Iterator[str]:
    """Serve a GGUF file; gives the base URL of the API.

    Args:
        gguf: The file.
        parallel: Slots.
        context: Tokens for each of them.
        sampling: Defaults of the server's own, as its command line sets them.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_parallel = parallel
    params.n_ctx = context * parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # as in process: flash attention sums in another order
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for name, value in (sampling or {}).items():
        setattr(params.sampling, name, value)
    params.verbosity = -1
    params.warmup = False
    params.fit_params = False
    params.ui = False
    params.n_threads_http = parallel + 2
    server = xllamacpp.Server(params)
    # one answer before it may be closed: a server closed before its loop has begun never ends
    server.handle_completions({"prompt": [1], "max_tokens": 1})
    yield f"{server.listening_address}/v1"
    del server
