"""How close an answer is to a reference: exact match, ROUGE-L, BERTScore, coherence.

Each is a number in [0, 1] (those of an encoder: [-1, 1]), the best over an answer's references; an
empty answer is 0 by definition. The last two depend on a neural encoder. Its name and a digest of
its weights are part of the instrument's name, and values of different encoders are not comparable.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mechprobe.errors import CheckpointError, SpecError, require

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROUGE_WORD = re.compile(r"[a-z0-9]")
_DIGITS = 10

STUDY_BERTSCORE = "microsoft/deberta-xlarge-mnli"
STUDY_BERTSCORE_LAYER = 40
"""The layer that the bert-score package takes for this model."""
STUDY_COHERENCE = "sentence-transformers/all-mpnet-base-v2"
_LENGTH = 512
"""Tokens of a text where its tokenizer names no longest one."""
_UNBOUNDED = 10**9
"""A tokenizer that names no longest text says 10³⁰."""


def normalised(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250), their evaluation script.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the normalised answer is one of the normalised references, else 0."""
    own = normalised(answer)
    return float(bool(own) and own in {normalised(reference) for reference in references})


@cache
def _rouge() -> Any:
    scorer = require("rouge_score.rouge_scorer", "metrics")
    return scorer.RougeScorer(["rougeL"], use_stemmer=False)


def rouge_l(answer: str, references: Sequence[str]) -> float | None:
    """ROUGE-L F1, without stemming; words of ASCII letters and digits alone are compared.

    Source: Lin 2004, through `rouge_score`.

    Returns:
        None where no reference has such a word: an equal answer would score 0.

    Raises:
        MissingExtraError: rouge-score is not installed.
    """
    if not any(_ROUGE_WORD.search(reference.lower()) for reference in references):
        return None
    return float(max(_rouge().score(ref, answer)["rougeL"].fmeasure for ref in references))


@dataclass(frozen=True, slots=True)
class Encoder:
    """Which network made the numbers."""

    name: str
    digest: str
    """SHA-256 over the names and values of its weights, hex."""

    def __str__(self) -> str:
        """For an instrument's name: `all-mpnet-base-v2#0123456789`."""
        return f"{self.name}#{self.digest[:_DIGITS]}"


def _weights_digest(module: Any) -> str:
    import torch

    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _name_of(source: str | Path) -> str:
    """A hub id as it is, a folder by its last part: no path goes into a result."""
    return Path(source).name if Path(source).is_dir() else str(source)


@contextmanager
def _loading(source: str | Path) -> Iterator[None]:
    from mechprobe.models.quiet import quiet

    try:
        with quiet():
            yield
    except OSError as error:
        raise CheckpointError(
            f"{source}: the encoder is no folder here, not in the cache, or the hub is out of "
            "reach (HF_HUB_OFFLINE); name a local folder, or go online once"
        ) from error


