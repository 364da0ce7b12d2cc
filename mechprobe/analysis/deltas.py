"""Outcomes by prompt become paired deltas: one line per cell, measure and instrument.

Works on whole arrays, so that ten thousand cells cost seconds. What belongs together (`cluster`)
is resampled together.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mechprobe.errors import TableError

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
KEYS = ("model", "cell", "measure", "instrument")
OUTCOMES = (*KEYS, "baseline", "prompt", "cluster", "value")
"""Columns of `outcomes` that are read here."""
_AT_ONCE = 4_000_000
"""Numbers of a resampled block that are in memory together."""


@dataclass(frozen=True)
class Deltas:
    """Paired deltas of many cells, and what resampling them needs.

    The arrays have one entry per line of the table and cluster, lines ascending.
    """

    table: pd.DataFrame
    """One line per (model, cell, measure, instrument) with a baseline, in the order of the
    outcomes: `kind` (binary, score), `n`, `clusters`, `unread`, `before_sum`, `after_sum`, `lost`,
    `gained` (prompts that fell and rose), `fallen`, `risen` (by how much together), `mean` and
    `furthest` (of the changes; the largest distance from their mean), `squares` (their sum)."""
    line: IntArray
    block: IntArray
    """Which lines share prompts: one number per model, measure and instrument, shape (lines,)."""
    cluster: IntArray
    change: FloatArray
    """Sum of after minus before over the cluster's prompts."""
    size: IntArray
    """Prompts of the cluster that could be read in both."""
    resamples: int
    seed: int

    def resampled(self, lines: IntArray) -> Iterator[tuple[IntArray, FloatArray, FloatArray]]:
        """Sums of changes and prompts over resampled clusters.

        All lines of a measure with as many clusters take the same resamples, so that cells are
        compared on equal terms, and the order in which lines are asked for changes nothing.

        Yields:
            Positions in `lines`, sums of changes and numbers of prompts, shape (resamples, k)
            each; sums of yes-or-no changes are exact integers.
        """
        start, stop = (np.searchsorted(self.line, lines, side) for side in ("left", "right"))
        blocks = self.block[lines]
        for number in np.unique(blocks):
            mine = np.flatnonzero(blocks == number)
            spans = [np.arange(start[i], stop[i]) for i in mine]
            clusters = np.unique(self.cluster[np.concatenate(spans)]) if spans else np.empty(0)
            if not len(clusters):
                continue
            name = self.table.iloc[int(lines[mine[0]])]
            weights = _weights(
                len(clusters),
                self.resamples,
                self.seed,
                zlib.crc32(f"{name['measure']}|{name['instrument']}".encode()),
            )
            step = max(1, _AT_ONCE // max(self.resamples, len(clusters)))
            for at in range(0, len(mine), step):
                part = range(at, min(at + step, len(mine)))
                change = np.zeros((len(clusters), len(part)))
                size = np.zeros((len(clusters), len(part)))
                for column, i in enumerate(part):
                    where = np.searchsorted(clusters, self.cluster[spans[i]])
                    change[where, column] = self.change[spans[i]]
                    size[where, column] = self.size[spans[i]]
                yield mine[part.start : part.stop], weights @ change, weights @ size


@lru_cache(maxsize=8)
def _weights(clusters: int, resamples: int, seed: int, salt: int) -> FloatArray:
    """How often each cluster is drawn, shape (resamples, clusters)."""
    rng = np.random.default_rng([seed, salt, clusters])
    drawn = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    return drawn.astype(np.float64)


def pair(outcomes: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> Deltas:
    """Pair every cell with its baseline, prompt by prompt.

    Args:
        outcomes: The columns `OUTCOMES`, one line per model, cell, measure, instrument and prompt;
            `baseline` is a cell of the same model, or empty; a prompt without a `cluster` is its
            own; a `value` of NaN could not be read.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        TableError: A column is missing, a row has no name, a prompt stands twice in one cell, or a
            value is no number or outside [-1, 1].
    """
    missing = [name for name in OUTCOMES if name not in outcomes]
    if missing:
        raise TableError(f"outcomes: no column {missing[0]!r}; see docs/analysis.md")
    for name in (*KEYS, "prompt"):
        empty = outcomes[name].isna().to_numpy()
        if empty.any():
            raise TableError(f"outcomes: row {int(np.argmax(empty))} has no {name}; fill it in")
    outcomes = outcomes.assign(baseline=outcomes["baseline"].fillna(""))
    try:
        value = outcomes["value"].to_numpy(np.float64)
    except (TypeError, ValueError) as error:
        raise TableError("outcomes: a value is no number; write 0, 1 or a score") from error
    if (np.abs(value) > 1).any():
        at = outcomes.iloc[int(np.argmax(np.abs(value) > 1))]
        raise TableError(f"outcomes: {_name(at)}: value {at['value']} lies outside [-1, 1]")
    lines, group = _groups(outcomes)
    prompt, prompts = _codes(outcomes["prompt"])
    cluster, clusters = _codes(outcomes["cluster"])
    alone = cluster < 0  # without a cluster a prompt is its own, in the cell and in its baseline
    cluster, clusters = np.where(alone, clusters + prompt, cluster), clusters + prompts
    slot = group * max(prompts, 1) + prompt
    order: IntArray = np.arange(len(slot))
    if (slot[1:] <= slot[:-1]).any():
        order = np.argsort(slot, kind="stable")
    ordered = slot[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        at = outcomes.iloc[int(order[twice[0]])]
        raise TableError(f"outcomes: {_name(at)}: prompt {at['prompt']!r} stands there twice")
    base = _baselines(lines)
    mine = np.flatnonzero(base[group] >= 0)
    wanted = base[group[mine]] * max(prompts, 1) + prompt[mine]
    found = np.minimum(np.searchsorted(ordered, wanted), max(len(ordered) - 1, 0))
    both = ordered[found] == wanted if len(ordered) else np.zeros(0, bool)
    after, before = value[mine[both]], value[order[found[both]]]
    line, cluster = group[mine[both]], cluster[mine[both]]
    keep = np.flatnonzero(base >= 0)
    renumber = np.full(len(base), -1)
    renumber[keep] = np.arange(len(keep))
    return _summed(
        lines.iloc[keep].reset_index(drop=True),
        renumber[line],
        before,
        after,
        cluster,
        clusters,
        _is_binary(lines, group, value)[keep],
        resamples,
        seed,
    )


def _name(row: pd.Series) -> str:  # type: ignore[type-arg, unused-ignore]
    return f"{row['model']}, {row['cell']}, {row['measure']} ({row['instrument']})"


def _codes(column: pd.Series) -> tuple[IntArray, int]:  # type: ignore[type-arg, unused-ignore]
    """Numbers for the values of a column, in their order, and how many there are."""
    import pandas as pd

    try:
        codes, values = pd.factorize(column, sort=True)
    except TypeError as error:
        raise TableError(
            f"outcomes: column {column.name!r}: {error}; write a text or a number in each row"
        ) from error
    return codes.astype(np.int64), len(values)


def _groups(outcomes: pd.DataFrame) -> tuple[pd.DataFrame, IntArray]:
    """The distinct keys in order of appearance, and which one each outcome has."""
    import pandas as pd

    code: IntArray = np.zeros(len(outcomes), np.int64)
    for name in KEYS:
        mine, width = _codes(outcomes[name])
        code = code * max(width, 1) + mine
    group, _ = pd.factorize(code)
    first = np.unique(group, return_index=True)[1]
    lines = outcomes[[*KEYS, "baseline"]].iloc[first].astype(str).reset_index(drop=True)
    return lines, group.astype(np.int64)


def _baselines(lines: pd.DataFrame) -> IntArray:
    """The line that each is held against; -1 where there is none."""
    keys = zip(*(lines[name] for name in KEYS), strict=True)
    place = {key: i for i, key in enumerate(keys)}
    others = zip(*(lines[n] for n in ("model", "baseline", "measure", "instrument")), strict=True)
    found = [place.get(key, -1) if key[1] else -1 for key in others]
    return np.array(found, np.int64)


def _is_binary(lines: pd.DataFrame, group: IntArray, value: FloatArray) -> NDArray[np.bool_]:
    """Whether a measure is yes or no; said of the whole table, so that its lines are alike."""
    import pandas as pd

    of, names = pd.factorize(lines["measure"] + "\0" + lines["instrument"])
    other = ~(np.isnan(value) | (value == 0) | (value == 1))
    some = np.bincount(of[group], weights=other, minlength=len(names)) > 0
    found: NDArray[np.bool_] = ~some[of]
    return found


def _summed(
    table: pd.DataFrame,
    line: IntArray,
    before: FloatArray,
    after: FloatArray,
    cluster: IntArray,
    clusters: int,
    binary: NDArray[np.bool_],
    resamples: int,
    seed: int,
) -> Deltas:
    import pandas as pd

    k = len(table)
    readable = np.isfinite(before) & np.isfinite(after)
    unread = np.bincount(line[~readable], minlength=k)
    line, cluster, before, after = (x[readable] for x in (line, cluster, before, after))
    change = after - before

    def count(weights: FloatArray | NDArray[np.bool_] | None = None) -> FloatArray:
        found: FloatArray = np.bincount(line, weights=weights, minlength=k).astype(np.float64)
        return found

    place = line * max(clusters, 1) + cluster
    which: IntArray = np.arange(len(place))
    if (place[1:] <= place[:-1]).any():
        place, which = np.unique(place, return_inverse=True)
    nets = np.bincount(which, weights=change, minlength=len(place)).astype(np.float64)
    sizes = np.bincount(which, minlength=len(place))
    of_line = place // max(clusters, 1)
    own, first = np.unique(of_line, return_index=True)
    n_clusters = np.zeros(k, np.int64)
    n_clusters[own] = np.diff(np.append(first, len(of_line)))
    block, _ = pd.factorize(table["model"] + "\0" + table["measure"] + "\0" + table["instrument"])
    n = count().astype(np.int64)
    with np.errstate(invalid="ignore"):
        mean = count(change) / n
        furthest = np.zeros(k)
        np.maximum.at(furthest, line, np.abs(change - mean[line]))
        table = table.assign(
            kind=np.where(binary, "binary", "score"),
            n=n,
            clusters=n_clusters,
            unread=unread,
            before_sum=count(before),
            after_sum=count(after),
            lost=count(change < 0).astype(np.int64),
            gained=count(change > 0).astype(np.int64),
            fallen=count(np.maximum(-change, 0.0)),
            risen=count(np.maximum(change, 0.0)),
            mean=mean,
            furthest=furthest,
            squares=count((change - mean[line]) ** 2),
        )
    return Deltas(
        table,
        of_line,
        block.astype(np.int64),
        place % max(clusters, 1),
        nets,
        sizes,
        resamples,
        seed,
    )
