"""Questions with lettered options, scored by the log-likelihood of the letter.

The letter with the highest probability as the next token is the answer; nothing is generated and
nothing is parsed. A letter may be one of several tokens ("A" after a line break, " A" after a
word): the probabilities of all that read as it are added, so that the score does not hang on which
of them the rendered prompt calls for.

An engine without real log-probabilities gives every option the same value and would score chance
in silence; a result in which every question ties is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mechprobe.behavior.rate import Rate
from mechprobe.behavior.records import json_lines, read_text
from mechprobe.errors import GenerationError, NumericsError, PromptFileError, VocabularyError
from mechprobe.models.rendering import require_answer_next

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mechprobe.generation.base import Engine
    from mechprobe.models.rendering import EncodedPrompts

LETTERS = "ABCDEFGHIJ"
_CONTEXTS = ("", ":", "\n")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its options, ready to be asked."""

    id: str
    prompt: str
    """The whole user message, options and their letters included."""
    options: tuple[str, ...]
    answer: int
    """Position of the right option."""
    category: str | None = None

    @property
    def letters(self) -> str:
        """The letters of its options, in order."""
        return LETTERS[: len(self.options)]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model chose on one question."""

    id: str
    logprobs: tuple[float, ...]
    """Log-probability (nats) of each option's letter as the next token."""
    chosen: int | None
    """Position of the best option; None where the best is not one alone, and never credited."""
    correct: bool

    @property
    def letter_mass(self) -> float:
        """Probability that the next token is one of the letters at all."""
        return float(np.exp(np.logaddexp.reduce(self.logprobs)))

    @property
    def option_probs(self) -> tuple[float, ...]:
        """Probabilities of the options, given that a letter is said; NaN where none can be."""
        with np.errstate(invalid="ignore"):
            shifted = np.asarray(self.logprobs) - np.logaddexp.reduce(self.logprobs)
        return tuple(np.exp(shifted).tolist())


@dataclass(frozen=True, slots=True)
class MultipleChoiceResult:
    """Accuracy by letter log-likelihood, and what stands behind it question by question."""

    accuracy: Rate
    choices: tuple[Choice, ...]
    ties: int
    """Questions whose best option was not one alone; counted as not correct."""
    letter_mass: float
    """Mean probability of saying a letter: low values mean the model did not take the question
    for one with letters, and its accuracy says little."""


def with_options(question: str, options: Sequence[str]) -> str:
    """A user message: the question, then one lettered option per line."""
    lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines])


def as_question(item: Any, *, id: str = "", where: str = "item") -> Question:
    """A question from an object or mapping with `prompt`, `options` and `answer`.

    Args:
        item: `answer` is a letter or a position; `prompt` may be left out where there is a
            `question`, whose options are then put below it.
        id: Used where the item has none.
        where: For messages.

    Raises:
        PromptFileError: A field is missing or wrong.
    """

    def get(name: str) -> Any:
        return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)

    options, answer, text = get("options"), get("answer"), get("prompt")
    if not isinstance(options, list | tuple) or not 2 <= len(options) <= len(LETTERS):
        raise PromptFileError(f"{where}: 'options' needs 2 to {len(LETTERS)} texts")
    if not all(isinstance(option, str) and option.strip() for option in options):
        raise PromptFileError(f"{where}: every option needs a text")
    if text is None and isinstance(get("question"), str):
        text = with_options(get("question"), options)
    if not isinstance(text, str) or not text.strip():
        raise PromptFileError(f"{where}: the field 'prompt' (or 'question') is missing or empty")
    letters = LETTERS[: len(options)]
    if isinstance(answer, str) and len(answer) == 1 and answer.upper() in letters:
        place = letters.index(answer.upper())
    elif type(answer) is int and 0 <= answer < len(options):
        place = answer
    else:
        raise PromptFileError(
            f"{where}: 'answer' must be one of the letters {letters} or a position from 0 to "
            f"{len(options) - 1}, not {answer!r}"
        )
    category = get("category")
    return Question(str(get("id") or id), text, tuple(options), place, category)


