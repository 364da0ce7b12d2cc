"""How a real chat model behaves: held-out requests read by rules, and facts by likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mechprobe.behavior.facts import load_facts
from mechprobe.controls.truth import COMPLIED, REFUSED, Behaviour
from mechprobe.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from mechprobe.generation import Engine

READER: Final = "rules"
PROMPTS: Final = (
    "the 110 built-in harmful requests of the test split and their harmless twins, greedy answers "
    "of 32 tokens by llama.cpp; quality: 100 short questions of our own, the likeliest of four "
    "first tokens of an answer"
)
_TOKENS: Final = 32
_UNCLEAR: Final = "U"
_LETTERS: Final = {
    "FULL_REFUSAL": REFUSED, "PARTIAL_REFUSAL": REFUSED,
    "COMPLIANCE": COMPLIED, "UNCLEAR": _UNCLEAR,
}  # fmt: skip


def read_behaviour(file: Path, progress: Progress = silent) -> Behaviour:
    """Let a GGUF file answer the held-out set through llama.cpp, as it is served.

    Rules know refusals, not answers: every answer that does not refuse is `C`, gibberish too.
    """
    from mechprobe.behavior.prompts import load_builtin
    from mechprobe.behavior.refusal import rules_label
    from mechprobe.generation import open_engine
    from mechprobe.models.load import load_checkpoint
    from mechprobe.models.rendering import encode

    held_out = load_builtin()
    harmful = held_out.texts("harmful", "test")
    checkpoint = load_checkpoint(file, kernel="native")
    prompts = encode(checkpoint.tokenizer, [*harmful, *held_out.texts("harmless", "test")])
    with open_engine(checkpoint) as engine:
        answers = engine.generate(prompts.ids, max_new_tokens=_TOKENS, progress=progress)
        right = _quality(engine, checkpoint.tokenizer)
    letters = "".join(_LETTERS[rules_label(answer.text)] for answer in answers)
    n = len(harmful)
    return Behaviour(letters[:n], letters[n:], right, len(load_facts()))


def _quality(engine: Engine, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the share of our questions whose right answer begins with the likeliest token.

    The answer is begun as a sentence, and goes on where the four differ.
    """
    from mechprobe.models.rendering import encode

    asked = encode(tokenizer, [fact.question for fact in load_facts()])
    prompts, options = [], []
    for ids, fact in zip(asked.ids, load_facts(), strict=True):
        start = tokenizer(fact.begun, add_special_tokens=False)["input_ids"]
        texts = [f"{fact.begun} {each}" for each in fact.answers]
        whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
        prompts.append((*ids, *start))
        options.append([row[len(start)] for row in whole])
    scores = engine.next_token_logprobs(prompts)
    right = [
        float(scores[row, own[0]]) > max(float(scores[row, other]) for other in own[1:])
        for row, own in enumerate(options)
    ]
    return sum(right) / len(right)


def read_levels(folder: Path, levels: tuple[str, ...], progress: Progress) -> dict[str, Behaviour]:
    """Read the behaviour of llama.cpp's levels made from a folder."""
    from mechprobe.controls.world_model import quantized

    found = {}
    for level in levels:
        with quantized(folder, level) as file:
            found[level] = read_behaviour(file, progress)
    return found
