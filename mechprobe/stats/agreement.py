"""Cohen's kappa of two readings of the same items, with an interval over clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.stats.clusters import Clusters, cluster_codes, effective
from mechprobe.stats.estimates import Estimate
from mechprobe.stats.shares import wilson


def kappa_estimate(
    first: Sequence[Any] | NDArray[Any],
    second: Sequence[Any] | NDArray[Any],
    *,
    clusters: Clusters | None = None,
) -> Estimate | None:
    """Cohen's kappa of two readings with a 95 % interval over clusters.

    Wilson's interval of the share of equal labels, chance agreement as seen, of as many items as
    give that share the error of kappa: by its influence function (Fleiss, Cohen and Everitt 1969)
    and the design effect of the clusters. Two readings that never differ so leave kappa at Wilson's
    bound for as many agreements as there are clusters.

    Args:
        first: Labels, one per item.
        second: Labels of the same items.
        clusters: To which cluster each item belongs; None makes each its own.

    Returns:
        None with fewer than two clusters, and where one of them gave everything the same label:
        kappa is 0 then, whatever the other says.

    Source: Cohen 1960; the interval: Donner and Eliasziw 1992.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} labels")
    codes, n = cluster_codes(clusters, len(first)), len(first)
    if len(set(codes.tolist())) < 2 or min(len(set(first)), len(set(second))) < 2:
        return None
    names, labels = np.unique([*first, *second], return_inverse=True)
    a, b = labels[:n], labels[n:]
    margins = [np.bincount(side, minlength=len(names)) / n for side in (a, b)]
    same = (a == b).astype(np.float64)
    share, chance = float(same.mean()), float(margins[0] @ margins[1])
    value = (share - chance) / (1 - chance)
    size = float(codes.max() + 1)
    if 0 < share < 1:
        influence = same - (1 - value) * (margins[1][a] + margins[0][b])
        influence -= influence.mean()
        variance, within = float(influence @ influence), n * share * (1 - share)
        # changes of chance agreement may hide that clusters agree as a whole
        effect = max(effective(influence, codes, variance), effective(same, codes, within))
        size = n * within / (variance * effect)
    low, high = ((end - chance) / (1 - chance) for end in wilson(share * size, size))
    return Estimate(value, min(low, value), max(high, value), n)
