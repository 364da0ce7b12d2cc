"""llama.cpp through xllamacpp: how a file is opened, and what is asked in a process of its own."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mechprobe.errors import CheckpointError, GenerationError
from mechprobe.models.gguf_file import GgufFile

Array = np.ndarray[Any, np.dtype[np.float32]]
_NORMAL: Final = 1
_ERROR: Final = "mechprobe: "
_LOADING: Final = "error loading model: "
_ASSERTION: Final = "GGML_ASSERT"
_SOUND: Final[set[tuple[Path, int, int]]] = set()
"""Files that `require_sound` has passed, with size and time of modification."""


def open_server(
    path: Path, *, context: int, parallel: int, threads: int, verbosity: int = -1
) -> Any:
    """Load a file into a server that nobody else can ask.

    Args:
        path: A `.gguf` file.
        context: Tokens for each sequence.
        parallel: Sequences decoded together.
        threads: Of the CPU.
        verbosity: What llama.cpp prints on stderr: -1 nothing, 1 errors.

    Raises:
        RuntimeError: llama.cpp cannot load the file; or ValueError.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = parallel
    params.n_ctx = context * parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = verbosity
    params.warmup = False
    params.fit_params = False
    params.cache_prompt = False
    params.slot_prompt_similarity = 0.0
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    params.swa_full = True
    # It cuts sums over 512 cells of a lone sequence by the number of threads, and they differ with
    # it: by up to 0.3 nats of a next token at Q4_1.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # The binding opens an HTTP port on the loopback; a key nobody knows keeps it shut.
    params.api_keys = [secrets.token_hex(32)]
    params.endpoint_slots = False
    params.ui = False
    params.n_threads_http = 1
    # Prompts are ids; a template that llama.cpp cannot parse would keep the file from opening.
    params.chat_template = "chatml"
    return xllamacpp.Server(params)


def anchor(file: GgufFile) -> int:
    """A token of plain ASCII. llama.cpp reports no probabilities for a step whose text is none.

    Raises:
        GenerationError: The vocabulary has none.
    """
    tokens = file.metadata["tokenizer.ggml.tokens"]
    kinds = file.metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    ends = file.metadata.get("tokenizer.ggml.eos_token_id")
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _NORMAL and i != ends and token.isascii() and token.isalnum():
            return i
    raise GenerationError(f"{file.path}: no plain ASCII token in the vocabulary")


def logprobs_apart(
    file: GgufFile, prompts: Sequence[Sequence[int]], *, threads: int, likeliest: int | None = None
) -> Array:
    """Log-probabilities (nats) of the token after each prompt, shape (n_prompts, vocabulary).

    Computed in a process of its own: where a graph of llama.cpp does not expect what a file says,
    an assertion ends the process that it runs in.

    Args:
        file: What to load.
        prompts: Token ids, one sequence after the other.
        threads: Of the CPU.
        likeliest: So many tokens of each row alone, NaN elsewhere: a large vocabulary takes
            seconds to pass on. None takes all.

    Raises:
        CheckpointError: llama.cpp cannot load the file or fails on it.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logprobs.npy"
        done = _apart(file, prompts, out, threads, likeliest)
        if done.returncode or not out.is_file():
            raise _cannot_run(file, done)
        found: Array = np.load(out)
        return found


def require_sound(file: GgufFile, *, threads: int) -> None:
    """Load a file and read a token in a process of their own, once for each file.

    In this process a failed assertion would end a run with all its other cells. An error that
    llama.cpp reports is left to whoever opens the file.

    Raises:
        CheckpointError: The process was ended by a signal.
    """
    seen = file.path.stat()
    key = (file.path.resolve(), seen.st_size, seen.st_mtime_ns)
    if key in _SOUND:
        return
    with tempfile.TemporaryDirectory() as folder:
        done = _apart(file, [[anchor(file)]], Path(folder) / "logprobs.npy", threads, 1)
    if done.returncode not in (0, 1):
        raise _cannot_run(file, done)
    _SOUND.add(key)


def _apart(
    file: GgufFile, prompts: Sequence[Sequence[int]], out: Path, threads: int, likeliest: int | None
) -> subprocess.CompletedProcess[str]:
    """Let a process of its own do what `_answer` does, and wait for its end."""
    vocabulary = len(file.metadata["tokenizer.ggml.tokens"])
    request = {
        "path": str(file.path.resolve()),
        "prompts": [list(map(int, prompt)) for prompt in prompts],
        "anchor": anchor(file),
        "vocabulary": vocabulary,
        "likeliest": min(likeliest or vocabulary, vocabulary),
        "threads": threads,
        "out": str(out),
    }
    return subprocess.run(
        [sys.executable, "-m", "mechprobe.models.llamacpp"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _cannot_run(file: GgufFile, done: subprocess.CompletedProcess[str]) -> CheckpointError:
    return CheckpointError(f"{file.path}: llama.cpp cannot run it: {_last_words(done)}")


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The failed assertion, what was wrong with the file, or else the last line of a process."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    for sign in (_ASSERTION, _LOADING, _ERROR):
        for line in lines:
            if sign in line:
                return line[line.index(sign) :].removeprefix(_LOADING).removeprefix(_ERROR)
    return lines[-1] if lines else f"it ended with status {done.returncode}"


def _answer(request: dict[str, Any]) -> None:
    vocabulary, prompts = int(request["vocabulary"]), request["prompts"]
    try:
        server = open_server(
            Path(request["path"]),
            context=max(map(len, prompts)) + 1,
            parallel=1,
            threads=int(request["threads"]),
            verbosity=1,
        )
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"{_ERROR}{str(error).splitlines()[0]}") from error
    rows = np.full((len(prompts), vocabulary), np.nan, dtype=np.float32)
    for row, prompt in enumerate(prompts):
        answer = server.handle_completions(
            {
                "prompt": [prompt],
                "temperature": 0.0,
                "samplers": ["temperature"],
                "cache_prompt": False,
                "max_tokens": 1,
                "logprobs": int(request["likeliest"]),
                "logit_bias": [[request["anchor"], 1e6]],
            }
        )
        if "choices" not in answer:
            raise SystemExit(f"{_ERROR}{json.dumps(answer)}")
        entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        rows[row, [entry["id"] for entry in entries]] = [entry["logprob"] for entry in entries]
    np.save(request["out"], rows)


if __name__ == "__main__":
    _answer(json.load(sys.stdin))
