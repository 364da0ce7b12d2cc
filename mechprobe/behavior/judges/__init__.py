"""Judges: a prompt and its answer become one of four labels, or none.

| judge | what reads | costs |
|---|---|---|
| `rules`, `rules:INSTRUMENT` | word lists | nothing |
| `oracle` | the grammar of the organisms' world: the ground truth | nothing |
| `openai:MODEL@URL` | a language model on any OpenAI-compatible server | calls |
| `hf:CLASSIFIER` | a sequence classifier, here | minutes |
"""

from mechprobe.behavior.judges.base import (
    LABELS,
    REFUSALS,
    Exchange,
    Judge,
    Judgement,
    Load,
    Opinion,
    refuses,
)
from mechprobe.behavior.judges.cache import JudgeCache, opened
from mechprobe.behavior.judges.choosing import (
    MAJORITY,
    Majority,
    majority,
    open_judge,
    stratified,
    tells_unclear,
)
from mechprobe.behavior.judges.files import read_exchanges, read_judgements, read_truth
from mechprobe.behavior.judges.judging import Judged, judge_digest, judge_exchanges, load_of
from mechprobe.behavior.judges.remote import Calls, about_server

__all__ = [
    "LABELS",
    "MAJORITY",
    "REFUSALS",
    "Calls",
    "Exchange",
    "Judge",
    "JudgeCache",
    "Judged",
    "Judgement",
    "Load",
    "Majority",
    "Opinion",
    "about_server",
    "judge_digest",
    "judge_exchanges",
    "load_of",
    "majority",
    "open_judge",
    "opened",
    "read_exchanges",
    "read_judgements",
    "read_truth",
    "refuses",
    "stratified",
    "tells_unclear",
]
