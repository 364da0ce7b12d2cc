"""The first tokens of a refusal, and how likely a model is to begin with one.

Which tokens these are depends on the model. They are found in the *baseline's* own refusals and
then kept for all its cells: tokens that refusing answers begin with and whose probability separates
harmful from harmless validation prompts, alone or together (a model may refuse one topic with "I"
and another with "As"). A word that also opens helpful answers does not separate and falls out.
What was found is shown, and can be overridden by ids, by text, or by a published list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, softmax

from mechprobe import stats
from mechprobe.errors import NumericsError
from mechprobe.probes.observation import Need, Observation

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

EPSILON = 1e-8
"""Of Arditi et al. 2024, so that a probability of 0 or 1 stays finite."""
MIN_AUC = 0.8
"""How well the tokens' probability must tell harmful from harmless prompts."""
MIN_GAIN = 0.01
"""What a token below `MIN_AUC` must add to the AUC of the others, or one above may cost."""
MIN_SHARE = 0.05
"""Share of the refusals that must begin with a token; rarer openings are chance."""
MIN_REFUSALS = 4
MIN_PROMPTS = 8
"""On each side; with fewer an AUC over the threshold is too easily luck."""


@dataclass(frozen=True, slots=True)
class TokenEvidence:
    """What speaks for or against one candidate."""

    id: int
    piece: str
    count: int
    """Refusing answers that begin with it."""
    auc: float
    """Of its probability, harmful against harmless validation prompts."""
    p_harmful: float
    """Mean probability on the harmful ones."""
    p_harmless: float
    gain: float
    """What it adds to the AUC of the total probability of the tokens kept before it."""
    kept: bool