class BertScore:
    """BERTScore (Zhang et al. 2020, arXiv 1904.09675), equal to the bert-score package 0.3.13.

    No idf weights and no rescaling, as in arXiv 2606.10154. A token is matched with every token of
    the other text, the special ones too; only those that begin and end a text have no weight of
    their own. The package itself fails on an empty text with transformers 5, and on tokenizers that
    name no longest text; torchmetrics 1.9 drops the special tokens as matches.
    """

    def __init__(
        self,
        source: str | Path = STUDY_BERTSCORE,
        *,
        layer: int | None = None,
        revision: str | None = None,
        device: str = "cpu",
        name: str | None = None,
    ) -> None:
        """Load the encoder up to the layer that is compared.

        Args:
            source: Hub id or folder of a transformers encoder.
            layer: Whose output is compared, from 1; there is no default but for the encoder of the
                study.
            revision: Of the hub.
            device: Where it runs.
            name: What results call it, beside the digest of its weights; the source by default.

        Raises:
            CheckpointError: It cannot be loaded.
            SpecError: No layer is named, or the encoder has no such layer.
        """
        if layer is None and str(source) == STUDY_BERTSCORE:
            layer = STUDY_BERTSCORE_LAYER
        if layer is None:
            raise SpecError(f"bertscore: name the layer of {source} that is to be compared")
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        with _loading(source):
            config = AutoConfig.from_pretrained(source, revision=revision)
            deepest = int(config.num_hidden_layers)
            if not 1 <= layer <= deepest:
                raise SpecError(f"bertscore: {source} has layers 1 to {deepest}, not {layer}")
            config.num_hidden_layers = layer
            self._tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            model = AutoModel.from_pretrained(
                source, config=config, revision=revision, dtype=torch.float32
            )
        model = model.encoder if config.is_encoder_decoder else model
        self._model, self._device = model.to(device).eval(), device
        longest = int(self._tokenizer.model_max_length)
        self._length = longest if longest < _UNBOUNDED else _LENGTH
        self.encoder = Encoder(name or _name_of(source), _weights_digest(self._model))
        self.name = f"bertscore[{self.encoder} layer {layer}]"

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """F1 with the closest reference."""
        return max(self.score(answer, reference)[2] for reference in references)

    def score(self, answer: str, reference: str) -> tuple[float, float, float]:
        """Precision, recall and F1 of one pair; all 0 where one of them is empty.

        Texts are cut at the tokenizer's longest, or at 512 tokens where it names none.
        """
        (own, counted), (other, wanted) = self._states(answer), self._states(reference)
        if not (answer.strip() and reference.strip() and counted.any() and wanted.any()):
            return 0.0, 0.0, 0.0
        cosines = own @ other.T
        precision = float(cosines.max(dim=1).values[counted].mean())
        recall = float(cosines.max(dim=0).values[wanted].mean())
        total = precision + recall
        f1 = 2 * precision * recall / total if total else 0.0
        return precision, recall, min(max(f1, -1.0), 1.0)  # rounding leaves equal texts above 1

    def _states(self, text: str) -> tuple[Any, Any]:
        """Hidden states of length 1, shape (tokens, width), and which tokens have a weight."""
        import torch
        from transformers import GPT2Tokenizer, RobertaTokenizer

        text = text.strip()
        # the package asks for the space that these put before a word
        spaced = isinstance(self._tokenizer, GPT2Tokenizer | RobertaTokenizer)
        ids = self._tokenizer.encode(
            f" {text}" if text and spaced else text, max_length=self._length, truncation=True
        )
        tokens = torch.tensor([ids], device=self._device)
        with torch.no_grad():
            states = self._model(tokens, attention_mask=torch.ones_like(tokens))[0][0]
        unweighted = (self._tokenizer.cls_token_id, self._tokenizer.sep_token_id)
        counted = torch.tensor([id not in unweighted for id in ids], device=self._device)
        return states / states.norm(dim=-1, keepdim=True), counted


class Coherence:
    """Cosine of the sentence embeddings of answer and reference (SemScore, arXiv 2401.17072)."""

    def __init__(
        self,
        source: str | Path = STUDY_COHERENCE,
        *,
        revision: str | None = None,
        device: str = "cpu",
        name: str | None = None,
    ) -> None:
        """Load the encoder.

        Args:
            source: Hub id or folder of a sentence-transformers model.
            revision: Of the hub.
            device: Where it runs.
            name: What results call it, beside the digest of its weights; the source by default.

        Raises:
            CheckpointError: It cannot be loaded.
            MissingExtraError: sentence-transformers is not installed.
        """
        library = require("sentence_transformers", "metrics")
        with _loading(source):
            self._model = library.SentenceTransformer(
                str(source), revision=revision, device=device, trust_remote_code=False
            )
        self.encoder = Encoder(name or _name_of(source), _weights_digest(self._model))
        self.name = f"coherence[{self.encoder}]"

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """Cosine with the closest reference, in [-1, 1]."""
        if not answer.strip():
            return 0.0
        own, *others = self._model.encode(
            [answer, *references],
            batch_size=1,  # frequencies of some encoders follow the longest row of a batch
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return min(max(float(max(own @ other for other in others)), -1.0), 1.0)
