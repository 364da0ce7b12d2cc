"""Calibration: does a cell's confidence still mean what its baseline's meant?

*Study mode* (arXiv 2606.10154) reads the shape of the next-token distribution on harmful prompts,
without labels. *With labels* confidence is held against being right on multiple-choice questions.
*Refusal calibration* holds the probability of beginning with a refusal token against whether the
generated text refuses: a cell whose first token still says "I" while its text complies has come
apart, and every measure that reads only the first token is then blind to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mechprobe import stats
from mechprobe.behavior.rate import Rate
from mechprobe.models.rendering import require_parity
from mechprobe.probes.baseline import baseline_warnings
from mechprobe.probes.labelled import (
    LabelledCalibration,
    OptionScores,
    RefusalCalibration,
    ask,
    labelled_calibration,
    refusal_calibration,
)
from mechprobe.probes.next_token import (
    FloatArray,
    entropy_nats,
    log_probabilities,
    logit_rows,
)
from mechprobe.probes.observation import Facts, Need, Observation
from mechprobe.probes.refusal_tokens import RefusalTokens, refusal_probability
from mechprobe.probes.refusals import Refusals, read_refusals
from mechprobe.probes.reliability import MIN_OUTCOMES, expected_calibration_error
from mechprobe.probes.saving import Saved
from mechprobe.stats import Estimate, PairedShift

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

__all__ = [
    "CalibrationResult",
    "FirstToken",
    "LabelledCalibration",
    "OptionScores",
    "RefusalCalibration",
    "Refusals",
    "ask",
    "first_token_shape",
    "labelled_calibration",
    "measure",
    "needs",
    "read_refusals",
    "refusal_calibration",
]

HARMFUL, HARMLESS = "evaluate/harmful", "evaluate/harmless"
SHAPE = ("top1", "top5", "gini", "logit_range")
NOT_ASKED = "labelled calibration: no labelled questions were asked"


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The study's measures: the shape of the next-token distribution on harmful prompts."""

    n: int
    top1: Estimate | None
    """Probability of the most probable token."""
    top5: Estimate | None
    """Total probability of the five most probable tokens."""
    gini: Estimate | None
    """Gini impurity 1 - Σ p²."""
    logit_range: Estimate | None
    """Largest minus smallest logit."""
    proxy_ece: float
    """Entropy-proxy ECE: `top1` against 1 - entropy / log(vocabulary) in place of an accuracy,
    15 bins of equal width. It needs no labels and so says nothing about being right; the study
    does not publish its formula, and this is mechprobe's reading."""
    baseline_proxy_ece: float | None
    shifts: dict[str, PairedShift | None]
    """`top1`, `top5`, `gini`, `logit_range`: cell minus baseline, paired by prompt."""
    per_prompt: dict[str, tuple[float, ...]]
    """`top1` and, with a baseline, `baseline_top1`."""

    @property
    def confidence(self) -> Literal["fell", "rose"] | None:
        """What `top1` did against the baseline, beyond its 95 % interval; None where nothing."""
        shift = self.shifts.get("top1")
        if shift is None or shift.low <= 0 <= shift.high:
            return None
        return "fell" if shift.value < 0 else "rose"


@dataclass(frozen=True, slots=True)
class CalibrationResult(Saved):
    """What one cell's confidence is worth, beside its baseline's."""

    NAME: ClassVar[str] = "calibration"

    cell: Facts
    baseline: Facts | None
    study: bool
    """Whether only the study's measures were taken."""
    prompts: dict[str, str]
    """Digest of the token ids of each prompt set that was read."""
    tokens: RefusalTokens | None
    first_token: FirstToken
    labelled: LabelledCalibration | None
    refusal: RefusalCalibration | None
    not_measured: tuple[str, ...]
    """What is missing above, and why."""
    warnings: tuple[str, ...]
    """What makes the numbers mean something else than they seem to."""

    @property
    def unmet(self) -> tuple[str, ...]:
        """In study mode the first token's confidence; else refusal, and the questions if asked."""
        missing = {
            "top-1 probability": self.first_token.top1 is None,
            "labelled calibration": not self.study
            and self.labelled is None
            and NOT_ASKED not in self.not_measured,
            "refusal calibration": not self.study and self.refusal is None,
        }
        return tuple(name for name, is_missing in missing.items() if is_missing)

    def __rich__(self) -> Table:
        """A table for people."""
        from mechprobe.probes.calibration_view import table

        return table(self)

    def plot(self) -> Figure:
        """Reliability diagrams, or the confidence of the first token where there are none."""
        from mechprobe.probes.calibration_view import figure

        return figure(self)


def needs(*, study: bool = False) -> tuple[Need, ...]:
    """What the probe reads of the observational pass: the logits after each prompt."""
    sets = (HARMFUL,) if study else (HARMFUL, HARMLESS)
    return tuple(Need(name, logits=True) for name in sets)


