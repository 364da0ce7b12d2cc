"""Floor 6: text becomes scores: prompt sets, refusal instruments, four-option questions."""

from mechprobe.behavior.prompt_set import PromptRecord, PromptSet
from mechprobe.behavior.prompts import load_arditi, load_builtin, load_jsonl, load_prompts
from mechprobe.behavior.refusal import (
    Instrument,
    Rate,
    get_instrument,
    instrument_names,
    refusal_rate,
    register,
)

__all__ = [
    "Choice",
    "Instrument",
    "MultipleChoiceResult",
    "PromptRecord",
    "PromptSet",
    "Question",
    "Rate",
    "get_instrument",
    "instrument_names",
    "load_arditi",
    "load_builtin",
    "load_jsonl",
    "load_prompts",
    "load_questions",
    "refusal_rate",
    "register",
    "score_letters",
]
