"""Statistics as thin pure functions over scipy, statsmodels and scikit-learn.

Everything that compares a cell with its baseline is paired by prompt, and prompts that belong
together count together (`clusters`). A statistic that the data cannot support is None, which every
table shows as `not measured`; it is never 0.
"""

from mechprobe.stats.agreement import kappa_estimate
from mechprobe.stats.clusters import (
    Clusters,
    cluster_codes,
    design_effect,
    linear_error,
    shared_variation,
    studentised,
)
from mechprobe.stats.difference import difference_interval, difference_score
from mechprobe.stats.estimates import (
    Estimate,
    PairedShift,
    bootstrap_interval,
    mean_estimate,
    paired_shift,
    share_estimate,
)
from mechprobe.stats.separation import auroc, auroc_estimate, dprime, dprime_estimate
from mechprobe.stats.shares import effective_size, wilson
from mechprobe.stats.vectors import FloatArray, cosine, kl_divergence, split_half_cosine

VERSION = 4
"""Raised when an interval or a test comes out otherwise for the same values."""

__all__ = [
    "VERSION",
    "Clusters",
    "Estimate",
    "FloatArray",
    "PairedShift",
    "auroc",
    "auroc_estimate",
    "bootstrap_interval",
    "cluster_codes",
    "cosine",
    "design_effect",
    "difference_interval",
    "difference_score",
    "dprime",
    "dprime_estimate",
    "effective_size",
    "kappa_estimate",
    "kl_divergence",
    "linear_error",
    "mean_estimate",
    "paired_shift",
    "share_estimate",
    "shared_variation",
    "split_half_cosine",
    "studentised",
    "wilson",
]
