"""The steps of a cell: load it, let it answer, look inside, each through the kernel it needs."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.loading import held
from mechprobe.experiments.rendered import encoded_rows, prompt_rows
from mechprobe.experiments.rundir import (
    read_json,
    read_jsonl,
    write_bytes,
    write_json,
    write_jsonl,
)
from mechprobe.experiments.steps import Task
from mechprobe.models.provenance import EXPORTED, QUANTIZED
from mechprobe.models.rendering import EncodedPrompts, require_parity
from mechprobe.progress import part_of_all

BATCH = 64
"""Prompts between two syncs: what a kill can lose. Fixed, so that a resumed run batches alike."""


def _model(task: Task) -> str:
    return str(task.step.params["cell"]["model"])


def open_checkpoint(task: Task) -> None:
    """Make the checkpoint where the spec says so, load it natively, record what the tensors say."""
    loaded = held(task, "native")
    cell, recipe = task.step.params["cell"], task.step.params["recipe"]
    checkpoint = loaded.checkpoint
    record: dict[str, Any] = {
        "source": cell["source"],
        "revision": cell["revision"],
        "digest": checkpoint.digest,
        "quant": asdict(checkpoint.quant),
        "engine": loaded.engine.name,
        "made": None,
    }
    if recipe is not None:
        notes = [*checkpoint.path.parent.glob("*.json"), *checkpoint.path.glob("mechprobe_*.json")]
        said = next((f for f in sorted(notes) if f.name in (QUANTIZED, EXPORTED)), None)
        record["made"] = {
            "to": recipe["to"],
            "writer": recipe["writer"],
            "record": read_json(said) if said else None,
        }
    write_json(task.run / task.step.outputs[0], record)


def generate(task: Task) -> None:
    """Answers of the native engine to one set of prompts, batch by batch."""
    rows = prompt_rows(task.run, _model(task), task.step.params["set"])
    journal = task.run.journal(task.step.name, task.key)
    batches = journal.read()
    journal.rewrite(batches)
    starts = range(0, len(rows), BATCH)
    for at in starts[len(batches) :]:
        task.progress(at, len(rows))
        part = rows[at : at + BATCH]
        engine = held(task, "native").engine
        answers = engine.generate(
            [row["ids"] for row in part],
            max_new_tokens=task.step.params["max_new_tokens"],
            progress=part_of_all(task.progress, at, len(part), len(rows)),
        )
        batch = [
            {
                "id": row["id"],
                "label": row["label"],
                "text": answer.text,
                "stop": answer.stop,
                "ids": list(answer.ids),
                "answer_start": answer.answer_start,
                "threads": engine.threads,
            }
            for row, answer in zip(part, answers, strict=True)
        ]
        journal.append(batch)
        batches.append(batch)
    digest = encoded_rows(rows).digest
    lines = [{**row, "prompts": digest} for batch in batches for row in batch]
    write_jsonl(task.run / task.step.outputs[0], lines)
    journal.discard()


def score_refusal(task: Task) -> None:
    """Whether each answer refuses, as every instrument reads it, and what the oracle said of it."""
    from mechprobe.behavior.refusal import get_instrument, instrument_names, is_unread
    from mechprobe.experiments.judge_steps import oracle_behaviours

    read = {name: get_instrument(name) for name in instrument_names()}
    get_instrument(task.step.params["instrument"])
    cell = (task.run / task.step.outputs[0]).parents[1]
    known = oracle_behaviours(cell, "refusal") if task.step.params["oracle"] else {}
    scored = []
    for row in read_jsonl(cell / "generations" / "refusal.jsonl"):
        text = row["text"]
        line = {"id": row["id"], "label": row["label"], "prompts": row["prompts"]}
        line["unread"] = is_unread(text)
        line |= {name: instrument(text) for name, instrument in read.items()}
        if row["id"] in known:
            line["oracle"] = known[row["id"]]
        scored.append(line)
    write_jsonl(task.run / task.step.outputs[0], scored)


def answer_questions(task: Task) -> None:
    """Log-likelihood of the four letters, by the native engine."""
    from mechprobe.experiments.questions import score_questions

    rows = prompt_rows(task.run, _model(task), "question")
    loaded = held(task, "native")
    write_jsonl(task.run / task.step.outputs[0], score_questions(loaded, encoded_rows(rows), rows))


def _gap_prompts(task: Task) -> EncodedPrompts:
    return encoded_rows(prompt_rows(task.run, _model(task), "gap"))


def native_next_token(task: Task) -> None:
    """Next-token log-probabilities of the native kernel on the prompts of the probes."""
    prompts = _gap_prompts(task)
    values = held(task, "native").engine.next_token_logprobs(prompts.ids)
    require_finite(values, task)
    buffer = io.BytesIO()
    np.savez(buffer, logprobs=values.astype(np.float32), prompts=np.array(prompts.digest))
    write_bytes(task.run / task.step.outputs[0], buffer.getvalue())


def require_finite(values: np.ndarray[Any, Any], task: Task) -> None:
    """Refuse NaN, naming the cell; minus infinity is a probability of 0."""
    from mechprobe.errors import NumericsError

    if np.isnan(values).any():
        cell = task.step.params["cell"]
        raise NumericsError(f"{cell['model']} {cell['precision']}: NaN in the next-token logits")


def read_next_token(path: Path) -> tuple[np.ndarray[Any, np.dtype[np.float32]], str]:
    """Log-probabilities (n, vocabulary) and the digest of their prompts."""
    from mechprobe.activations.npz import read_npz

    found = read_npz(path, RunDirectoryError)
    values, prompts = found.get("logprobs"), found.get("prompts")
    if values is None or prompts is None or values.ndim != 2 or values.dtype != np.float32:
        raise RunDirectoryError(
            f"{path}: damaged (no log-probabilities); run the same command again"
        )
    return values, str(prompts)


def kernel_gap(task: Task) -> None:
    """KL(native ‖ dense) of the next token, and how often both choose the same one."""
    prompts = _gap_prompts(task)
    folder = Path(task.step.outputs[0]).parent
    native, digest = read_next_token(task.run / str(folder / "next_token.npz"))
    require_parity(digest, prompts.digest, f"{task.step.params['cell']['precision']} kernel gap")
    dense = held(task, "dense").engine.next_token_logprobs(prompts.ids)
    require_finite(dense, task)
    write_json(task.run / task.step.outputs[0], compare_next_token(native, dense, digest))


def compare_next_token(
    reference: np.ndarray[Any, Any], other: np.ndarray[Any, Any], digest: str
) -> dict[str, Any]:
    """KL(reference ‖ other) in nats and top-1 agreement, over the shared vocabulary.

    Args:
        reference: Log-probabilities, shape (n, vocabulary).
        other: The same prompts; one engine may pad the vocabulary.
        digest: Of the prompts' token ids.
    """
    from mechprobe import stats

    width = min(reference.shape[1], other.shape[1])
    a, b = reference[:, :width], other[:, :width]
    kl = stats.kl_divergence(a, b)
    same = int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
    return {
        "n": len(a),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "top1_same": same,
        "top1_agreement": same / len(a),
        "prompts": digest,
    }
