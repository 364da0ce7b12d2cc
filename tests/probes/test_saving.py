"""A result is one JSON document that says which version wrote it."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from mechprobe.errors import StoreError
from mechprobe.probes.saving import SCHEMA, Saved, load_json
from mechprobe.stats import Estimate


@dataclass(frozen=True, slots=True, eq=False)
class Result(Saved):
    NAME: ClassVar[str] = "toy"
    ELSEWHERE: ClassVar[tuple[str, ...]] = ("numbers",)

    mean: Estimate | None
    names: tuple[str, ...]
    numbers: np.ndarray

    def _headline(self):
        return {"n_names": len(self.names)}

    def _save_elsewhere(self, folder):
        np.save(folder / "numbers.npy", self.numbers)

    @classmethod
    def _load_elsewhere(cls, folder):
        return {"numbers": np.load(folder / "numbers.npy")}


@pytest.fixture
def result():
    return Result(Estimate(0.5, 0.25, 0.75, 8), ("a", "b"), np.arange(3.0))


def test_a_document_names_its_schema_and_its_probe(result, tmp_path):
    found = result.to_dict()
    assert found == {
        "schema": SCHEMA,
        "probe": "toy",
        "unmet": [],
        "n_names": 2,
        "mean": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8},
        "names": ["a", "b"],
    }
    result.save(tmp_path)
    assert json.loads((tmp_path / "toy.json").read_text()) == found


@pytest.mark.parametrize("where", ["", "toy.json"])
def test_it_is_read_from_its_folder_or_its_file(result, tmp_path, where):
    assert result.save(tmp_path / "new") == tmp_path / "new"
    again = Result.load(tmp_path / "new" / where)
    assert (again.mean, again.names) == (result.mean, result.names)
    np.testing.assert_array_equal(again.numbers, result.numbers)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": SCHEMA + 1}, "not a result of this version's toy probe"),
        ({"probe": "other"}, "not a result of this version's toy probe"),
        ({"names": 3}, "not a saved result of the toy probe"),
        ({"mean": {"value": "high"}}, "not a saved result of the toy probe"),
    ],
)
def test_what_is_no_such_result_is_refused_in_one_line(result, tmp_path, change, said):
    result.save(tmp_path)
    file = tmp_path / "toy.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StoreError, match=said) as caught:
        Result.load(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "toy.json").unlink()
    with pytest.raises(StoreError, match="no such file"):
        Result.load(tmp_path)


def test_a_plain_dataclass_can_be_read_too(tmp_path):
    text = {"schema": SCHEMA, "probe": "e", "value": 1, "low": 0, "high": 2, "n": 3, "more": "!"}
    (tmp_path / "e.json").write_text(json.dumps(text))
    assert load_json(Estimate, tmp_path, "e") == Estimate(1, 0, 2, 3)
