"""What a row of the matrix says of the probes: plain numbers from their JSON files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechprobe.experiments.summary import number

_CUTOFF = 0.05


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


def _at(found: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _number(found: Any, *path: str) -> float | None:
    return number(_at(found, *path))


def _interventional(probes: Mapping[str, Any]) -> int | None:
    counts: Mapping[str, int] | None = probes.get("forward_tokens")
    if not counts:
        return None
    return sum(n for name, n in counts.items() if name.startswith("interventional"))


def _entropy(probes: Mapping[str, Any]) -> dict[str, Any]:
    found = probes.get("entropy")
    harmful = _at(found, "harmful")
    return {
        "entropy_harmful": _number(harmful, "entropy", "value"),
        "entropy_shift": _number(harmful, "shift", "value"),
        "entropy_shift_low": _number(harmful, "shift", "low"),
        "entropy_shift_high": _number(harmful, "shift", "high"),
        "first_token_kl": _number(harmful, "kl", "value"),
        "first_token_flips": _number(harmful, "flips", "rate"),
        "refusal_log_odds": _number(harmful, "log_odds", "value"),
        "refusal_margin_lost": _number(found, "margin_lost", "value"),
        "refusal_margin_lost_low": _number(found, "margin_lost", "low"),
        "refusal_margin_lost_high": _number(found, "margin_lost", "high"),
    }


def _direction(probes: Mapping[str, Any]) -> dict[str, Any]:
    found = probes.get("refusal_direction")
    causal = _at(found, "causal")
    angles = _at(found, "angles", "degrees")
    return {
        "direction_position": _at(found, "position"),
        "direction_layer": _at(found, "layer"),
        "direction_norm": _number(found, "norm"),
        "direction_norm_ratio": _number(found, "norm_ratio"),
        "direction_cosine": _number(found, "cosine"),
        "direction_cosine_floor": _number(found, "cosine_floor"),
        "direction_auc": _number(found, "auc"),
        "direction_dprime": _number(found, "dprime"),
        "direction_auc_on_baseline": _number(found, "auc_on_baseline"),
        "direction_angle": number(angles[0]) if angles else None,
        "harmful_refusal_dense": _number(causal, "harmful", "rate"),
        "harmful_refusal_ablated": _number(causal, "harmful_ablated", "rate"),
        "harmful_refusal_ablated_random": _number(causal, "harmful_ablated_random", "rate"),
        "harmless_refusal_dense": _number(causal, "harmless", "rate"),
        "harmless_refusal_added": _number(causal, "harmless_added", "rate"),
        "harmless_refusal_added_random": _number(causal, "harmless_added_random", "rate"),
        "causal_n": _at(causal, "harmful", "n"),
    }


def _calibration(probes: Mapping[str, Any]) -> dict[str, Any]:
    found = probes.get("calibration")
    return {
        "top1_harmful": _number(found, "first_token", "top1", "value"),
        "entropy_proxy_ece": _number(found, "first_token", "proxy_ece"),
        "ece": _number(found, "labelled", "top", "ece"),
        "ece_if_calibrated": _number(found, "labelled", "top", "ece_if_calibrated"),
        "p_calibrated": _number(found, "labelled", "top", "p_calibrated"),
        "true_answer_shift": _number(found, "labelled", "true_answer_shift", "value"),
        "refusal_ece": _number(found, "refusal", "predicted", "ece"),
        "refusal_auroc": _number(found, "refusal", "predicted", "auroc", "value"),
        "refusal_brier": _number(found, "refusal", "predicted", "brier", "value"),
    }


def _neurons(probes: Mapping[str, Any]) -> dict[str, Any]:
    found = probes.get("safety_neurons")
    rows = {
        row["kind"]: row
        for row in _at(found, "ratios") or ()
        if row["layer"] is None and row["cutoff"] == _CUTOFF
    }
    patching = {part["kind"]: part for part in _at(found, "patching") or ()}
    adjusted = _at(rows.get("residual"), "adjusted")
    return {
        "neurons_study_ratio": _number(found, "study", "mean"),
        "neurons_ratio": _number(adjusted, "ratio"),
        "neurons_ratio_low": _number(adjusted, "low"),
        "neurons_ratio_high": _number(adjusted, "high"),
        "neurons_ratio_p": _number(adjusted, "p"),
        "neurons_mlp_ratio": _number(rows.get("mlp"), "adjusted", "ratio"),
        "patching_returned": _number(patching.get("residual"), "whole", "value"),
        "patching_excess": _number(patching.get("residual"), "excess", "value"),
        "patching_p": _number(patching.get("residual"), "p"),
    }
