"""`hf:CLASSIFIER`: a transformers sequence classifier as judge, from the hub or a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from mechprobe.behavior.judges.base import LABELS, Opinion
from mechprobe.behavior.refusal import RefusalLabel
from mechprobe.errors import CheckpointError, JudgeError, SpecError, warn_of_checkpoint
from mechprobe.models.source import resolve_source
from mechprobe.models.weight_files import weight_files
from mechprobe.models.weights import digest_files
from mechprobe.textfiles import read_object

_SPELLED = re.compile(r"hf:(?P<model>[^#@]+)(?:@(?P<revision>[^#]+))?(?:#(?P<settings>.+))?")
_KNOWN: Mapping[str, RefusalLabel] = {
    **{label.lower(): label for label in LABELS},
    "refusal": "FULL_REFUSAL",
    "rejection": "FULL_REFUSAL",
    "normal": "COMPLIANCE",
}
_BATCH = 16
_NO_LIMIT = 10**9
"""Tokenizers without a limit say 10^30."""


class ClassifierJudge:
    """A sequence classifier, in float32 on the CPU.

    `hf:MODEL@REVISION#THEIRS=OURS,…` maps its labels to the four; `input=answer` shows it the
    answer alone, for classifiers that were trained so. By default it sees prompt and answer as a
    pair, cut to what the model takes, the longer of the two first.
    """

    version = ""
    paid = True
    tries = 1

    def __init__(self, text: str) -> None:
        """Load the classifier.

        Raises:
            SpecError: It is spelled wrongly, or a label of its own has no counterpart.
            CheckpointError: There is no such checkpoint, or none in safetensors.
            JudgeError: It is no sequence classifier.
        """
        model, revision, settings = spelled(text)
        self._answer_only = settings.pop("input", "both") == "answer"
        path = resolve_source(model, revision=revision).path
        weights = weight_files(path)
        warn_of_checkpoint(model, weights.warnings)
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from mechprobe.activations.rotary import follows_length

        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self._model: Any
        self._model, report = AutoModelForSequenceClassification.from_pretrained(
            path, use_safetensors=True, dtype="float32", output_loading_info=True
        )
        if report["missing_keys"]:
            raise JudgeError(
                f"{text}: no sequence classifier ({sorted(report['missing_keys'])[0]} is not in "
                "its weights); name a checkpoint that was trained as one"
            )
        self._model.eval()
        names = self._model.config.id2label
        self._labels = [_ours(text, names[i], settings) for i in range(len(names))]
        self._limit = min(_limits(self._tokenizer, self._model), default=None)
        # some models find where a text of a batch ends by what it is filled up with, and count
        # positions from the left whatever stands there
        fills = self._tokenizer.pad_token_id
        knows = getattr(self._model.config, "pad_token_id", None)
        filled = fills is not None and fills == knows and self._tokenizer.padding_side == "right"
        self._batch = _BATCH if filled and not follows_length(self._model.config) else 1
        self.name = text
        self.about: Mapping[str, Any] = {
            "judge": "hf",
            "weights": digest_files(weights.files),
            "labels": self._labels,
            "input": "answer" if self._answer_only else "both",
            "limit": self._limit,
        }

    def opinions(
        self, pairs: Iterable[tuple[str, str]], attempt: int
    ) -> Iterator[tuple[int, Opinion]]:
        """The most probable class of each pair; NaN is no label."""
        import torch

        from mechprobe.activations.rotary import forward_pass

        given = list(pairs)
        # of like length together; padding then changes little but time
        order = sorted(range(len(given)), key=lambda i: sum(map(len, given[i])))
        for start in range(0, len(order), self._batch):
            some = order[start : start + self._batch]
            answers = [given[i][1] for i in some]
            texts = [answers] if self._answer_only else [[given[i][0] for i in some], answers]
            batch = self._tokenizer(
                *texts,
                padding=self._batch > 1,
                truncation="longest_first" if self._limit else False,
                max_length=self._limit,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = forward_pass(self._model, **batch).logits
            for i, row in zip(some, logits, strict=True):
                if bool(torch.isfinite(row).all()):
                    yield i, Opinion(self._labels[int(row.argmax())])
                else:
                    yield i, Opinion(status="unparsed")

    def tokens(self, prompt: str, answer: str) -> tuple[int, int]:
        """UTF-8 bytes of both / 4; nothing is generated."""
        return -(-len((prompt + answer).encode("utf-8", "replace")) // 4), 0

    def close(self) -> None:
        """Release the weights."""
        self._model = None


def says_unclear(text: str) -> bool:
    """Whether one of its labels is UNCLEAR, by its spelling or by its config, without loading it.

    Raises:
        SpecError: It is spelled wrongly.
        CheckpointError: There is no such checkpoint, or its config is damaged.
    """
    model, revision, settings = spelled(text)
    names = _names(resolve_source(model, revision=revision).path / "config.json")
    own = [_known(name) for name in names if name not in settings]
    return "UNCLEAR" in [*settings.values(), *own]


def _names(config: Path) -> list[str]:
    """The labels that a checkpoint's config names."""

    def refuse(said: str) -> CheckpointError:
        why = said.removeprefix(f"{config}")
        return CheckpointError(f"{config}: no labels can be read there{why}; get it again")

    names = read_object(config, refuse).get("id2label") or {}
    if not isinstance(names, dict):
        raise refuse(": 'id2label' is no mapping")
    return [str(name) for name in names.values()]


def _limits(tokenizer: Any, model: Any) -> Iterator[int]:
    """Tokens that it takes, as far as tokenizer, configuration and tables of positions say."""
    from torch.nn import Embedding

    for said in (
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None),
    ):
        if said and 0 < said < _NO_LIMIT:
            yield int(said)
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, Embedding):
            # RoBERTa and its kin count positions from behind that of the padding
            yield (
                table.num_embeddings - (-1 if table.padding_idx is None else table.padding_idx) - 1
            )


def spelled(text: str) -> tuple[str, str | None, dict[str, str]]:
    """Model, revision and settings of `hf:MODEL@REVISION#THEIRS=OURS,…`.

    Raises:
        SpecError: It is spelled wrongly.
    """
    found = _SPELLED.fullmatch(text)
    if found is None:
        raise SpecError(f"{text}: write hf:MODEL, hf:MODEL@REVISION or hf:MODEL#THEIRS=OURS")
    return found["model"], found["revision"], _settings(text, found["settings"])


def _settings(text: str, given: str | None) -> dict[str, str]:
    found = {}
    for part in (given or "").split(",") if given else ():
        name, equals, value = part.partition("=")
        if not equals or (name == "input" and value not in ("both", "answer")):
            raise SpecError(f"{text}: {part!r} is not THEIRS=OURS, input=both or input=answer")
        if name != "input" and value not in LABELS:
            raise SpecError(f"{text}: {value!r} is none of {', '.join(LABELS)}")
        found[name] = value
    return found


def _known(theirs: str) -> RefusalLabel | None:
    """Which of the four a label is by its own name."""
    return _KNOWN.get(theirs.lower())


def _ours(text: str, theirs: str, settings: Mapping[str, str]) -> RefusalLabel:
    label = settings.get(theirs) or _known(theirs)
    if label is None:
        raise SpecError(
            f"{text}: its label {theirs!r} has no counterpart; write {text.partition('#')[0]}"
            f"#{theirs}=COMPLIANCE, or another of {', '.join(LABELS)}"
        )
    return cast(RefusalLabel, label)
