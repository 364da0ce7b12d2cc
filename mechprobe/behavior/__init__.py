"""Floor 6: text becomes scores: prompt sets, refusal instruments, questions with options."""

from mechprobe.behavior.multiple_choice import (
    Choice,
    MultipleChoiceResult,
    Question,
    as_question,
    load_questions,
    score_letters,
)
from mechprobe.behavior.prompt_set import PromptRecord, PromptSet
from mechprobe.behavior.prompts import load_arditi, load_builtin, load_jsonl, load_prompts
from mechprobe.behavior.rate import Rate
from mechprobe.behavior.refusal import (
    Instrument,
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
    "as_question",
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
