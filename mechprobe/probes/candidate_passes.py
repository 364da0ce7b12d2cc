"""Passes of a live model under a candidate direction, and the scores that they give.

Source: Arditi et al. 2024 (arXiv 2406.11717), section 2.3, and the code they published: ablation
of the unit vector at every block's input, attention output and MLP output, addition of the raw
vector at the source layer's block input, both at all positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax, xlogy

from mechprobe.activations.batching import groups
from mechprobe.activations.edits import Ablate, Add
from mechprobe.activations.points import graph_of
from mechprobe.probes.fitting import Kept
from mechprobe.probes.refusal_tokens import refusal_log_odds
from mechprobe.probes.selection import KEPT_DEPTH

if TYPE_CHECKING:
    from mechprobe.activations import Intervention
    from mechprobe.models.checkpoint import Checkpoint
    from mechprobe.models.rendering import EncodedPrompts
    from mechprobe.probes.direction import RefusalDirection
    from mechprobe.probes.elimination import Candidate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]

KL_EPSILON = 1e-6
"""Of Arditi et al., inside both logarithms."""
KEPT_SHARE, KEPT_BYTES = 0.1, 2**26
"""Of the bytes of the weights, what may be kept of the harmless prompts for additions to begin; and
what may be kept of them in any model."""


def kl(base: FloatArray, other: FloatArray) -> FloatArray:
    """KL(base ‖ other) in nats, row by row, with the published epsilon in both logarithms."""
    p = softmax(np.asarray(base, np.float64), axis=-1)
    q = softmax(np.asarray(other, np.float64), axis=-1)
    found: FloatArray = (p * (np.log(p + KL_EPSILON) - np.log(q + KL_EPSILON))).sum(axis=-1)
    return found


def kl_floor(base: FloatArray) -> FloatArray:
    """The least `kl` that any other distribution can give, row by row.

    q + epsilon sums to 1 + V epsilon, so that by Gibbs' inequality the cross entropy is at least
    the entropy of p minus log(1 + V epsilon).
    """
    p = softmax(np.asarray(base, np.float64), axis=-1)
    entropies = (xlogy(p, p + KL_EPSILON) - xlogy(p, p)).sum(axis=-1)
    found: FloatArray = entropies - np.log1p(p.shape[-1] * KL_EPSILON)
    return found


def join(first: EncodedPrompts, second: EncodedPrompts) -> EncodedPrompts:
    """Both prompt lists as one, so that one pass can share what they begin with."""
    return replace(
        first,
        ids=first.ids + second.ids,
        texts=first.texts + second.texts,
        pieces=first.pieces + second.pieces,
    )


class CandidatePasses:
    """What candidates make of the selection prompts, some prompts at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        candidates: RefusalDirection,
        harmful: EncodedPrompts,
        harmless: EncodedPrompts,
        refusal_ids: tuple[int, ...],
        batch_size: int,
    ) -> None:
        """Read all prompts as they are, the harmless ones for additions to begin from.

        Args:
            checkpoint: The model.
            candidates: The directions.
            harmful: Selection prompts.
            harmless: The same.
            refusal_ids: First tokens of refusals.
            batch_size: Prompts in memory at once.

        Raises:
            PromptFileError: No prompt of a label has a refusal score of the right sign.
        """
        from mechprobe.activations import next_token_logits
        from mechprobe.activations.restart import Restart

        self._checkpoint, self._candidates = checkpoint, candidates
        self._prompts, self._ids, self._batch_size = (
            join(harmful, harmless),
            refusal_ids,
            batch_size,
        )
        weights = sum(x.numel() * x.element_size() for x in graph_of(checkpoint)[0].parameters())
        self._as_it_is = Restart(
            checkpoint,
            range(int(KEPT_DEPTH * candidates.n_layers)),
            rows=range(len(harmful), len(self._prompts)),
            limit=max(KEPT_BYTES, KEPT_SHARE * weights),
        )
        self.base = (
            next_token_logits(
                checkpoint, self._prompts, batch_size=batch_size, restart=self._as_it_is
            )
            .double()
            .numpy()
        )
        """Logits of all prompts as the model is, harmful ones first, shape (prompt, vocabulary)."""
        self.odds = refusal_log_odds(self.base, refusal_ids)
        """Refusal log-odds (nats) of all prompts, shape (prompt,)."""
        n = len(harmful)
        kept = Kept.by_score(self.odds[:n], self.odds[n:])
        self.harmful = self._longest_first(kept.harmful)
        """Prompts that are run, those that the model treats as their label says."""
        self.harmless = self._longest_first([n + row for row in kept.harmless])

    def _longest_first(self, rows: Sequence[int]) -> IntArray:
        return np.array(sorted(rows, key=lambda row: -len(self._prompts.ids[row])))

    def __call__(self, candidate: Candidate, score: str, chosen: IntArray) -> FloatArray:
        """Run some of the prompts and return one of `Candidate.scores` for each, shape (n,)."""
        raw = torch.from_numpy(self._candidates.at(candidate.position, candidate.layer))
        if score == "bypass":
            return refusal_log_odds(self._logits(self.harmful[chosen], Ablate(raw)), self._ids)
        rows = self.harmless[chosen]
        if score == "induce":
            return -refusal_log_odds(self._logits(rows, Add(raw, candidate.layer)), self._ids)
        return kl(self.base[rows], self._logits(rows, Ablate(raw)))

    def _logits(self, rows: IntArray, intervention: Intervention) -> FloatArray:
        """Logits of some prompts, shape (row, vocabulary)."""
        from mechprobe.activations.streaming import stream

        place = {row: k for k, row in enumerate(rows.tolist())}
        logits = np.empty((len(rows), self.base.shape[1]))
        for found in stream(
            self._checkpoint,
            self._prompts,
            (),
            logits=True,
            interventions=[intervention],
            batches=groups(rows.tolist(), self._batch_size),
            restart=self._as_it_is,
        ):
            assert found.logits is not None
            values = found.logits.double().cpu().numpy()
            logits[[place[row] for row in found.indices]] = values
        return logits
