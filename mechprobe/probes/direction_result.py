"""What the refusal direction probe found in one cell, on the screen, in figures and on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, InstanceOf

from mechprobe.probes.candidates import Scores
from mechprobe.probes.direction import RefusalDirection
from mechprobe.probes.saving import Saved
from mechprobe.probes.separability import Separability
from mechprobe.probes.steering import CausalCheck

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

NO_CAUSAL = "causal check: not run"
UNSTEERED = (
    "causal check of the baseline: not run, so whether the direction works where it came from is "
    "not seen here; probe the baseline as --model, without --baseline"
)
SELECTION = "selection: "
"""Begins the line of `not_measured` that says why none of the candidates was selected."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A cell's direction beside its baseline's, at one place."""

    position: int
    layer: int
    norm: float
    """Length of the cell's raw direction, in residual-stream units."""
    cosine: float | None
    """To the baseline's direction; None without a baseline, or where one has no length."""
    floor: float | None
    """Split-half cosine of the baseline itself (of the cell, without a baseline): a cosine above
    it shows no change."""
    norm_ratio: float | None
    """Cell over baseline."""


@dataclass(frozen=True, slots=True)
class Angles:
    """Principal angles in degrees between the refusal subspaces of baseline and cell."""

    degrees: tuple[float, ...]
    """Smallest first; one for each dimension."""
    floor: tuple[float, ...] | None
    """The same between halves of the baseline's own twins: what is no larger shows no change."""


@dataclass(frozen=True, slots=True, eq=False)
class RefusalDirectionResult(Saved):
    """What one cell's refusal direction is, does, and shares with its baseline's."""

    NAME: ClassVar[str] = "refusal_direction"
    ELSEWHERE: ClassVar[tuple[str, ...]] = ("direction",)

    direction: RefusalDirection
    study: bool
    """Whether only what arXiv 2606.10154 reads was measured, on the prompts that were fitted."""
    baseline: str | None
    """Source of the baseline."""
    selected: Comparison
    """At the selected place."""
    study_place: Comparison
    """At the last token and 65 % depth, as arXiv 2606.10154 reads it."""
    own: Separability | None
    """Of held-out prompts along this cell's own direction."""
    on_baseline: Separability | None
    """Along the baseline's."""
    angles: Angles | None
    scores: Annotated[InstanceOf[Scores], BeforeValidator(Scores.from_dict)] | None
    """Of the candidates, where they were scored on this cell."""
    causal: CausalCheck | None
    n_harmful: int
    """Held-out prompts."""
    n_harmless: int
    evaluate_harmful_digest: str
    evaluate_harmless_digest: str
    not_measured: tuple[str, ...]
    """What is missing above, and why."""
    warnings: tuple[str, ...]
    """What makes the numbers mean something else than they seem to."""

    @property
    def layer(self) -> int:
        """The block whose input was read."""
        return self.direction.layer

    @property
    def position(self) -> int:
        """The token that was read, counted from the end of the prompt."""
        return self.direction.position

    @property
    def norm(self) -> float:
        """Length of the raw direction, in residual-stream units."""
        return self.direction.norm

    @property
    def cosine(self) -> float | None:
        """To the baseline's direction at the selected place."""
        return self.selected.cosine

    @property
    def cosine_floor(self) -> float | None:
        """Its noise floor."""
        return self.selected.floor

    @property
    def norm_ratio(self) -> float | None:
        """Length of the direction over the baseline's."""
        return self.selected.norm_ratio

    def with_causal(
        self, check: CausalCheck, baseline: RefusalDirectionResult | None = None
    ) -> RefusalDirectionResult:
        """The same result with a causal check in its place.

        Args:
            check: On this cell.
            baseline: What was found on its baseline.
        """
        rest = tuple(line for line in self.not_measured if line != NO_CAUSAL)
        if baseline is not None and baseline.causal is None:
            rest = (*rest, UNSTEERED)
        return replace(self, causal=check, not_measured=rest)

    @property
    def unmet(self) -> tuple[str, ...]:
        """The direction, its selection on a baseline, its cosine to one, and the held-out AUC."""
        missing = {
            "direction": not self.norm > 0,
            "selection": any(line.startswith(SELECTION) for line in self.not_measured),
            "cosine": self.baseline is not None and self.cosine is None,
            "AUC": not self.study and (self.own is None or self.own.auc is None),
        }
        return tuple(name for name, is_missing in missing.items() if is_missing)

    def _headline(self) -> dict[str, Any]:
        def value(part: Separability | None, name: str) -> float | None:
            found = None if part is None else getattr(part, name)
            return None if found is None else float(found.value)

        return {
            **self.direction.facts(),
            "split_half": self.direction.split_half,
            "n_harmful_fitted": self.direction.n_harmful,
            "n_harmless_fitted": self.direction.n_harmless,
            "norm": self.norm,
            "cosine": self.cosine,
            "cosine_floor": self.cosine_floor,
            "norm_ratio": self.norm_ratio,
            "auc": value(self.own, "auc"),
            "dprime": value(self.own, "dprime"),
            "auc_on_baseline": value(self.on_baseline, "auc"),
            "dprime_on_baseline": value(self.on_baseline, "dprime"),
        }

    def _save_elsewhere(self, folder: Path) -> None:
        self.direction.save(folder)

    @classmethod
    def _load_elsewhere(cls, folder: Path) -> dict[str, Any]:
        return {"direction": RefusalDirection.load(folder)}

    def __rich__(self) -> Table:
        """A table for people."""
        from mechprobe.probes.direction_view import table

        return table(self)

    def plot(self) -> Figure:
        """Margins of held-out prompts, the candidates' scores, and refusal rates when steered."""
        from mechprobe.probes.direction_view import figure

        return figure(self)
