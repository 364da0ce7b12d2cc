"""Numbers and counts as people read them. Nothing here knows HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"
NOTHING = "not measured"


def signed(points: float | None, digits: int = 1) -> str:
    """A change with its sign; one that rounds to nothing has none."""
    if points is None:
        return NOTHING
    text = f"{points:+.{digits}f}".replace("-", MINUS)
    return text[1:] if not float(text[1:]) else text


def plain(value: float | None, digits: int = 1) -> str:
    """A number with a typographic minus; one too small for its digits keeps two of its own."""
    if value is None:
        return NOTHING
    small = digits > 4 and 0 < abs(value) < 1e-4
    return (f"{value:.2g}" if small else f"{value:.{digits}f}").replace("-", MINUS)


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def interval(low: float | None, high: float | None, digits: int = 1, *, level: bool = False) -> str:
    """Both ends, of a change with their signs, or nothing."""
    if low is None or high is None:
        return ""
    ends = [(plain if level else signed)(end, digits) for end in (low, high)]
    return f"[{', '.join(ends)}]"


def p_value(p: float | None) -> str:
    """Two leading digits; what is smaller than 0.001 only says so."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.095 else f"{p:.2f}"


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`, `10,000 rows`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def some(parts: Sequence[str], most: int = 4) -> str:
    """The first few by name, and how many more."""
    if len(parts) <= most + 1:
        return listed(parts)
    return f"{', '.join(parts[:most])} and {len(parts) - most} more"


def measure_name(name: str) -> str:
    """A measure's key as words."""
    known = {
        "refusal": "harmful prompts refused",
        "harmless_refusal": "harmless prompts refused",
        "accuracy": "four-option accuracy",
    }
    return known.get(name, name.replace("_", " "))


def moved(delta: Mapping[str, Any]) -> str:
    """Before and after: counts where there are some, else shares."""
    if delta["before_count"] is not None and delta["after_count"] is not None and delta["n"]:
        return f"{delta['before_count']} → {delta['after_count']} of {delta['n']}"
    if delta["before"] is None or delta["after"] is None:
        return NOTHING
    return f"{percent(delta['before'])} → {percent(delta['after'])}"


def change(delta: Mapping[str, Any] | None) -> str:
    """A delta in points with its interval."""
    if delta is None or delta["points"] is None:
        return NOTHING
    return f"{signed(delta['points'])} {interval(delta['low'], delta['high'])}".strip()


def metric_name(name: str) -> str:
    """A probe's column as words."""
    return _METRICS.get(name, name.replace("_", " "))


_METRICS = {
    "entropy_harmful": "entropy on harmful prompts",
    "entropy_shift": "entropy shift",
    "entropy_harmless": "entropy on harmless prompts",
    "entropy_harmless_shift": "entropy shift, harmless prompts",
    "first_token_kl": "first-token KL",
    "first_token_flips": "first tokens changed",
    "refusal_log_odds": "refusal log-odds",
    "refusal_margin_lost": "refusal margin lost",
    "direction_norm": "direction: length",
    "direction_norm_ratio": "direction: length over baseline's",
    "direction_cosine": "direction: cosine to baseline's",
    "direction_auc": "direction: AUC",
    "direction_dprime": "direction: d-prime",
    "direction_auc_on_baseline": "direction: AUC on baseline's",
    "direction_angle": "direction: principal angle",
    "harmful_refusal_ablated": "refused, direction ablated",
    "harmless_refusal_added": "refused, direction added",
    "top1_harmful": "top-1 confidence",
    "top1_shift": "top-1 confidence, shift",
    "ece_shift": "calibration error (ECE), shift",
    "top5_harmful": "top-5 confidence",
    "gini_harmful": "Gini impurity",
    "logit_range_harmful": "logit range",
    "entropy_proxy_ece": "entropy-proxy ECE",
    "ece": "calibration error (ECE)",
    "labelled_brier": "labelled questions: Brier",
    "labelled_nll": "labelled questions: NLL",
    "labelled_auroc": "labelled questions: AUROC",
    "true_answer_shift": "confidence in the true answer, shift",
    "refusal_ece": "refusal calibration: ECE",
    "refusal_auroc": "refusal calibration: AUROC",
    "refusal_brier": "refusal calibration: Brier",
    "neurons_study_ratio": "safety neurons: study ratio",
    "neurons_ratio": "safety neurons: matched ratio",
    "neurons_weight_ratio": "safety neurons: matched ratio, weights",
    "neurons_mlp_unadjusted": "safety neurons: unadjusted ratio, MLP",
    "neurons_mlp_ratio": "safety neurons: matched ratio, MLP",
    "patching_returned": "log-odds returned by patching",
    "patching_excess": "patching: beyond random neurons",
    "patching_mlp_returned": "log-odds returned by patching, MLP",
}
