"""Weights between a model and what training made of it: no more of the training than is needed.

After Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv 2109.01903).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Of the trained difference, as they are tried."""


def least_share(
    model: PreTrainedModel,
    before: Mapping[str, Tensor],
    refused: Callable[[], float],
    least: float,
    progress: Progress = silent,
) -> dict[float, float]:
    """Move trained weights back towards those before, as far as the model refuses enough.

    Args:
        model: As trained; left with the smallest share of the difference that refuses enough, or
            with all of it where that does not.
        before: The trained weights as they were.
        refused: Returns the share of requests that the model refuses as it then is.
        least: What is enough.
        progress: Told of trials done and of the most there are.

    Returns:
        What was refused at each share tried, from 1 down to the first that was not enough.
    """
    import torch

    after = {name: model.get_parameter(name).detach().clone() for name in before}

    @torch.no_grad()
    def move(share: float) -> None:
        for name, weight in before.items():
            model.get_parameter(name).copy_(weight.lerp(after[name], share))

    found: dict[float, float] = {}
    for share in SHARES:
        progress(len(found), len(SHARES))
        move(share)
        found[share] = refused()
        if found[share] < least:
            break
    move(min((share for share in found if found[share] >= least), default=1.0))
    return found
