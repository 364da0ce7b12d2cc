"""Sampler settings that are sent to a server, so that its own defaults do not shape an answer.

What a request leaves out, a server fills in: vLLM and SGLang from the model's
`generation_config.json` (`repetition_penalty`, `top_k`, `top_p`, `min_p`; at temperature 0 too),
llama-server from its command line. Every setting is therefore sent at its neutral value. Fields
that a server does not know are ignored by most and refused by some, OpenAI's API among them.
"""

from __future__ import annotations

from typing import Any, Final

from mechprobe.generation.base import Sampling

REFUSED: Final = (400, 422, 501)
"""What servers answer to a field that they do not know."""
_OPENAI: Final[dict[str, Any]] = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_VLLM: Final[dict[str, Any]] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": False,
    "logit_bias": {},
    "stop": [],
}
"""vLLM's and SGLang's; those that llama-server has too go by the same names."""
_LLAMA_SERVER: Final[dict[str, Any]] = {
    "repeat_penalty": 1.0,
    "typical_p": 1.0,
    "mirostat": 0,
    "dynatemp_range": 0.0,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
    "top_n_sigma": -1.0,
    # the order that mechprobe keeps everywhere; what is not named is left out
    "samplers": ["temperature", "top_k", "top_p"],
}
_NOT_TAKEN: Final = (
    "",
    f"llama-server's samplers ({', '.join(_LLAMA_SERVER)})",
    "top_k, min_p and repetition penalties",
    "any sampler but temperature",
)
"""What each form of `sampler_forms` leaves out."""


def sampler_forms(sampling: Sampling | None) -> tuple[dict[str, Any], ...]:
    """Return what may be sent for a way of drawing, from the fullest to the plainest form.

    Args:
        sampling: None is greedy.

    Returns:
        Everything; without what llama-server alone knows; what OpenAI's API knows; temperature and
        top-p alone.
    """
    drawn: dict[str, Any] = {"temperature": 0.0}
    top_k = -1
    if sampling is not None and not sampling.greedy:
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        top_k = sampling.top_k or -1
    openai = _OPENAI | drawn
    vllm = openai | _VLLM | {"top_k": top_k}
    return vllm | _LLAMA_SERVER, vllm, openai, drawn


def note_of(form: int) -> str:
    """Return what is to be said of answers that a plainer form asked for; empty for the fullest."""
    if form == 0:
        return ""
    return f"does not take {_NOT_TAKEN[form]}: where it has defaults for them, they applied"
