"""Several judges as one: the majority, what it owes to each of them, and how far they agree.

Labels are `refuse`, `partial`, `comply` and `unclear`; a missing label is None.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.behavior.judges.voting import vote

if TYPE_CHECKING:
    import pandas as pd

DECIDED = ("refuse", "partial", "comply")
LABELS = (*DECIDED, "unclear")
ANSWER = ["model", "cell", "request", "temperature", "prompt", "cluster", "sample"]
"""What one answer is known by in a frame of labels."""
Codes = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What the judges say together."""

    verdicts: pd.DataFrame
    """One row per answer: the columns of `ANSWER` and `label`."""
    ties: int
    """Answers that stood even at either step; they are `unclear`."""
    incomplete: int
    """Answers that some judge gave no label; they have none."""


def with_clusters(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows; a prompt without a cluster (None, NaN) is its own."""
    alone = "\0" + frame["prompt"].astype(str)
    return frame.assign(cluster=frame["cluster"].where(frame["cluster"].notna(), alone))


def _codes(labels: pd.DataFrame, judges: Sequence[str]) -> tuple[pd.DataFrame, Codes]:
    """Answers, and the place in `LABELS` of each judge's label of them; -1 where there is none."""
    import pandas as pd

    known = with_clusters(labels).assign(
        code=pd.Categorical(labels["label"], categories=list(LABELS)).codes
    )
    wide = known.pivot(index=ANSWER, columns="judge", values="code").reindex(columns=list(judges))
    codes = wide.fillna(-1).to_numpy(np.int64)
    return wide.index.to_frame(index=False), codes


def judges_of(labels: pd.DataFrame) -> tuple[str, ...]:
    """The judges of a frame, in the order in which they appear."""
    return tuple(str(name) for name in labels["judge"].drop_duplicates())


def majority(
    labels: pd.DataFrame, judges: Sequence[str] | None = None, blind: Collection[str] = ()
) -> Ensemble:
    """What most judges say of each answer, asked in two steps; a tie is `unclear`.

    See `mechprobe.behavior.judges.voting.vote`. An answer that one of the judges gave no label
    has none.

    Args:
        labels: One row per answer and judge: the columns of `ANSWER`, `judge` and `label`.
        judges: Those that vote; those of the frame by default. One without a row in it gave no
            answer a label.
        blind: Those that cannot tell compliance from an unclear answer, such as word lists.
    """
    voting = judges_of(labels) if judges is None else tuple(judges)
    answers, codes = _codes(labels, voting)
    sees = np.array([name not in blind for name in voting], np.bool_)
    found = vote(codes, sees)
    names = np.array([*LABELS, None], dtype=object)
    return Ensemble(answers.assign(label=names[found.codes]), found.ties, found.incomplete)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the judges agree, over all answers of the frame."""

    judges: tuple[str, ...]
    answers: int
    complete: int
    """Answers that every judge gave a label, `unclear` among them."""
    decided: int
    """Of these, answers that no judge called `unclear`."""
    unanimous: float | None
    """Share of the complete answers that all judges label alike."""
    fleiss_kappa: float | None
    """Over the decided answers, as the study drops UNCLEAR."""
    fleiss_kappa_all: float | None
    """Over the complete answers, `unclear` being a label of its own."""
    krippendorff_alpha: float | None
    """Nominal, over every answer: `unclear` and missing labels are left out one by one."""


def agreement(labels: pd.DataFrame, judges: Sequence[str] | None = None) -> Agreement | None:
    """Fleiss' kappa and Krippendorff's alpha; None with one judge.

    Every label counts as it was given, that of a blind judge too. A coefficient is None where all
    labels are the same: chance explains such agreement in full.

    Source: Fleiss 1971 through `statsmodels.stats.inter_rater`, Krippendorff 2011 through the
    package `krippendorff`.
    """
    judges = judges_of(labels) if judges is None else tuple(judges)
    if len(judges) < 2:
        return None
    _, codes = _codes(labels, judges)
    unclear = LABELS.index("unclear")
    complete = codes[(codes >= 0).all(axis=1)]
    decided = complete[(complete != unclear).all(axis=1)]
    same = (complete == complete[:, :1]).all(axis=1)
    return Agreement(
        judges,
        len(codes),
        len(complete),
        len(decided),
        float(same.mean()) if len(complete) else None,
        _fleiss(decided),
        _fleiss(complete),
        _alpha(np.where(codes == unclear, -1, codes)),
    )


def _fleiss(codes: Codes) -> float | None:
    if len(np.unique(codes)) < 2:
        return None
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    return float(fleiss_kappa(aggregate_raters(codes)[0], method="fleiss"))


def _alpha(codes: Codes) -> float | None:
    paired = codes[(codes >= 0).sum(axis=1) >= 2]
    if len(np.unique(paired[paired >= 0])) < 2:
        return None
    import krippendorff

    counts = np.stack([(paired == k).sum(axis=1) for k in range(len(DECIDED))], axis=1)
    used = counts[:, counts.sum(axis=0) > 0]
    return float(krippendorff.alpha(value_counts=used, level_of_measurement="nominal"))
