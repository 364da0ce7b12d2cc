"""What candidate directions do to a live model, and which one is selected for it.

Source: Arditi et al. 2024 (arXiv 2406.11717), section 2.3, and the code they published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.probes.candidate_passes import CandidatePasses, kl_floor
from mechprobe.probes.counting import counting
from mechprobe.probes.direction import RefusalDirection
from mechprobe.probes.elimination import Candidate, PartialMean, race
from mechprobe.probes.partial import NOTHING_KEPT, PartialResults
from mechprobe.probes.refusal_tokens import EPSILON
from mechprobe.probes.selection import (
    KEPT_DEPTH,
    NoCandidateError,
    Selection,
    dropped,
    select_direction,
)
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What candidates do to the selection prompts, and which one is selected."""

    selection: Selection | None
    """None where the filters took every candidate."""
    problem: str
    """Why there is no selection; empty where there is one."""
    table: pd.DataFrame
    """Every candidate in the order of ties: position, layer, bypass, induce, kl (NaN where it was
    out before), and the filter that took it as `dropped`, or ''."""
    harmful: float
    """Mean refusal log-odds (nats) of harmful prompts as the model is."""
    harmless: float
    """The same of harmless prompts."""
    refusal_ids: tuple[int, ...]
    harmful_digest: str
    """Of the selection prompts as they were given."""
    harmless_digest: str
    n_harmful: int
    """Selection prompts that were used."""
    n_harmless: int
    n_harmful_given: int
    """Before those on the wrong side of the refusal score were left out."""
    n_harmless_given: int
    forward_tokens: int
    """Tokens that went through the model under interventions or to compare them with; one that
    went through a part of the blocks is that part of one."""

    @property
    def place(self) -> tuple[int, int] | None:
        """Selected position and layer."""
        found = self.selection
        return None if found is None else (found.position, found.layer)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the table as a list of its rows."""
        facts = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("selection", "table")
        }
        facts["refusal_ids"] = list(self.refusal_ids)
        chosen = self.selection
        rows = self.table.to_dict("records")
        return {
            **facts,
            "selected": None
            if chosen is None
            else {f.name: getattr(chosen, f.name) for f in fields(chosen) if f.name != "table"},
            "dropped": dropped(self.table),
            "candidates": [{k: None if v != v else v for k, v in row.items()} for row in rows],
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Scores:
        """What `to_dict` gave, with the selection read as it was, not made again."""
        import pandas as pd

        facts = dict(found)
        chosen, rows = facts.pop("selected"), facts.pop("candidates")
        del facts["dropped"]
        table = pd.DataFrame(rows).astype(dict.fromkeys(("bypass", "induce", "kl"), float))
        facts["refusal_ids"] = tuple(facts["refusal_ids"])
        selection = None if chosen is None else Selection(table=table, **chosen)
        return cls(selection=selection, table=table, **facts)


def score_candidates(
    checkpoint: Checkpoint,
    candidates: RefusalDirection,
    harmful: EncodedPrompts,
    harmless: EncodedPrompts,
    refusal_ids: Sequence[int],
    *,
    batch_size: int = 32,
    partial: PartialResults = NOTHING_KEPT,
    progress: Progress = silent,
) -> Scores:
    """Ablate and add candidates until it is certain which one is selected.

    Where the filters take every candidate, `selection` is None and `problem` says so.

    A candidate costs at most a pass over all prompts (ablation) and one over the harmless ones
    (addition, which begins at its layer); `race` says what is left out. Scores that were not
    computed to the end are NaN. Without length a candidate changes nothing and is not run.

    Args:
        checkpoint: The model that the candidates were fitted on.
        candidates: Of `fit_directions`.
        harmful: Selection prompts, none of them fitted on.
        harmless: The same.
        refusal_ids: First tokens by which this model refuses.
        batch_size: Prompts in memory at once.
        partial: Where scores of prompts are kept as they are computed.
        progress: Told of candidates begun and ended, and of all of both.

    Raises:
        PromptFileError: No prompt of a label has a refusal score of the right sign.
    """
    import pandas as pd

    ids = tuple(refusal_ids)
    with counting(checkpoint) as count:
        passes = CandidatePasses(checkpoint, candidates, harmful, harmless, ids, batch_size)
        unfinished = partial.open(
            "selection",
            checkpoint,
            passes.base,
            candidates.vectors,
            [candidates.positions, ids, batch_size],
        )

        def run(candidate: Candidate, score: str, chosen: IntArray) -> FloatArray:
            name = f"{candidate.position} {candidate.layer} {score} {chosen.tolist()}"
            return unfinished.get(name, passes, candidate, score, chosen)

        means = (
            float(passes.odds[passes.harmful].mean()),
            float(passes.odds[passes.harmless].mean()),
        )
        running = _entries(candidates, passes, means)
        race(running, run, progress)
    table: pd.DataFrame = pd.DataFrame(
        _rows(candidates, {(each.position, each.layer): each for each in running}, means),
        columns=["position", "layer", "bypass", "induce", "kl", "out"],
    )
    selection, problem = None, ""
    try:
        selection = select_direction(table, candidates.n_layers)
        table = selection.table
    except NoCandidateError as error:
        problem, table = str(error), error.table
    return Scores(
        selection=selection,
        problem=problem,
        table=table,
        harmful=means[0],
        harmless=means[1],
        refusal_ids=ids,
        harmful_digest=harmful.digest,
        harmless_digest=harmless.digest,
        n_harmful=len(passes.harmful),
        n_harmless=len(passes.harmless),
        n_harmful_given=len(harmful),
        n_harmless_given=len(harmless),
        forward_tokens=round(count.tokens + partial.reused_tokens),
    )


def _entries(
    candidates: RefusalDirection, passes: CandidatePasses, means: tuple[float, float]
) -> list[Candidate]:
    """The candidates of the race: those with a length, at layers that no filter takes."""
    odds = math.log(EPSILON / (1 + EPSILON))
    lows = kl_floor(passes.base[passes.harmless])
    n = candidates.n_layers
    return [
        Candidate(
            position,
            layer,
            {
                "kl": PartialMean(lows, 0.0),
                "induce": PartialMean(np.full(len(lows), odds), -means[1], 1 - layer / n),
                "bypass": PartialMean(np.full(len(passes.harmful), odds), means[0]),
            },
        )
        for position in candidates.positions
        for layer in range(int(KEPT_DEPTH * n))
        if np.linalg.norm(candidates.at(position, layer)) > 0
    ]


def _rows(
    candidates: RefusalDirection,
    run: Mapping[tuple[int, int], Candidate],
    means: tuple[float, float],
) -> Iterator[tuple[int, int, float, float, float, str]]:
    """Every candidate's scores and what took it out of the race."""
    for position in candidates.positions:
        for layer in range(candidates.n_layers):
            each = run.get((position, layer))
            if each is not None:
                yield each.row
            elif np.linalg.norm(candidates.at(position, layer)) > 0:
                yield position, layer, math.nan, math.nan, math.nan, "layer"
            else:
                yield position, layer, *means, 0.0, ""
