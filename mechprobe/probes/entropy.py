"""Entropy: how sure a model is of its first token, and how much refusal it has lost by then.

The Shannon entropy of the next-token distribution at the first generated position, on harmful and
on harmless prompts; what quantization did to it, prompt by prompt: the shift of the entropy,
KL(baseline ‖ cell), how often the most probable token is another one, and the refusal log-odds of
Arditi et al. 2024, whose paired shift is the refusal margin lost. A margin can shrink long before
any answer changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mechprobe import stats
from mechprobe.behavior.rate import Rate
from mechprobe.probes.baseline import baseline_warnings
from mechprobe.probes.next_token import FloatArray, entropy_nats, logit_rows
from mechprobe.probes.observation import Facts, Need, Observation
from mechprobe.probes.refusal_tokens import RefusalTokens, refusal_log_odds
from mechprobe.probes.saving import Saved
from mechprobe.stats import Estimate, PairedShift

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

SETS = ("evaluate/harmful", "evaluate/harmless")


@dataclass(frozen=True, slots=True)
class PromptSetEntropy:
    """One prompt set at the first generated position; entropy, KL and log-odds are in nats."""

    digest: str
    """SHA-256 of the prompts' token ids."""
    n: int
    entropy: Estimate | None
    shift: PairedShift | None
    """Entropy, cell minus baseline."""
    kl: Estimate | None
    """Mean KL(baseline ‖ cell)."""
    kl_max: float | None
    flips: Rate | None
    """Prompts whose most probable first token differs from the baseline's."""
    log_odds: Estimate | None
    """Refusal log-odds; above 0 the model would rather begin with a refusal token than not."""
    log_odds_shift: PairedShift | None
    per_prompt: dict[str, tuple[float, ...]]
    """The same, prompt by prompt: `entropy`, `kl`, `log_odds`, and `baseline_…` of the first and
    last, each where it was measured."""


@dataclass(frozen=True, slots=True)
class EntropyResult(Saved):
    """What one cell's first generated position shows, beside its baseline's."""

    NAME: ClassVar[str] = "entropy"

    cell: Facts
    baseline: Facts | None
    study: bool
    """Whether only what arXiv 2606.10154 reads was measured."""
    tokens: RefusalTokens | None
    harmful: PromptSetEntropy
    harmless: PromptSetEntropy
    not_measured: tuple[str, ...]
    """What is missing above, and why."""
    warnings: tuple[str, ...]
    """What makes the numbers mean something else than they seem to."""

    @property
    def margin_lost(self) -> PairedShift | None:
        """Refusal log-odds lost on harmful prompts: baseline minus cell, above 0 for a loss."""
        shift = self.harmful.log_odds_shift
        return None if shift is None else shift.opposite()

    @property
    def unmet(self) -> tuple[str, ...]:
        """Entropy on harmful prompts, and the refusal log-odds."""
        wanted = {"entropy": self.harmful.entropy}
        if not self.study:
            wanted["refusal log-odds"] = self.harmful.log_odds
        return tuple(name for name, found in wanted.items() if found is None)

    def _headline(self) -> dict[str, Any]:
        lost = self.margin_lost
        return {"margin_lost": asdict(lost) if lost else None}

    def __rich__(self) -> Table:
        """A table for people."""
        from mechprobe.probes.entropy_view import table

        return table(self)

    def plot(self) -> Figure:
        """Every prompt: baseline against cell."""
        from mechprobe.probes.entropy_view import figure

        return figure(self)


def needs() -> tuple[Need, ...]:
    """What the probe reads: the logits after each evaluation prompt."""
    return tuple(Need(name, logits=True) for name in SETS)


def measure(
    cell: Observation,
    baseline: Observation | None = None,
    *,
    tokens: RefusalTokens | None = None,
    clusters: Mapping[str, Sequence[Any]] | None = None,
    study: bool = False,
) -> EntropyResult:
    """Compare the first generated position of a cell with its baseline's.

    Args:
        cell: Observed with `needs()`.
        baseline: Observed on the same token ids.
        tokens: Of the baseline, from `find_refusal_tokens` or named.
        clusters: By prompt set, which prompts belong together and are resampled together.
        study: Only the entropy and its shift, as arXiv 2606.10154 reads them.

    Raises:
        ParityError: The two saw different token ids.
        VocabularyError: Their vocabularies differ in size.
        NumericsError: NaN or infinity among the logits.
    """
    missing = []
    if baseline is None:
        missing.append("shifts, KL and changed tokens: no baseline was given")
    if study:
        missing.append("KL, changed tokens and refusal log-odds: not part of the study mode")
    elif not tokens:
        why = "no refusal tokens were given" if tokens is None else tokens.problem
        missing.append(f"refusal log-odds: {why}")
    read = [_prompt_set(cell, baseline, name, tokens, clusters, study) for name in SETS]
    missing += [
        f"{name}: {found.n} prompts are too few for an interval"
        for name, found in zip(SETS, read, strict=True)
        if found.entropy is None
    ]
    return EntropyResult(
        cell=cell.facts,
        baseline=None if baseline is None else baseline.facts,
        study=study,
        tokens=tokens,
        harmful=read[0],
        harmless=read[1],
        not_measured=tuple(missing),
        warnings=baseline_warnings(None if baseline is None else baseline.facts.precision),
    )


def _prompt_set(
    cell: Observation,
    baseline: Observation | None,
    prompts: str,
    tokens: RefusalTokens | None,
    clusters: Mapping[str, Sequence[Any]] | None,
    study: bool,
) -> PromptSetEntropy:
    columns = _columns(cell, baseline, prompts, () if study or not tokens else tokens.ids, study)
    together = (clusters or {}).get(prompts)

    def mean(name: str) -> Estimate | None:
        return stats.mean_estimate(columns[name], clusters=together) if name in columns else None

    def shift(name: str) -> PairedShift | None:
        other = columns.get(f"baseline_{name}")
        if other is None:
            return None
        return stats.paired_shift(columns[name], other, clusters=together)

    flips = columns.pop("flip", None)
    return PromptSetEntropy(
        digest=cell.digest(prompts),
        n=len(columns["entropy"]),
        entropy=mean("entropy"),
        shift=shift("entropy"),
        kl=mean("kl"),
        kl_max=float(columns["kl"].max()) if len(columns.get("kl", ())) else None,
        flips=None if flips is None else Rate.among(flips.tolist(), together),
        log_odds=mean("log_odds"),
        log_odds_shift=shift("log_odds"),
        per_prompt={name: tuple(values.tolist()) for name, values in columns.items()},
    )


def _columns(
    cell: Observation,
    baseline: Observation | None,
    prompts: str,
    ids: Sequence[int],
    study: bool,
) -> dict[str, FloatArray]:
    """Each measure prompt by prompt, shape (n,)."""
    parts: dict[str, list[FloatArray]] = {}
    for mine, other in logit_rows(cell, baseline, prompts):
        found = {"entropy": entropy_nats(mine)}
        if ids:
            found["log_odds"] = refusal_log_odds(mine, ids)
        if other is not None:
            found["baseline_entropy"] = entropy_nats(other)
            if ids:
                found["baseline_log_odds"] = refusal_log_odds(other, ids)
            if not study:
                found["kl"] = np.maximum(stats.kl_divergence(other, mine), 0.0)
                found["flip"] = (mine.argmax(axis=1) != other.argmax(axis=1)).astype(np.float64)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}