def load_questions(path: str | Path) -> tuple[Question, ...]:
    """Questions from a JSONL file with `prompt` or `question`, `options`, `answer`, `id`.

    Raises:
        PromptFileError: The file is missing, empty or malformed; the message names the line.
    """
    records = json_lines(read_text(Path(path)), str(path))
    found = [
        as_question(record.fields, id=f"q{number:05d}", where=record.where)
        for number, record in enumerate(records, start=1)
    ]
    if not found:
        raise PromptFileError(f"{path}: no questions; at least one is needed")
    return tuple(found)


def letter_tokens(tokenizer: PreTrainedTokenizerBase, letters: str) -> list[tuple[int, ...]]:
    """For each letter, the ids of all single tokens that read as it.

    Found by tokenizing the letter alone, after a colon and after a line break, with and without
    a space. A form that is one token for some letters only is left out, so that none has an
    advantage.

    Raises:
        VocabularyError: There is no form in which every letter is one token.
    """
    forms: list[list[int]] = []
    for context in _CONTEXTS:
        before = list(tokenizer(context, add_special_tokens=False)["input_ids"]) if context else []
        for space in ("", " "):
            form = []
            for letter in letters:
                text = context + space + letter
                ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
                alone = ids[: len(before)] == before and len(ids) == len(before) + 1
                if alone and str(tokenizer.decode(ids[-1:])).strip() == letter:
                    form.append(ids[-1])
            if len(set(form)) == len(letters):
                forms.append(form)
    if not forms:
        raise VocabularyError(
            f"the tokenizer has no single tokens for the letters {letters}; these questions "
            "cannot be scored by letter"
        )
    return [tuple(sorted(set(ids))) for ids in zip(*forms, strict=True)]


def choose(question: Question, logprobs: NDArray[Any], tokens: Sequence[Sequence[int]]) -> Choice:
    """Read one answer from the next-token distribution.

    Args:
        question: What was asked.
        logprobs: Log-probabilities (nats) over the vocabulary, shape (vocabulary,).
        tokens: From `letter_tokens`, one entry per option.

    Raises:
        NumericsError: A letter's log-probability is NaN.
    """
    values = np.asarray(logprobs, np.float64)
    with np.errstate(invalid="ignore"):
        options = [float(np.logaddexp.reduce(values[list(ids)])) for ids in tokens]
    if np.isnan(options).any():
        raise NumericsError(
            f"question {question.id}: NaN among the letters' log-probabilities; the model is "
            "broken, or a server lists too few tokens (vLLM: --max-logprobs)"
        )
    best = max(options)
    chosen = options.index(best) if options.count(best) == 1 else None
    return Choice(question.id, tuple(options), chosen, chosen == question.answer)


def score_letters(
    engine: Engine,
    prompts: EncodedPrompts,
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
) -> MultipleChoiceResult:
    """Ask every question and score the letters.

    Args:
        engine: Anything with `next_token_logprobs`.
        prompts: The questions' prompts, rendered; the next token is the answer.
        questions: In the same order.
        tokenizer: The one that rendered the prompts.

    Raises:
        GenerationError: On every question all options tie: this engine has no log-probabilities.
        NumericsError: NaN among them.
        PromptFileError: Prompts and questions do not belong together.
        TemplateError: The next token is not the first of an answer.
        VocabularyError: The tokenizer has no single tokens for the letters.
    """
    if not questions or len(prompts) != len(questions):
        raise PromptFileError(f"{len(questions)} questions and {len(prompts)} rendered prompts")
    require_answer_next(prompts, "letters")
    tokens = {n: letter_tokens(tokenizer, LETTERS[:n]) for n in {len(q.options) for q in questions}}
    rows = engine.next_token_logprobs(prompts.ids)
    choices = tuple(
        choose(question, rows[index, :], tokens[len(question.options)])
        for index, question in enumerate(questions)
    )
    if all(len(set(choice.logprobs)) == 1 for choice in choices):
        raise GenerationError(
            f"{engine.name}: on all {len(choices)} questions every option has the same "
            "log-probability, so accuracy is not measured; this engine gives none"
        )
    return MultipleChoiceResult(
        accuracy=Rate.of(sum(choice.correct for choice in choices), len(choices)),
        choices=choices,
        ties=sum(choice.chosen is None for choice in choices),
        letter_mass=float(np.mean([choice.letter_mass for choice in choices])),
    )
