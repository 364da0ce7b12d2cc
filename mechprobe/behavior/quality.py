"""How close an answer is to a reference: exact match, ROUGE-L, BERTScore, coherence.

Each is a number in [0, 1] (coherence: [-1, 1]), the best over an answer's references; an empty
answer is 0 by definition. The last two depend on a neural encoder. Its name and a digest of its
weights are part of the instrument's name, and values of different encoders are not comparable.
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
_DIGITS = 10

STUDY_BERTSCORE = "microsoft/deberta-xlarge-mnli"
STUDY_BERTSCORE_LAYER = 40
"""The layer that the bert-score package takes for this model."""
STUDY_COHERENCE = "sentence-transformers/all-mpnet-base-v2"


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


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L F1, without stemming; words of ASCII letters and digits alone are compared.

    Source: Lin 2004, through `rouge_score`.

    Raises:
        MissingExtraError: rouge-score is not installed.
    """
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
    """BERTScore F1 (Zhang et al. 2020, arXiv 1904.09675) through torchmetrics.

    No idf weights and no rescaling, as in arXiv 2606.10154. torchmetrics 1.9 misplaces the pairs
    of a batch whose texts differ in length (its issue 2728), so it is given one pair at a time.
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
        """Load the encoder.

        Args:
            source: Hub id or folder of a transformers encoder.
            layer: Which hidden state is compared, from 1; there is no default but for the
                encoder of the study.
            revision: Of the hub.
            device: Where it runs.
            name: What results call it, beside the digest of its weights; the source by default.

        Raises:
            CheckpointError: It cannot be loaded.
            MissingExtraError: torchmetrics is not installed.
            SpecError: No layer is named, or the encoder has no such layer.
        """
        self._score = require("torchmetrics.functional.text.bert", "metrics").bert_score
        if layer is None and str(source) == STUDY_BERTSCORE:
            layer = STUDY_BERTSCORE_LAYER
        if layer is None:
            raise SpecError(f"bertscore: name the layer of {source} that is to be compared")
        from transformers import AutoModel, AutoTokenizer

        with _loading(source):
            self._tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            self._model = AutoModel.from_pretrained(source, revision=revision)
        deepest = int(self._model.config.num_hidden_layers)
        if not 1 <= layer <= deepest:
            raise SpecError(f"bertscore: {source} has layers 1 to {deepest}, not {layer}")
        self._layer, self._device = layer, device
        longest = int(self._tokenizer.model_max_length)
        self._length = min(longest, 512)
        self.encoder = Encoder(name or _name_of(source), _weights_digest(self._model))
        self.name = f"bertscore[{self.encoder} layer {layer}]"

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """F1 with the closest reference; texts are cut at 512 tokens."""
        if not answer.strip():
            return 0.0
        return max(self._one(answer, reference) for reference in references)

    def _one(self, answer: str, reference: str) -> float:
        found = self._score(
            [answer],
            [reference],
            num_layers=self._layer,
            model=self._model,
            user_tokenizer=self._tokenizer,
            device=self._device,
            max_length=self._length,
            batch_size=1,
            truncation=True,
        )
        return min(max(float(found["f1"]), -1.0), 1.0)  # rounding leaves equal texts above 1


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
            [answer, *references], normalize_embeddings=True, show_progress_bar=False
        )
        return min(max(float(max(own @ other for other in others)), -1.0), 1.0)