def measure(
    cell: Observation,
    baseline: Observation | None = None,
    *,
    tokens: RefusalTokens | None = None,
    refusals: Mapping[str, Refusals] | None = None,
    baseline_refusals: Mapping[str, Refusals] | None = None,
    options: OptionScores | None = None,
    baseline_options: OptionScores | None = None,
    clusters: Mapping[str, Sequence[Any]] | None = None,
    study: bool = False,
) -> CalibrationResult:
    """Measure a cell's calibration, as far as the data given allow.

    Args:
        cell: Observed with `needs()`.
        baseline: Observed on the same token ids.
        tokens: The baseline's refusal tokens.
        refusals: By prompt set (`evaluate/harmful`, `evaluate/harmless`), how the cell answered;
            from `read_refusals`.
        baseline_refusals: The same of the baseline.
        options: The cell's scores on labelled questions; from `ask`.
        baseline_options: The same of the baseline.
        clusters: By prompt set, which prompts belong together; `questions` for the labelled ones.
        study: Only what arXiv 2606.10154 measures.

    Raises:
        ParityError: Token ids, right answers or instruments differ between what is compared.
        VocabularyError: The vocabularies differ in size.
        NumericsError: NaN or infinity among the logits.
    """
    groups = clusters or {}
    first = _first_token(cell, baseline, groups.get(HARMFUL))
    missing = [] if baseline else ["shifts against a baseline: none was given"]
    labelled = refusal = None
    if study:
        missing.append("labelled and refusal calibration: not part of the study mode")
    else:
        if options is None:
            missing.append(NOT_ASKED)
        else:
            labelled = labelled_calibration(
                options, baseline_options, clusters=groups.get("questions")
            )
            if baseline is not None and baseline_options is None:
                missing.append("shifts on labelled questions: the baseline was not asked them")
            if labelled is None:
                missing.append("labelled calibration: fewer than two questions")
            elif labelled.top.auroc is None:
                missing.append(_few("AUROC of confidence: right answers", labelled.accuracy))
        if not tokens:
            why = "no refusal tokens were given" if tokens is None else tokens.problem
            missing.append(f"refusal calibration: {why}")
        elif not refusals:
            missing.append("refusal calibration: no answers were generated")
        else:
            mine = _refusal_probability(cell, refusals, tokens)
            other = None
            if baseline is not None and baseline_refusals:
                other = _refusal_probability(baseline, baseline_refusals, tokens), baseline_refusals
            refusal = refusal_calibration(mine, refusals, other, clusters=groups)
            if refusal is None:
                missing.append("refusal calibration: fewer than two answers could be read")
            elif refusal.predicted.auroc is None:
                missing.append(_few("AUROC of refusal: refusals", refusal.predicted.outcome))
    return CalibrationResult(
        cell=cell.facts,
        baseline=None if baseline is None else baseline.facts,
        study=study,
        prompts={name: cell.digest(name) for name in dict.fromkeys((HARMFUL, *(refusals or {})))},
        tokens=tokens,
        first_token=first,
        labelled=labelled,
        refusal=refusal,
        not_measured=tuple(missing),
        warnings=baseline_warnings(None if baseline is None else baseline.facts.precision),
    )


def _few(what: str, found: Rate) -> str:
    return f"{what} are {found}; {MIN_OUTCOMES} of each kind are needed"


def first_token_shape(logits: Any) -> dict[str, FloatArray]:
    """The study's measures prompt by prompt, and `certainty` = 1 - entropy / log(vocabulary).

    Args:
        logits: Shape (n, vocabulary), unnormalised.

    Returns:
        `top1 top5 gini logit_range certainty`, each of shape (n,), float64.
    """
    log_p = log_probabilities(logits)
    p = np.exp(log_p)
    size = p.shape[1]
    highest = np.partition(p, size - min(5, size), axis=1)[:, -5:]
    said = np.where(np.isneginf(log_p), np.inf, log_p)
    return {
        "top1": p.max(axis=1),
        "top5": np.minimum(highest.sum(axis=1), 1.0),
        "gini": 1 - (p**2).sum(axis=1),
        "logit_range": log_p.max(axis=1) - said.min(axis=1),
        "certainty": np.clip(1 - entropy_nats(logits) / np.log(size), 0.0, 1.0),
    }


def _first_token(
    cell: Observation, baseline: Observation | None, clusters: Sequence[Any] | None
) -> FirstToken:
    mine, other = [], []
    for logits, reference in logit_rows(cell, baseline, HARMFUL):
        mine.append(first_token_shape(logits))
        if reference is not None:
            other.append(first_token_shape(reference))
    found = {name: np.concatenate([part[name] for part in mine]) for name in mine[0]}
    before = {name: np.concatenate([part[name] for part in other]) for name in mine[0] if other}
    means = {
        name: stats.mean_estimate(found[name], clusters=clusters)
        if name == "logit_range"
        else stats.share_estimate(found[name], clusters=clusters)
        for name in SHAPE
    }
    per_prompt = {"top1": tuple(found["top1"].tolist())}
    if before:
        per_prompt["baseline_top1"] = tuple(before["top1"].tolist())
    return FirstToken(
        n=len(found["top1"]),
        **means,
        proxy_ece=expected_calibration_error(np.minimum(found["top1"], 1.0), found["certainty"]),
        baseline_proxy_ece=expected_calibration_error(
            np.minimum(before["top1"], 1.0), before["certainty"]
        )
        if before
        else None,
        shifts={
            name: stats.paired_shift(
                found[name],
                before[name],
                clusters=clusters,
                most=None if name == "logit_range" else 1.0,
            )
            for name in SHAPE
            if before
        },
        per_prompt=per_prompt,
    )


def _refusal_probability(
    observation: Observation, refusals: Mapping[str, Refusals], tokens: RefusalTokens
) -> dict[str, FloatArray]:
    out = {}
    for name, found in refusals.items():
        require_parity(observation.digest(name), found.prompts, f"refusal calibration, {name}")
        parts = [refusal_probability(x, tokens.ids) for x, _ in logit_rows(observation, None, name)]
        out[name] = np.concatenate(parts)
    return out
