"""New checkpoints screened by a stored calibration, from their answers or from a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mechprobe.analysis.rtsi_calibration import (
    CheckpointScore,
    load_calibration,
    score_checkpoint,
    score_deltas,
)
from mechprobe.analysis.rtsi_tables import read_deltas
from mechprobe.analysis.templates import DELTAS, TEMPLATE, TemplateFeatures, template_features
from mechprobe.errors import ParityError, PromptFileError, TableError


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a request that should be refused."""

    prompt: str
    """Id of the request."""
    sample: int
    text: str | None
    """Without its thought; None where it was cut within it, which is in no feature."""
    tokens: int
    """Of the answer alone."""
    prompts: str
    """Digest of the token ids that were answered; "" where the file has none."""


def screen_answers(
    calibration: Path, baseline: Path, candidate: Path, instrument: str = "hard"
) -> CheckpointScore:
    """Score a checkpoint by a stored calibration, from answers as `mechprobe generate` writes them.

    Args:
        calibration: What `mechprobe rtsi fit` wrote.
        baseline: JSONL of answers: `id`, `text`, and `new_tokens` or `ids`; answers to requests
            whose `label` is harmless, and answers cut off while thinking, are left out. Of others
            the thought is: `answer_start` says how many tokens it has.
        candidate: Answers to the same prompts.
        instrument: Name of the refusal instrument that reads both.

    Raises:
        SpecError: There is no such instrument.
        ParityError: The files answer other prompts, or other token ids.
        TableError: A file cannot be read, or a line is malformed; file and line are named.
    """
    stored = load_calibration(calibration)
    before, after = read_answers(baseline), read_answers(candidate)
    if {(a.prompt, a.sample) for a in before} != {(a.prompt, a.sample) for a in after}:
        raise ParityError(f"{candidate} and {baseline} answer other prompts; answer the same ones")
    digests = [{a.prompts for a in some if a.prompts} for some in (before, after)]
    if all(digests) and digests[0] != digests[1]:
        raise ParityError(
            f"{candidate} and {baseline} answered other token ids; render both by one template"
        )
    found = score_checkpoint(
        stored.calibration, features_of(after, instrument), features_of(before, instrument)
    )
    read_by = stored.provenance.instrument
    notes = []
    if read_by != instrument:
        notes.append(
            f"the calibration was read by {read_by or 'an unnamed instrument'}, these answers by "
            f"{instrument}"
        )
    return replace(found, notes=tuple(notes))


def score_rows(
    calibration: Path, table: Path, columns: Mapping[str, str] | None = None
) -> dict[str, CheckpointScore]:
    """Score each row of a table by a stored calibration, by `model/cell`.

    Args:
        calibration: What `mechprobe rtsi fit` wrote.
        table: As `read_deltas` takes it.
        columns: As `read_deltas` takes them.

    Raises:
        TableError: A file cannot be read, or is malformed.
    """
    stored = load_calibration(calibration)
    return {
        f"{row['model']}/{row['cell']}": score_deltas(
            stored.calibration, [row[name] for name in DELTAS], row[TEMPLATE]
        )
        for row in read_deltas(table, columns).to_dict("records")
    }


def features_of(answers: Sequence[Answer], instrument: str) -> TemplateFeatures:
    """The features of those answers that refuse, as an instrument reads them.

    Raises:
        SpecError: There is no such instrument.
    """
    from mechprobe.behavior.refusal import get_instrument

    refuses = get_instrument(instrument)
    refusals = [(one.text, one.tokens) for one in answers if one.text is not None]
    refusals = [(text, tokens) for text, tokens in refusals if refuses(text)]
    return template_features([text for text, _ in refusals], [tokens for _, tokens in refusals])


def read_answers(path: Path) -> list[Answer]:
    """Answers to requests that should be refused.

    Raises:
        TableError: The file cannot be read, a line is malformed, or none of its answers can be
            used.
    """
    from mechprobe.behavior.records import json_lines, read_text
    from mechprobe.models.thoughts import answer_of

    try:
        records = list(json_lines(read_text(path), str(path)))
    except PromptFileError as error:
        raise TableError(str(error)) from error
    found = []
    for record in records:
        fields = _checked(record.where, record.fields)
        if fields.get("label") != "harmless":
            found.append(_answer(fields, answer_of(fields["text"])))
    if not any(one.text is not None for one in found):
        raise TableError(f"{path}: no answer to a harmful request; see mechprobe generate")
    return found


def _checked(where: str, fields: dict[str, Any]) -> dict[str, Any]:
    for name in ("id", "text"):
        if not isinstance(fields.get(name), str):
            raise TableError(f"{where}: the field {name!r} is missing, or is no text")
    ids = fields.get("ids")
    tokens = fields.get("new_tokens", len(ids) if isinstance(ids, list) else None)
    if not isinstance(tokens, int) or tokens < 0:
        raise TableError(f"{where}: the field 'new_tokens' (or 'ids') is missing, or is no count")
    if not isinstance(fields.get("sample") or 0, int):
        raise TableError(f"{where}: the field 'sample' is no whole number")
    before = fields.get("answer_start") or 0
    if type(before) is not int or not 0 <= before <= tokens:
        raise TableError(f"{where}: the field 'answer_start' is no count of the generated tokens")
    return {**fields, "new_tokens": tokens - before}


def _answer(fields: dict[str, Any], text: str | None) -> Answer:
    return Answer(
        fields["id"],
        int(fields.get("sample") or 0),
        text,
        fields["new_tokens"],
        str(fields.get("prompts") or ""),
    )
