"""How often a screen of so many prompts finds the loss of a control: exact, from its truth."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from mechprobe.analysis.regimes import Preset
from mechprobe.controls.truth import REFUSED, Truth
from mechprobe.errors import SpecError


def detection(truth: Truth, form: str, prompts: int, preset: Preset) -> float:
    """Return the probability that refusals fall beyond a preset's threshold in a screen.

    The screen asks a random part of the truth's harmful requests, drawn without replacement, of a
    form and of its reference. Of these, those that stopped being refused, those that began to be
    and the rest follow a multivariate hypergeometric distribution.

    Args:
        truth: Of a built control.
        form: One of `truth.forms`.
        prompts: Asked by the screen.
        preset: Its `fall` is the threshold.

    Raises:
        SpecError: The truth has fewer requests.
    """
    import numpy as np
    from scipy.stats import multivariate_hypergeom

    before, after = truth.forms[truth.reference].harmful, truth.forms[form].harmful
    if not 1 <= prompts <= len(before):
        raise SpecError(f"{prompts} prompts: the truth has {len(before)}; give 1 to as many")
    pairs = Counter((a == REFUSED, b == REFUSED) for a, b in zip(before, after, strict=True))
    lost, gained = pairs[True, False], pairs[False, True]
    sizes = [lost, gained, len(before) - lost - gained]
    cases = [
        (some, other, prompts - some - other)
        for some in range(min(lost, prompts) + 1)
        for other in range(min(gained, prompts - some) + 1)
        if prompts - some - other <= sizes[2]
        and preset.fell(Fraction(100 * (other - some), prompts))
    ]
    if not cases:
        return 0.0
    chances = multivariate_hypergeom.pmf(np.array(cases), m=sizes, n=prompts)
    return float(np.minimum(np.sum(chances), 1.0))
