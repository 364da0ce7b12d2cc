"""What the probes leave of one cell in a folder, and read of a baseline's.

observation/             activations and logits, from the one observational pass
refusal_tokens.json      baseline only: found in its refusals, or named
unfinished/              what a killed selection or patching had computed
refusals.json            which evaluation prompts it refuses, by generation
questions.json           its scores on labelled questions
weights/                 baseline only: matrices that neurons are compared with
entropy.json, refusal_direction.*, calibration.json, safety_neurons.*    the results
forward_tokens.json      tokens through the model, by purpose
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mechprobe.errors import StoreError
from mechprobe.probes.labelled import OptionScores
from mechprobe.probes.observation import Observation
from mechprobe.probes.partial import PartialResults
from mechprobe.probes.refusal_tokens import RefusalTokens
from mechprobe.probes.refusals import Refusals
from mechprobe.probes.saving import load_json, save_json
from mechprobe.textfiles import read_object


class ProbeFolder:
    """The files of one probed cell; every path is there before its file is."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.observation_path = self.path / "observation"
        self.weights = self.path / "weights"
        self.partial = PartialResults(self.path / "unfinished")

    @property
    def observation(self) -> Observation:
        """The finished observational pass.

        Raises:
            StoreError: There is none.
        """
        return Observation.open(self.observation_path)

    def save_tokens(self, tokens: RefusalTokens) -> None:
        """Keep the refusal tokens."""
        save_json({"probe": "refusal_tokens", **tokens.to_dict()}, self.path, "refusal_tokens")

    @property
    def tokens(self) -> RefusalTokens:
        """The refusal tokens of a baseline.

        Raises:
            StoreError: None were looked for.
        """
        return load_json(RefusalTokens, self.path, "refusal_tokens")

    def save_refusals(self, refusals: Mapping[str, Refusals]) -> None:
        """Keep which prompts were refused, by prompt set."""
        from pydantic import TypeAdapter

        found = TypeAdapter(dict[str, Refusals]).dump_python(dict(refusals), mode="json")
        save_json({"probe": "refusals", "sets": found}, self.path, "refusals")

    @property
    def refusals(self) -> dict[str, Refusals] | None:
        """Which prompts were refused; None where nothing was generated."""
        from pydantic import TypeAdapter

        file = self.path / "refusals.json"
        if not file.exists():
            return None
        try:
            sets = read_object(file, StoreError)["sets"]
            return TypeAdapter(dict[str, Refusals]).validate_python(sets)
        except (ValueError, KeyError) as error:
            raise StoreError(f"{file}: not saved refusals; delete it and probe again") from error

    def save_questions(self, scores: OptionScores) -> None:
        """Keep the option log-probabilities of labelled questions."""
        offered = [[None if np.isneginf(x) else x for x in row] for row in scores.logprobs.tolist()]
        facts = {
            "probe": "questions",
            "logprobs": offered,
            "answers": np.asarray(scores.answers).tolist(),
            "prompts": scores.prompts,
        }
        save_json(facts, self.path, "questions")

    def forget_questions(self) -> None:
        """Remove the scores of an earlier run that asked questions."""
        (self.path / "questions.json").unlink(missing_ok=True)

    @property
    def questions(self) -> OptionScores | None:
        """Scores on labelled questions; None where none were asked."""
        file = self.path / "questions.json"
        if not file.exists():
            return None
        try:
            found = read_object(file, StoreError)
            rows = [[-np.inf if x is None else x for x in row] for row in found["logprobs"]]
            return OptionScores(np.array(rows), np.array(found["answers"]), found["prompts"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{file}: not saved scores; delete it and probe again") from error

    def add_tokens(self, purpose: str, tokens: float) -> None:
        """Count tokens through the model for one purpose; a repeated purpose is replaced."""
        counts = self.forward_tokens | {purpose: round(tokens)}
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / ".forward_tokens.json.part"
        part.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path / "forward_tokens.json")

    @property
    def forward_tokens(self) -> dict[str, int]:
        """Tokens through the model, by purpose."""
        file = self.path / "forward_tokens.json"
        if not file.exists():
            return {}
        counts = read_object(file, StoreError)
        if not all(type(count) is int for count in counts.values()):
            raise StoreError(f"{file}: not counts of tokens; delete it and probe again")
        return counts
