"""GPTQModel in a quiet room: what importing and running it changes in the process is put back.

Seen with GPTQModel 7.6 and its Tokenicer 0.0.14: a banner and several hundred lines of progress
on stdout for a two-layer model; `logging.basicConfig(INFO)` on the root logger; `HF_HOME` and
three more cache variables pointed into the temporary folder; `PYTORCH_ALLOC_CONF`,
`CUDA_DEVICE_ORDER`, `KMP_DUPLICATE_LIB_OK` and `AWQ_BATCH_SIZE` set; the random generators
advanced. Default dtype, thread count and gradient mode are left alone. Its worker threads stay:
they are daemons and idle.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from types import ModuleType

from mechprobe.errors import require


@contextmanager
def quiet() -> Iterator[None]:
    """Run a chatty library and restore environment, loggers, warnings, dtype and threads."""
    import huggingface_hub.constants as hub
    import torch
    from transformers.utils import logging as hf_logging

    environment = dict(os.environ)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    dtype, threads, grad = (
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
    )  # fmt: skip
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    # Without these, Tokenicer sends every later download of the process to the temporary folder.
    os.environ.setdefault("HF_HOME", hub.HF_HOME)
    os.environ.setdefault("HF_HUB_CACHE", hub.HF_HUB_CACHE)
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it fails on two cores without it
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            hf_logging.set_verbosity_error()
            hf_logging.disable_progress_bar()
            stack.enter_context(redirect_stdout(io.StringIO()))
            if not sys.stderr.isatty():
                # On a terminal, stderr shows the caller's own progress.
                stack.enter_context(redirect_stderr(io.StringIO()))
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        root.handlers[:] = handlers
        root.setLevel(level)
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)


def import_gptqmodel() -> ModuleType:
    """Import GPTQModel inside `quiet`, or say which line installs it.

    Raises:
        MissingExtraError: It is not installed.
    """
    return require("gptqmodel", "quant")
