"""Tasks whose right answer is known word for word: summaries, short answers, translations.

A row has `prompt` and `reference` or `references`; the YAML samples of the study are read too, in
the words of the file's own `prompt_template`. Instruments: `exact_match`, `rouge_l`, and with an
encoder `bertscore[…]` and `coherence[…]` from `encoder_reader`; see `behavior.quality`. The class
of an answer (`exact`, `other`, `empty`) is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from mechprobe.behavior import quality
from mechprobe.behavior.facts import SOURCE, Fact, load_facts
from mechprobe.behavior.records import Record
from mechprobe.behavior.tasks.choice import render
from mechprobe.behavior.tasks.item import Item, Reading, Row
from mechprobe.behavior.tasks.score import Score, mean_score
from mechprobe.behavior.tasks.sources import Table, optional, read_table, text_field
from mechprobe.behavior.tasks.task import Count, Kind, Reader, Task, text_reader
from mechprobe.errors import PromptFileError

Metric = Callable[[str, Sequence[str]], float | None]


def read_quality(metric: Metric, item: Item, text: str) -> Reading:
    """One answer by one metric."""
    if not text.strip():
        return Reading("empty", 0.0)
    exact = quality.exact_match(text, item.references) == 1.0
    return Reading("exact" if exact else "other", metric(text.strip(), item.references))


def readers() -> Mapping[str, Reader]:
    """The metrics that need no encoder."""
    metrics: dict[str, Metric] = {"exact_match": quality.exact_match, "rouge_l": quality.rouge_l}
    return {name: text_reader(name, partial(read_quality, of)) for name, of in metrics.items()}


def encoder_reader(metric: quality.BertScore | quality.Coherence) -> Reader:
    """An instrument that carries the name and the digest of its encoder."""
    return text_reader(metric.name, partial(read_quality, metric))


def summarise(rows: Sequence[Row]) -> list[Score]:
    """The mean, over all rows and within each category."""
    name = rows[0].instrument
    bounds = (-1.0, 1.0) if name.startswith("coherence") else (0.0, 1.0)
    scores = [mean_score("quality", "all", rows, bounds=bounds)]
    for category in sorted({row.item.category for row in rows if row.item.category}):
        mine = [row for row in rows if row.item.category == category]
        scores.append(mean_score("quality", category, mine, bounds=bounds))
    return scores


QUALITY = Kind("quality", readers, summarise, version=2)


def load_reference(source: str | Path = "organism", *, n: Count = 100, seed: int = 0) -> Task:
    """Prompts with reference answers.

    Args:
        source: A table with `prompt` and `reference` or `references`, YAML samples of the study,
            `facts` (our own short questions), or `organism`.
        n: Tasks of the organism's world; files are taken whole.
        seed: Of the organism's world.

    Raises:
        PromptFileError: The source cannot be read or a row is malformed.
    """
    if str(source) == "organism":
        from mechprobe.organisms import world

        items = tuple(
            Item(f"t{i:05d}", item.prompt, references=(item.answer,))
            for i, item in enumerate(world.tasks(n, seed))
        )
        return Task("quality/organism", QUALITY, items, "organism")
    if str(source) == SOURCE:
        items = tuple(
            Item(f"t{i:05d}", each.question, references=_references(each))
            for i, each in enumerate(load_facts())
        )
        return Task(f"quality/{SOURCE}", QUALITY, items, SOURCE)
    table = read_table(source)
    items = tuple(_item(table, index, record) for index, record in enumerate(table.records))
    name = str(table.head.get("name") or Path(source).suffix.lstrip("."))
    return Task(f"quality/{name}", QUALITY, items, str(source))


def _references(fact: Fact) -> tuple[str, ...]:
    """Accept the right answer as a sentence and alone."""
    return f"{fact.begun} {fact.answers[0]}.", fact.answers[0]


def _item(table: Table, index: int, record: Record) -> Item:
    given = record.fields.get("references", record.fields.get("reference"))
    references = [given] if isinstance(given, str) else given
    if not isinstance(references, list) or not references:
        raise PromptFileError(f"{record.where}: the field 'reference' (or 'references') is missing")
    if not all(isinstance(text, str) and text.strip() for text in references):
        raise PromptFileError(f"{record.where}: every reference needs a text")
    prompt = render(table, record) if table.head else text_field(record, "prompt")
    return Item(
        id=optional(record, "id") or f"t{index:05d}",
        prompt=prompt,
        category=optional(record, "category"),
        references=tuple(references),
    )
