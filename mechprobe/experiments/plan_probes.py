"""The probes of a cell as steps: which files each reads and writes. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mechprobe import stats
from mechprobe.behavior.refusal import get_instrument
from mechprobe.experiments.spec import Spec
from mechprobe.probes.saving import SCHEMA

_FILES = {
    "entropy": ("entropy.json",),
    "refusal_direction": ("refusal_direction.json", "refusal_direction.safetensors"),
    "calibration": ("calibration.json",),
    "safety_neurons": ("safety_neurons.json", "safety_neurons.npz"),
}
_LABELS = {
    "entropy": "entropy",
    "refusal_direction": "refusal direction",
    "calibration": "calibration",
    "safety_neurons": "safety neurons",
}


@dataclass(frozen=True, slots=True)
class ProbePart:
    """One step of the probes of a cell."""

    name: str
    action: str
    """Function of `mechprobe.experiments.probed`."""
    outputs: tuple[str, ...]
    needs: tuple[str, ...]
    """Steps of the same cell; those that the spec does not have are left out."""
    baseline_needs: tuple[str, ...]
    """Steps of its baseline."""
    params: dict[str, Any]
    label: str
    version: int = 1


def probe_parts(spec: Spec, baseline_folder: str | None) -> list[ProbePart]:
    """The observational pass, then one step per probe.

    Args:
        spec: Names the probes.
        baseline_folder: Of the cell to compare with; None where the cell is a baseline itself.
    """
    probes = spec.probes
    instrument = get_instrument(spec.tasks.refusal.instrument if spec.tasks.refusal else "hard")
    unasked = set() if probes.refusal_tokens else {"refusal_tokens"}  # keys of older runs stay
    common = {
        "schema": SCHEMA,
        "probes": probes.model_dump(mode="json", exclude={"kernel_gap", *unasked}),
        "instrument": instrument.name,
        "reads": instrument.digest,
        "baseline_folder": baseline_folder,
    }
    observed = ["probes/observation"]
    if baseline_folder is None and not probes.study:
        observed.append("probes/refusal_tokens.json")
    parts = [
        ProbePart("observe", "observe", tuple(observed), (), ("observe",), common, "observation")
    ]
    kept = {} if baseline_folder or probes.study else {"safety_neurons": ("weights",)}
    for name in probes.run:
        step = name.replace("_", "-")
        answers = ("score-refusal", "multiple-choice") if name == "calibration" else ()
        parts.append(
            ProbePart(
                name=step,
                action=name,
                outputs=tuple(f"probes/{file}" for file in (*_FILES[name], *kept.get(name, ()))),
                needs=("observe", *answers),
                baseline_needs=("observe", step),
                params=common,
                label=_LABELS[name],
                version=stats.VERSION,
            )
        )
    return parts
