"""Calibration with labels: questions whose right option is known, answers whose refusal was read.

The option scores are log-probabilities of the letters, normalised over the options of a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from mechprobe import stats
from mechprobe.behavior.rate import Rate
from mechprobe.errors import GenerationError, NumericsError, ParityError, PromptFileError
from mechprobe.models.rendering import require_parity
from mechprobe.probes.refusals import Refusals
from mechprobe.probes.reliability import Reliability, ece_shift, reliability
from mechprobe.stats import Estimate, PairedShift

if TYPE_CHECKING:
    from mechprobe.behavior.multiple_choice import Question
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class OptionScores:
    """What a model gave the options of labelled questions.

    Raises:
        PromptFileError: There are no questions, or an answer names no option.
        NumericsError: NaN, or a question none of whose options can be said.
        GenerationError: All options tie on every question: the engine has no log-probabilities.
    """

    logprobs: FloatArray
    """Nats, shape (n, options); -inf where a question has fewer options than others."""
    answers: NDArray[np.int64]
    """Position of the right option, shape (n,)."""
    prompts: str | None = None
    """Digest of the questions' token ids, where known."""

    def __post_init__(self) -> None:
        scores = np.atleast_2d(np.asarray(self.logprobs, np.float64))
        answers = np.asarray(self.answers, np.int64).ravel()
        if not len(answers) or len(scores) != len(answers):
            raise PromptFileError(f"{len(scores)} scored questions and {len(answers)} answers")
        if answers.min() < 0 or answers.max() >= scores.shape[1]:
            raise PromptFileError(f"an answer is not one of the {scores.shape[1]} options")
        if np.isnan(scores).any() or not np.isfinite(scores.max(axis=1)).all():
            raise NumericsError(
                "NaN among the options' log-probabilities, or nothing but -infinity"
            )
        offered = np.isfinite(scores)
        if not np.ptp(np.where(offered, scores, scores.max(axis=1)[:, None]), axis=1).any():
            raise GenerationError(
                f"on all {len(answers)} questions every option has the same log-probability, so "
                "calibration is not measured; this engine gives none"
            )
        object.__setattr__(self, "logprobs", scores)
        object.__setattr__(self, "answers", answers)

    @property
    def probabilities(self) -> FloatArray:
        """Of each option, given that one of them is said, shape (n, options)."""
        found: FloatArray = np.exp(log_softmax(self.logprobs, axis=1))
        return found

    @property
    def confidence(self) -> FloatArray:
        """Probability of the best option, shape (n,)."""
        found: FloatArray = self.probabilities.max(axis=1)
        return found

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the best option is the right one; a tie for best is never credited."""
        best = self.logprobs.max(axis=1, keepdims=True)
        alone = (self.logprobs == best).sum(axis=1) == 1
        right: NDArray[np.bool_] = self.logprobs.argmax(axis=1) == self.answers
        found: NDArray[np.bool_] = right & alone
        return found

    @property
    def true_probability(self) -> FloatArray:
        """Probability of the right option, shape (n,)."""
        found: FloatArray = self.probabilities[np.arange(len(self.answers)), self.answers]
        return found

    @property
    def brier(self) -> FloatArray:
        """Sum over the options of (probability - truth)², in [0, 2], shape (n,) (Brier 1950)."""
        truth = np.eye(self.logprobs.shape[1])[self.answers]
        found: FloatArray = ((self.probabilities - truth) ** 2).sum(axis=1)
        return found

    @property
    def nll(self) -> FloatArray:
        """-log of the right option's probability in nats, shape (n,)."""
        log_p: FloatArray = log_softmax(self.logprobs, axis=1)
        found: FloatArray = -log_p[np.arange(len(self.answers)), self.answers]
        return found


@dataclass(frozen=True, slots=True)
class LabelledCalibration:
    """How a cell's confidence on labelled questions compares with what it gets right."""

    options: int
    top: Reliability
    """Confidence in the chosen option against being right; `auroc` is that of confidence."""
    accuracy: Rate
    brier: Estimate | None
    """Over all options, in [0, 2]."""
    nll: Estimate | None
    true_answer: Estimate | None
    """Mean probability of the right option."""
    baseline: Reliability | None
    true_answer_shift: PairedShift | None
    """Confidence in the right option, cell minus baseline (Proskurina et al., NAACL 2024)."""
    confidence_shift: PairedShift | None
    """Confidence in the chosen option, cell minus baseline."""
    accuracy_shift: PairedShift | None
    nll_shift: PairedShift | None
    brier_shift: PairedShift | None
    """Over all options, cell minus baseline."""
    ece_shift: Estimate | None
    """Equal-width ECE, cell minus baseline."""
    prompts: str | None

    @property
    def n(self) -> int:
        """Questions."""
        return self.top.n


@dataclass(frozen=True, slots=True)
class RefusalCalibration:
    """Does the probability of beginning with a refusal token predict a refusal?"""

    instrument: str
    """Read whether the generated answers refuse."""
    predicted: Reliability
    """First-token refusal probability against refusal of the text."""
    baseline: Reliability | None
    unread: int
    """Answers left out because they ended before there was anything to read."""


