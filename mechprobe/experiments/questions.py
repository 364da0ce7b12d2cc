"""Four-option questions of a run: where they come from, and their answers as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import SpecError

if TYPE_CHECKING:
    from mechprobe.behavior.multiple_choice import Question
    from mechprobe.experiments.loading import Loaded
    from mechprobe.models.rendering import EncodedPrompts


def question_rows(source: str, n: int, seed: int) -> list[dict[str, Any]]:
    """At most `n` questions of the synthetic world or of a JSONL file.

    Raises:
        PromptFileError: The file is missing or malformed.
        SpecError: There is neither.
    """
    from mechprobe.behavior.multiple_choice import Question, load_questions

    if source == "organism":
        from mechprobe.organisms import world

        found = tuple(
            Question(f"q{i:05d}", item.prompt, item.options, item.answer_index)
            for i, item in enumerate(world.questions(n, seed))
        )
    elif Path(source).suffix in (".jsonl", ".ndjson"):
        found = load_questions(source)[:n]
    else:
        raise SpecError(
            f"{source}: this prompt source has no questions; name a .jsonl file of them "
            "(tasks.multiple_choice.source, --questions)"
        )
    return [
        {"id": q.id, "text": q.prompt, "options": list(q.options), "answer": q.answer}
        for q in found
    ]


def as_questions(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """The questions of `question_rows`."""
    from mechprobe.behavior.multiple_choice import Question

    return [
        Question(row["id"], row["text"], tuple(row["options"]), int(row["answer"])) for row in rows
    ]


def score_questions(
    loaded: Loaded, prompts: EncodedPrompts, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What the model chooses, by the log-likelihood of the letters.

    Args:
        loaded: The cell and its engine.
        prompts: The rows as they were rendered.
        rows: Of `question_rows`.

    Raises:
        GenerationError: Every option ties on every question: the engine has no log-probabilities.
    """
    from mechprobe.behavior.multiple_choice import score_letters

    asked = as_questions(rows)
    result = score_letters(loaded.engine, prompts, asked, loaded.checkpoint.tokenizer)
    return [
        {
            "id": choice.id,
            "answer": question.answer,
            "chosen": choice.chosen,
            "correct": choice.correct,
            "logprobs": list(choice.logprobs),
            "letter_mass": choice.letter_mass,
            "prompts": prompts.digest,
        }
        for choice, question in zip(result.choices, asked, strict=True)
    ]
