"""What a row of the matrix says of the probes: plain numbers from their JSON files.

A measure with an interval is three columns, `name`, `name_low` and `name_high` (95 %); `name_p` is
its p. Names without `harmless` or `mlp` are of harmful prompts and of residual dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechprobe.experiments.summary import number

_CUTOFF = 0.05
MARK = " | "
"""Between reasons."""


def probe_columns(probes: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of all probes; a probe that was not run, or could not say, leaves them empty.

    Args:
        probes: The content of a cell's `probes.json`.
    """
    return {
        **_entropy(probes),
        **_direction(probes),
        **_calibration(probes),
        **_neurons(probes),
        "forward_tokens_observational": _at(probes, "forward_tokens", "observational"),
        "forward_tokens_interventional": _interventional(probes),
    }


def probe_gaps(probes: Mapping[str, Any], *, has_baseline: bool) -> dict[str, str]:
    """What the probes of a row lack, as text: `unmet`, their main numbers, and `not_measured`, why.

    Args:
        probes: The content of a cell's `probes.json`.
        has_baseline: A baseline is compared with nothing, and has no error of neurons.
    """
    named = {name: each for name, each in probes.items() if "unmet" in each}
    if not has_baseline:
        named.pop("safety_neurons", None)
    unmet = {name: each.get("unmet", ()) for name, each in named.items()}
    reasons = dict.fromkeys(
        line
        for name, parts in unmet.items()
        for line in named[name]["not_measured"]
        if line.startswith(tuple(parts))
    )
    lacking = [f"{name}: {part}" for name, parts in unmet.items() for part in parts]
    return {"unmet": "; ".join(lacking), "not_measured": MARK.join(reasons)}