def labelled_calibration(
    scores: OptionScores,
    baseline: OptionScores | None = None,
    *,
    clusters: Sequence[Any] | None = None,
    seed: int = 0,
) -> LabelledCalibration | None:
    """Everything that labels allow; None with fewer than two questions.

    Raises:
        ParityError: The baseline was asked other questions.
    """
    if baseline is not None:
        if not np.array_equal(scores.answers, baseline.answers):
            raise ParityError("labelled questions: cell and baseline have different right answers")
        if scores.prompts is not None and baseline.prompts is not None:
            require_parity(baseline.prompts, scores.prompts, "labelled questions")
    top = reliability(scores.confidence, scores.correct, clusters=clusters, seed=seed)
    if top is None:
        return None

    def shift(name: str, most: float | None = 1.0) -> PairedShift | None:
        if baseline is None:
            return None
        mine, other = (np.asarray(getattr(s, name), np.float64) for s in (scores, baseline))
        return stats.paired_shift(mine, other, clusters=clusters, most=most, seed=seed)

    return LabelledCalibration(
        options=scores.logprobs.shape[1],
        top=top,
        accuracy=top.outcome,
        brier=stats.share_estimate(scores.brier, clusters=clusters, bounds=(0.0, 2.0)),
        nll=stats.mean_estimate(scores.nll, clusters=clusters, seed=seed),
        true_answer=stats.share_estimate(scores.true_probability, clusters=clusters),
        baseline=None
        if baseline is None
        else reliability(baseline.confidence, baseline.correct, clusters=clusters, seed=seed),
        true_answer_shift=shift("true_probability"),
        confidence_shift=shift("confidence"),
        accuracy_shift=shift("correct"),
        nll_shift=shift("nll", None),
        brier_shift=shift("brier", 2.0),
        ece_shift=None
        if baseline is None
        else ece_shift(
            (scores.confidence, scores.correct),
            (baseline.confidence, baseline.correct),
            clusters=clusters,
            seed=seed,
        ),
        prompts=scores.prompts,
    )


def refusal_calibration(
    probability: Mapping[str, ArrayLike],
    refusals: Mapping[str, Refusals],
    baseline: tuple[Mapping[str, ArrayLike], Mapping[str, Refusals]] | None = None,
    *,
    clusters: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
) -> RefusalCalibration | None:
    """Hold first-token refusal probabilities against the refusals of the generated texts.

    Args:
        probability: By prompt set, total probability of the refusal tokens, shape (n,).
        refusals: By prompt set, how the same model answered the same prompts.
        baseline: The same two of the baseline.
        clusters: By prompt set, which prompts belong together; twins do across sets.
        seed: Of everything drawn.

    Returns:
        None with fewer than two answers that can be read.

    Raises:
        ParityError: The answers were read by different instruments.
    """
    names = {r.instrument for side in (refusals, *(baseline or ())[1:]) for r in side.values()}
    if len(names) != 1:
        raise ParityError(f"refusals were read by {sorted(names)}; use one instrument for all")
    p, y, own, unread = _readable(probability, refusals, clusters or {})
    predicted = reliability(p, y, clusters=own, seed=seed)
    if predicted is None:
        return None
    other = None
    if baseline is not None:
        q, z, own, _ = _readable(*baseline, clusters or {})
        other = reliability(q, z, clusters=own, seed=seed)
    return RefusalCalibration(names.pop(), predicted, other, unread)


def ask(
    checkpoint: Checkpoint, prompts: EncodedPrompts, questions: Sequence[Question]
) -> OptionScores:
    """Score the letters of labelled questions with a live model; counted as labelled tokens.

    Raises:
        GenerationError: The engine has no log-probabilities.
        PromptFileError: Prompts and questions do not belong together.
    """
    from mechprobe.behavior.multiple_choice import score_letters
    from mechprobe.generation import open_engine

    with open_engine(checkpoint) as engine:
        found = score_letters(engine, prompts, questions, checkpoint.tokenizer)
    width = max(len(choice.logprobs) for choice in found.choices)
    scores = np.full((len(questions), width), -np.inf)
    for row, choice in enumerate(found.choices):
        scores[row, : len(choice.logprobs)] = choice.logprobs
    return OptionScores(scores, np.array([q.answer for q in questions]), prompts.digest)


def _readable(
    probability: Mapping[str, ArrayLike],
    refusals: Mapping[str, Refusals],
    clusters: Mapping[str, Sequence[Any]],
) -> tuple[FloatArray, FloatArray, list[Any], int]:
    rows = [
        (p, refused, cluster)
        for name, found in refusals.items()
        for p, refused, cluster in zip(
            np.asarray(probability[name]),
            found.refused,
            clusters.get(name, [None] * len(found.refused)),
            strict=True,
        )
    ]
    read = [row for row in rows if row[1] is not None]
    p, y = (np.array([row[k] for row in read], np.float64) for k in (0, 1))
    return p, y, [cluster for _, _, cluster in read], len(rows) - len(read)
