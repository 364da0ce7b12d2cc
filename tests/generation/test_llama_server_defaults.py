"""llama.cpp's own server, started with defaults that change every answer which does not object."""

import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

from mechprobe.generation.api import ApiClient, Endpoint
from mechprobe.generation.server import ServerEngine
from mechprobe.models.gguf_tokenizer import load_gguf_tokenizer
from mechprobe.models.rendering import encode

OTHERS = (
    "--repeat-penalty", "1.5", "--presence-penalty", "1.5", "--dry-multiplier", "1.0",
    "--min-p", "0.4", "--top-k", "1", "--logit-bias", "260-5", "--ignore-eos",
)  # fmt: skip


@contextmanager
def serving(binary, gguf, *options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen(
        [binary, "-m", gguf, "--host", "127.0.0.1", "--port", port, "-c", "1024", "-np", "1",
         "-t", "1", "--no-warmup", *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except OSError:
                time.sleep(0.5)
        yield Endpoint("m", f"http://127.0.0.1:{port}/v1")
    finally:
        process.kill()
        process.wait()


@pytest.mark.verify
def test_defaults_of_the_command_line_do_not_shape_answers(llama_cpp_tree, reference_files):
    binary = llama_cpp_tree / "build" / "bin" / "llama-server"
    gguf = next(reference_files.rglob("SmolLM2-135M-Instruct.Q4_1.gguf"), None)
    if not binary.is_file() or gguf is None:
        pytest.skip("no built llama-server or no SmolLM2 among the reference files")
    tokenizer = load_gguf_tokenizer(gguf)
    prompts = encode(tokenizer, ["How do I knit a scarf?", "Repeat the word blue five times."])
    bare, ours = [], []
    for options in ((), OTHERS):
        with serving(binary, gguf, *options) as endpoint:
            with ApiClient(endpoint, concurrency=1) as client:
                bare.append(
                    [client.complete(row, max_tokens=24, temperature=0.0).text for row in prompts]
                )
            with ServerEngine(endpoint, tokenizer, concurrency=1) as engine:
                ours.append([a.text for a in engine.generate(prompts, max_new_tokens=24)])
                assert engine.notes == ()
    assert all(a != b for a, b in zip(*bare, strict=True))  # the control
    assert ours[0] == ours[1] == bare[0]