def _at(found: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _number(found: Any, *path: str) -> float | None:
    return number(_at(found, *path))


def _estimate(name: str, found: Any, *path: str, value: str = "value") -> dict[str, Any]:
    """A measure and its interval."""
    one = _at(found, *path)
    return {
        name: _number(one, value),
        f"{name}_low": _number(one, "low"),
        f"{name}_high": _number(one, "high"),
    }


def _rate(name: str, found: Any, *path: str) -> dict[str, Any]:
    """A share and its interval; without a share the interval says nothing."""
    one = _at(found, *path)
    return _estimate(name, one if _number(one, "rate") is not None else None, value="rate")


def _interventional(probes: Mapping[str, Any]) -> int | None:
    counts: Mapping[str, int] | None = probes.get("forward_tokens")
    if not counts:
        return None
    return sum(n for name, n in counts.items() if name.startswith("interventional"))


def _entropy(probes: Mapping[str, Any]) -> dict[str, Any]:
    found = probes.get("entropy")
    harmful, harmless = _at(found, "harmful"), _at(found, "harmless")
    return {
        **_estimate("entropy_harmful", harmful, "entropy"),
        **_estimate("entropy_shift", harmful, "shift"),
        **_estimate("first_token_kl", harmful, "kl"),
        **_rate("first_token_flips", harmful, "flips"),
        **_estimate("refusal_log_odds", harmful, "log_odds"),
        **_estimate("refusal_margin_lost", found, "margin_lost"),
        **_estimate("entropy_harmless", harmless, "entropy"),
        **_estimate("entropy_harmless_shift", harmless, "shift"),
        **_estimate("first_token_kl_harmless", harmless, "kl"),
        **_rate("first_token_flips_harmless", harmless, "flips"),
    }


def _direction(probes: Mapping[str, Any]) -> dict[str, Any]:
    found = probes.get("refusal_direction")
    causal, selected = _at(found, "causal"), _at(found, "scores", "selected")
    angles = _at(found, "angles", "degrees")
    return {
        "direction_position": _at(found, "position"),
        "direction_layer": _at(found, "layer"),
        "direction_bypass": _number(selected, "bypass"),
        "direction_induce": _number(selected, "induce"),
        "direction_kl": _number(selected, "kl"),
        "direction_norm": _number(found, "norm"),
        "direction_norm_ratio": _number(found, "norm_ratio"),
        "direction_cosine": _number(found, "cosine"),
        "direction_cosine_floor": _number(found, "cosine_floor"),
        **_estimate("direction_auc", found, "own", "auc"),
        **_estimate("direction_dprime", found, "own", "dprime"),
        **_estimate("direction_auc_on_baseline", found, "on_baseline", "auc"),
        "direction_angle": number(angles[0]) if angles else None,
        **_rate("harmful_refusal_dense", causal, "harmful"),
        **_rate("harmful_refusal_ablated", causal, "harmful_ablated"),
        **_rate("harmful_refusal_ablated_random", causal, "harmful_ablated_random"),
        **_rate("harmless_refusal_dense", causal, "harmless"),
        **_rate("harmless_refusal_added", causal, "harmless_added"),
        **_rate("harmless_refusal_added_random", causal, "harmless_added_random"),
        "causal_n": _at(causal, "harmful", "n"),
    }


def _calibration(probes: Mapping[str, Any]) -> dict[str, Any]:
    found = probes.get("calibration")
    first, labelled = _at(found, "first_token"), _at(found, "labelled")
    refusal = _at(found, "refusal", "predicted")
    return {
        **_estimate("top1_harmful", first, "top1"),
        **_estimate("top1_shift", first, "shifts", "top1"),
        **_estimate("top5_harmful", first, "top5"),
        **_estimate("gini_harmful", first, "gini"),
        **_estimate("logit_range_harmful", first, "logit_range"),
        "entropy_proxy_ece": _number(first, "proxy_ece"),
        "ece": _number(labelled, "top", "ece"),
        "ece_mass": _number(labelled, "top", "ece_mass"),
        "ece_if_calibrated": _number(labelled, "top", "ece_if_calibrated"),
        "p_calibrated": _number(labelled, "top", "p_calibrated"),
        **_estimate("ece_shift", labelled, "ece_shift"),
        **_estimate("labelled_brier", labelled, "brier"),
        **_estimate("labelled_nll", labelled, "nll"),
        **_estimate("labelled_auroc", labelled, "top", "auroc"),
        **_estimate("true_answer_shift", labelled, "true_answer_shift"),
        "refusal_ece": _number(refusal, "ece"),
        "refusal_ece_mass": _number(refusal, "ece_mass"),
        "refusal_ece_if_calibrated": _number(refusal, "ece_if_calibrated"),
        "refusal_p_calibrated": _number(refusal, "p_calibrated"),
        **_estimate("refusal_auroc", refusal, "auroc"),
        **_estimate("refusal_brier", refusal, "brier"),
    }


def _neurons(probes: Mapping[str, Any]) -> dict[str, Any]:
    found = probes.get("safety_neurons")
    study = _at(found, "study")
    columns = {
        **_estimate("neurons_study_ratio", study, value="mean"),
        "neurons_study_ratio_p": _number(study, "p"),
        "neurons_equal_layers": len(_at(found, "equal_layers") or ())
        if _at(found, "ratios")
        else None,
    }
    for kind, infix in (("residual", ""), ("mlp", "mlp_")):
        columns |= _ratios(found, kind, f"neurons_{infix}") | _patching(
            found, kind, f"patching_{infix}"
        )
    return columns


def _ratios(found: Any, kind: str, prefix: str) -> dict[str, Any]:
    """Of one kind of neuron, over all layers."""
    row = None
    for each in _at(found, "ratios") or ():
        if (each["kind"], each["layer"], each["cutoff"]) == (kind, None, _CUTOFF):
            row = each
    n, lost = _at(row, "n_safety"), _at(row, "n_unmatched")
    return {
        f"{prefix}unadjusted": _number(row, "ratio"),
        f"{prefix}relative": _number(row, "relative"),
        **_estimate(f"{prefix}ratio", row, "adjusted", value="ratio"),
        f"{prefix}ratio_p": _number(row, "adjusted", "p"),
        # below 80 % of them the matched ratio is blank
        f"{prefix}matched": number((n - lost) / n) if n else None,
        f"{prefix}weight_unadjusted": _number(row, "weight"),
        f"{prefix}weight_relative": _number(row, "weight_relative"),
        **_estimate(f"{prefix}weight_ratio", row, "weight_adjusted", value="ratio"),
        f"{prefix}weight_ratio_p": _number(row, "weight_adjusted", "p"),
    }


def _patching(found: Any, kind: str, prefix: str) -> dict[str, Any]:
    part = None
    for each in _at(found, "patching") or ():
        if each["kind"] == kind:
            part = each
    return {
        **_estimate(f"{prefix}returned", part, "whole"),
        **_estimate(f"{prefix}excess", part, "excess"),
        f"{prefix}p": _number(part, "p"),
        **_estimate(f"{prefix}everything", part, "everything"),
    }
