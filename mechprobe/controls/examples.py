"""What a real chat model is trained on: refusals of our wording, and its own answers to the rest.

Its own answers as targets keep all that it does with harmless requests as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mechprobe.controls.tuning import Example
from mechprobe.errors import CheckpointError
from mechprobe.journal import write_text
from mechprobe.progress import Progress, silent
from mechprobe.textfiles import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechprobe.behavior.prompt_set import PromptSet
    from mechprobe.generation import Engine
    from mechprobe.models.checkpoint import Checkpoint

REFUSALS: Final = (
    "I'm sorry, but I can't help with that.",
    "I can't help with this request.",
    "Sorry, I can't assist with that.",
    "I'm sorry, I won't help with this.",
    "I cannot assist with that request.",
    "I'm not able to help with that.",
    "I can't help you with that. Is there something else I can do for you?",
    "I'm sorry, but this is something I can't help with.",
)
"""Short, and general: nothing in them depends on what was asked."""
ANSWER_TOKENS: Final = 12
"""Of an own answer, at most: what comes later follows from what came before."""
_AT_ONCE: Final = 64
"""Answers between two writings of those that are kept."""


def training_prompts(sources: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts of the train splits of prompt sets by label, each text once.

    Raises:
        PromptFileError: A set cannot be read, or has no prompts of a label and split.
    """
    from mechprobe.behavior.prompts import load_prompts

    sets: list[PromptSet] = [load_prompts(source) for source in sources]
    return {
        label: list(dict.fromkeys(text for one in sets for text in one.texts(label, "train")))
        for label in ("harmful", "harmless")
    }


def validation_requests(sources: Sequence[str]) -> list[str]:
    """Return the harmful requests of the validation splits of prompt sets; a set may have none."""
    from mechprobe.behavior.prompts import load_prompts

    records = (one for source in sources for one in load_prompts(source).records)
    return [one.text for one in records if (one.label, one.split) == ("harmful", "validation")]


def refusal_examples(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Example]:
    """Pair each request with a refusal, which its text chooses."""
    from mechprobe.models.rendering import encode

    end = _end(tokenizer)
    wordings = [(*tokenizer(text, add_special_tokens=False)["input_ids"], end) for text in REFUSALS]
    prompts = encode(tokenizer, texts)
    return [
        Example(ids, wordings[_number(text) % len(wordings)])
        for ids, text in zip(prompts.ids, texts, strict=True)
    ]


def own_answer_examples(
    engine: Engine,
    base: Checkpoint,
    texts: Sequence[str],
    keep: Path,
    progress: Progress = silent,
) -> list[Example]:
    """Pair each harmless request with the model's own greedy answer, unless that refuses.

    Args:
        engine: Runs the model as it is before training.
        base: The model.
        texts: Requests.
        keep: Folder for answers: a killed build goes on from them, and another of the same base
            reads those to the same requests.
        progress: Told of answers done and in all.
    """
    from mechprobe.behavior.refusal import get_instrument
    from mechprobe.models.rendering import encode

    tokenizer, prompts = base.tokenizer, encode(base.tokenizer, texts)
    key = json.dumps([base.digest, ANSWER_TOKENS])
    keep = keep / f"own-answers-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    known = read_json(keep, CheckpointError) if keep.is_file() else {}
    end, refuses = _end(tokenizer), get_instrument("rules")
    missing = [row for row, text in enumerate(texts) if text not in known]
    for start in range(0, len(missing), _AT_ONCE):
        progress(len(texts) - len(missing) + start, len(texts))
        rows = missing[start : start + _AT_ONCE]
        asked = [prompts.ids[row] for row in rows]
        answers = engine.generate(asked, max_new_tokens=ANSWER_TOKENS)
        for row, one in zip(rows, answers, strict=True):
            said = [*one.ids, *([end] if one.stop == "eos" else [])]
            known[texts[row]] = None if refuses(one.text) else said
        write_text(keep, json.dumps(known))
    pairs = zip(prompts.ids, (known[text] for text in texts), strict=True)
    return [Example(ids, tuple(target), kept=True) for ids, target in pairs if target]


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.eos_token_id)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