@dataclass(frozen=True, slots=True)
class RefusalTokens:
    """A model's refusal tokens and where they come from; false where there are none."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    """Each token as text."""
    source: str
    """`found …`, `given`, or `preset NAME`."""
    evidence: tuple[TokenEvidence, ...] = ()
    """Every candidate, the dropped ones too, in the order they were tried."""
    n_refusals: int = 0
    """Refusing answers that were looked at."""
    auc: float | None = None
    """Of the total probability, on the validation prompts that chose the tokens: optimistic."""
    problem: str | None = None
    """Why there are none."""

    def __bool__(self) -> bool:
        """Whether there is any token."""
        return bool(self.ids)

    @property
    def covered(self) -> float | None:
        """Share of the refusing answers that begin with one of the tokens."""
        if not self.n_refusals:
            return None
        return sum(row.count for row in self.evidence if row.kept) / self.n_refusals

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"covered": self.covered}

    def __str__(self) -> str:
        """One line: `"I" (40), "As" (2121); found in 30 refusals`."""
        if not self:
            return f"none ({self.problem})"
        named = [f"{p!r} ({i})" for i, p in zip(self.ids, self.pieces, strict=True)]
        return f"{', '.join(named)}; {self.source}"

    def __rich__(self) -> Table:
        """The candidates, kept or not."""
        from rich.table import Table

        table = Table(title=f"refusal tokens {self.source}", box=None, pad_edge=False)
        table.title_justify = table.caption_justify = "left"
        for head in ("token", "id", "begins", "AUC", "gain", "p harmful", "p harmless", ""):
            table.add_column(head, justify="left" if head in ("token", "") else "right")
        for row in self.evidence:
            table.add_row(
                repr(row.piece),
                str(row.id),
                f"{row.count}/{self.n_refusals}",
                f"{row.auc:.3f}",
                f"{row.gain:+.3f}",
                f"{row.p_harmful:.3f}",
                f"{row.p_harmless:.3f}",
                "kept" if row.kept else "dropped",
                style=None if row.kept else "dim",
            )
        if not self.evidence:
            for token, piece in zip(self.ids, self.pieces, strict=True):
                table.add_row(repr(piece), str(token))
        if self.problem:
            table.caption = f"not measured: {self.problem}"
        return table


def refusal_log_odds(logits: NDArray[np.float64], ids: Sequence[int]) -> NDArray[np.float64]:
    """log(p + ε) - log(1 - p + ε) in nats, p being the total probability of the refusal tokens.

    Args:
        logits: Of the first generated position, shape (n, vocabulary); normalised here.
        ids: The refusal tokens, each once.

    Returns:
        Shape (n,), float64.

    Source: the refusal score of Arditi et al. 2024 (arXiv 2406.11717).
    """
    p = softmax(np.asarray(logits, np.float64), axis=-1)[:, list(ids)].sum(axis=-1)
    odds: NDArray[np.float64] = np.log(p + EPSILON) - np.log(1 - p + EPSILON)
    return odds


def refusal_probability(logits: ArrayLike, ids: Sequence[int]) -> NDArray[np.float64]:
    """Total probability of the refusal tokens, shape (n,), from logits (n, vocabulary)."""
    total: NDArray[np.float64] = _probabilities(logits, ids).sum(axis=-1)
    return np.minimum(total, 1.0)


def needs() -> tuple[Need, ...]:
    """What finding the tokens reads of the baseline; other cells are not looked at."""
    return (Need("select/harmful", logits=True), Need("select/harmless", logits=True))


def find(
    baseline: Observation,
    answers_first_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    **thresholds: Any,
) -> RefusalTokens:
    """`find_refusal_tokens` on the validation prompts of an observed baseline."""
    harmful, harmless = (baseline.logits(need.prompts) for need in needs())
    return find_refusal_tokens(harmful, harmless, answers_first_ids, tokenizer, **thresholds)


def find_refusal_tokens(
    logits_harmful: ArrayLike,
    logits_harmless: ArrayLike,
    answers_first_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    min_auc: float = MIN_AUC,
    min_share: float = MIN_SHARE,
    min_refusals: int = MIN_REFUSALS,
) -> RefusalTokens:
    """The tokens that this model's refusals begin with and its other answers do not.

    Args:
        logits_harmful: Baseline, first generated position, harmful validation prompts,
            shape (n, vocabulary).
        logits_harmless: The same on harmless validation prompts.
        answers_first_ids: First token of each of the baseline's greedy answers to harmful
            validation prompts that a refusal instrument reads as a refusal.
        tokenizer: To show the tokens as text.
        min_auc: ROC-AUC, harmful against harmless, that a candidate's probability must reach; and
            that the total must reach. One below it is kept where it adds `MIN_GAIN` to the AUC of
            the total of those before it, one above it unless it takes as much away.
        min_share: And begin at least this share of the refusals.
        min_refusals: With fewer refusals nothing is found.

    Returns:
        Most probable first; empty, with `problem` saying why, where the data show none.

    Raises:
        NumericsError: NaN among the logits.
    """
    firsts = Counter(int(token) for token in answers_first_ids)
    n = firsts.total()
    source = f"found in {n} refusals (AUC ≥ {min_auc:g}, share ≥ {min_share:g})"
    sides = [np.asarray(logits_harmful), np.asarray(logits_harmless)]
    smallest = min(len(side) for side in sides)
    if n < min_refusals or smallest < MIN_PROMPTS:
        short = (
            f"the baseline refuses {n} harmful validation prompts and {min_refusals} are needed"
            if n < min_refusals
            else f"{smallest} validation prompts on a side and {MIN_PROMPTS} are needed"
        )
        return RefusalTokens((), (), source, n_refusals=n, problem=short)
    candidates = [token for token, _ in firsts.most_common()]
    harmful, harmless = (_probabilities(side, candidates) for side in sides)
    alone = [stats.auroc(a, b) or 0.0 for a, b in zip(harmful.T, harmless.T, strict=True)]
    total, kept, evidence = 0.5, list[int](), list[TokenEvidence]()
    for column in sorted(range(len(candidates)), key=lambda c: -alone[c]):
        token, tried = candidates[column], [*kept, column]
        together = stats.auroc(harmful[:, tried].sum(1), harmless[:, tried].sum(1)) or 0.0
        wanted = -MIN_GAIN if alone[column] >= min_auc else MIN_GAIN
        row = TokenEvidence(
            id=token,
            piece=piece_of(tokenizer, token),
            count=firsts[token],
            auc=alone[column],
            p_harmful=float(harmful[:, column].mean()),
            p_harmless=float(harmless[:, column].mean()),
            gain=together - total,
            kept=together >= total + wanted and firsts[token] >= min_share * n,
        )
        evidence.append(row)
        if row.kept:
            kept, total = tried, together
    enough = bool(kept) and total >= min_auc
    if not enough:
        evidence = [replace(row, kept=False) for row in evidence]
    chosen = sorted((row for row in evidence if row.kept), key=lambda row: -row.p_harmful)
    return RefusalTokens(
        ids=tuple(row.id for row in chosen),
        pieces=tuple(row.piece for row in chosen),
        source=source,
        evidence=tuple(evidence),
        n_refusals=n,
        auc=total if enough else None,
        problem=None if enough else _inseparable(evidence, min_auc, min_share),
    )


def _inseparable(evidence: Sequence[TokenEvidence], min_auc: float, min_share: float) -> str:
    """Why no token was kept, by the one that came nearest."""
    best = max(evidence, key=lambda row: row.auc)
    return (
        f"no opening of a refusal separates harmful from harmless: the best, {best.piece!r} "
        f"({best.id}), has AUC {best.auc:.2f} where {min_auc:g} and {min_share:.0%} of the "
        f"refusals are needed, mean probability {best.p_harmful:.2f} on harmful and "
        f"{best.p_harmless:.2f} on harmless prompts; does the baseline refuse harmless ones too? "
        "`mechprobe probe --refusal-token TEXT` names tokens, and a spec's `probes: "
        "{refusal_tokens: [TEXT]}`"
    )


def piece_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as text."""
    return str(tokenizer.decode([token]))


def _probabilities(logits: ArrayLike, ids: Sequence[int]) -> NDArray[np.float64]:
    """Probability of each of some tokens, shape (n, len(ids)), row by row to save memory."""
    out = np.empty((len(np.asarray(logits)), len(ids)))
    for row, values in enumerate(np.asarray(logits)):
        x = np.asarray(values, np.float64)
        out[row] = np.exp(x[list(ids)] - logsumexp(x))
    if np.isnan(out).any():
        raise NumericsError("refusal tokens: NaN among the logits of the first generated position")
    return out
