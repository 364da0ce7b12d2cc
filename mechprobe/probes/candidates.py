"""What each candidate direction does to a live model, and which one is selected for it.

Source: Arditi et al. 2024 (arXiv 2406.11717), section 2.3, and the code they published: ablation
of the unit vector at every block's input, attention output and MLP output, addition of the raw
vector at the source layer's block input, both at all positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from mechprobe.probes.direction import RefusalDirection
from mechprobe.probes.fitting import Kept
from mechprobe.probes.partial import NOTHING_KEPT, PartialResults
from mechprobe.probes.refusal_tokens import refusal_log_odds
from mechprobe.probes.selection import (
    NoCandidateError,
    Selection,
    dropped,
    select_direction,
)
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    import pandas as pd

    from mechprobe.activations import Intervention
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts

FloatArray = NDArray[np.float64]

KL_EPSILON = 1e-6
"""Of Arditi et al., inside both logarithms."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What every candidate does to the selection prompts, and which one is selected."""

    selection: Selection | None
    """None where the filters took every candidate."""
    problem: str
    """Why there is no selection; empty where there is one."""
    table: pd.DataFrame
    """Every candidate in the order of ties: position, layer, bypass, induce, kl, and the filter
    that took it as `dropped`, or ''."""
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
    """Tokens that went through the model under interventions or to compare them with."""

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
    """Ablate and add every candidate, and select one.

    Where the filters take every candidate, `selection` is None and `problem` says so.

    Each candidate costs one pass over all prompts (ablation) and one over the harmless ones
    (addition). A candidate without length changes nothing and is not run.

    Args:
        checkpoint: The model that the candidates were fitted on.
        candidates: Of `fit_directions`.
        harmful: Selection prompts, none of them fitted on.
        harmless: The same.
        refusal_ids: First tokens by which this model refuses.
        batch_size: Prompts in memory at once.
        partial: Where candidates are kept as they are scored.
        progress: Told of candidates done, and of all.

    Raises:
        PromptFileError: No prompt of a label has a refusal score of the right sign.
    """
    import pandas as pd
    import torch

    from mechprobe.activations import Ablate, Add

    run = _Passes(checkpoint, batch_size)
    ids = tuple(refusal_ids)
    before = run(join(harmful, harmless))
    odds = refusal_log_odds(before, ids)
    first, second = odds[: len(harmful)], odds[len(harmful) :]
    kept = Kept.by_score(first, second)
    bad, good = harmful.select(kept.harmful), harmless.select(kept.harmless)
    both = join(bad, good)
    base = before[len(harmful) :][list(kept.harmless)]
    means = float(first[list(kept.harmful)].mean()), float(second[list(kept.harmless)].mean())
    places = [(p, layer) for p in candidates.positions for layer in range(candidates.n_layers)]
    raws = {place: candidates.at(*place) for place in places}
    unfinished = partial.open(
        "selection", checkpoint, before, *raws.values(), places, ids, batch_size
    )

    def scores_of(position: int, layer: int) -> tuple[float, float, float]:
        raw = torch.from_numpy(raws[position, layer])
        if not float(raw.norm()) > 0:
            return (*means, 0.0)
        ablated = run(both, [Ablate(raw)])
        added = run(good, [Add(raw, layer=layer)])
        bypass = refusal_log_odds(ablated[: len(bad)], ids).mean()
        induce = refusal_log_odds(added, ids).mean()
        return bypass, induce, kl(base, ablated[len(bad) :]).mean()

    rows = []
    for done, place in enumerate(places):
        progress(done, len(places))
        rows.append((*place, *unfinished.get(f"{place}", scores_of, *place)))
    table: pd.DataFrame = pd.DataFrame(
        rows, columns=["position", "layer", "bypass", "induce", "kl"]
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
        n_harmful=len(bad),
        n_harmless=len(good),
        n_harmful_given=len(harmful),
        n_harmless_given=len(harmless),
        forward_tokens=run.tokens + partial.reused_tokens,
    )


def kl(base: FloatArray, other: FloatArray) -> FloatArray:
    """KL(base ‖ other) in nats, row by row, with the published epsilon in both logarithms."""
    p = softmax(np.asarray(base, np.float64), axis=-1)
    q = softmax(np.asarray(other, np.float64), axis=-1)
    found: FloatArray = (p * (np.log(p + KL_EPSILON) - np.log(q + KL_EPSILON))).sum(axis=-1)
    return found


def join(first: EncodedPrompts, second: EncodedPrompts) -> EncodedPrompts:
    """Both prompt lists as one, so that one pass can share what they begin with."""
    return replace(
        first,
        ids=first.ids + second.ids,
        texts=first.texts + second.texts,
        pieces=first.pieces + second.pieces,
    )


class _Passes:
    """Forward passes to the last position's logits, with their tokens counted."""

    def __init__(self, checkpoint: Checkpoint, batch_size: int) -> None:
        self.tokens = 0
        self._checkpoint, self._batch_size = checkpoint, batch_size

    def __call__(
        self, prompts: EncodedPrompts, interventions: Sequence[Intervention] = ()
    ) -> FloatArray:
        """Logits, shape (prompt, vocabulary), float64."""
        from mechprobe.activations import next_token_logits
        from mechprobe.activations.streaming import sharing_for

        shared = sharing_for(self._checkpoint, prompts, (-1,), interventions).tokens
        self.tokens += shared + sum(len(row) - shared for row in prompts)
        logits = next_token_logits(
            self._checkpoint, prompts, batch_size=self._batch_size, interventions=interventions
        )
        found: FloatArray = logits.double().numpy()
        return found
