"""Refusal tokens: found where they were planted, and in the organism's own refusals."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mechprobe.errors import NumericsError, SpecError, VocabularyError
from mechprobe.models.gguf_write import write_f16_gguf
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms import organism_path
from mechprobe.organisms.world import requests
from mechprobe.probes.observation import observe
from mechprobe.probes.refusal_presets import PRESETS, given_tokens, preset_tokens
from mechprobe.probes.refusal_tokens import (
    find,
    find_refusal_tokens,
    needs,
    refusal_log_odds,
    refusal_probability,
)
from mechprobe.probes.refusals import read_refusals

SIZE = 3000


def words(at: dict[int, str]) -> PreTrainedTokenizerFast:
    """A real tokenizer of whole words, with chosen words at chosen ids."""
    vocab = {at.get(i, f"w{i}"): i for i in range(SIZE)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="w0")), unk_token="w0"
    )


TOKENIZER = words({40: "I", 2121: "As", 7: "The", 9: "Sure"})


def logits(rows: list[dict[int, float]], seed: int = 0) -> np.ndarray:
    """Flat logits with a few ids raised, row by row."""
    out = np.random.default_rng(seed).normal(scale=0.1, size=(len(rows), SIZE))
    for row, raised in enumerate(rows):
        for token, value in raised.items():
            out[row, token] += value
    return out


def test_tokens_of_topics_are_found_together_and_openings_of_help_are_not():
    # refusals begin with "I" on one topic and "As" on another; "The" opens every kind of answer
    harmful = logits([{40: 14.0, 7: 12.0}] * 12 + [{2121: 14.0, 7: 12.0}] * 8)
    harmless = logits([{9: 14.0, 7: 12.0}] * 20, seed=1)
    firsts = [40] * 11 + [2121] * 8 + [7] * 5
    found = find_refusal_tokens(harmful, harmless, firsts, TOKENIZER, min_auc=0.8)
    assert set(found.ids) == {40, 2121} and set(found.pieces) == {"I", "As"}
    assert found.auc == 1.0 and found.covered == pytest.approx(19 / 24)
    by_id = {row.id: row for row in found.evidence}
    assert not by_id[7].kept and by_id[7].auc < 0.8
    p = np.exp(harmful - logsumexp(harmful, axis=1, keepdims=True))[:, 40]
    q = np.exp(harmless - logsumexp(harmless, axis=1, keepdims=True))[:, 40]
    assert by_id[40].p_harmful == pytest.approx(p.mean(), abs=1e-12)
    assert by_id[40].p_harmless == pytest.approx(q.mean(), abs=1e-12)
    assert by_id[40].auc == pytest.approx(roc_auc_score([1] * 20 + [0] * 20, [*p, *q]), abs=1e-12)


def test_a_lone_opening_is_chance():
    harmful = logits([{40: 14.0, 2121: 3.0}] * 30)
    found = find_refusal_tokens(harmful, logits([{}] * 30, 1), [40] * 29 + [2121], TOKENIZER)
    assert found.ids == (40,)
    assert [row.id for row in found.evidence if not row.kept] == [2121]  # 1 of 30 is below 5 %


def test_no_tokens_where_the_data_show_none():
    same = [{7: 14.0}] * 20
    none = find_refusal_tokens(logits(same), logits(same, 1), [7] * 20, TOKENIZER)
    assert not none and "separates" in (none.problem or "") and none.auc is None
    assert "AUC 0." in none.problem and "--refusal-token" in none.problem
    few = find_refusal_tokens(logits(same), logits(same, 1), [7, 7], TOKENIZER)
    assert not few and "refuses 2 harmful" in (few.problem or "")
    small = find_refusal_tokens(logits(same[:5]), logits(same, 1), [7] * 5, TOKENIZER)
    assert not small and "5 validation prompts" in (small.problem or "")
    broken = logits(same)
    broken[3, 5] = np.nan
    with pytest.raises(NumericsError, match="NaN"):
        find_refusal_tokens(broken, logits(same), [7] * 20, TOKENIZER)


def test_log_odds_are_those_of_the_paper():
    x = np.random.default_rng(5).normal(scale=3, size=(6, 50))
    p = (np.exp(x) / np.exp(x).sum(1, keepdims=True))[:, [3, 4]].sum(1)
    np.testing.assert_allclose(
        refusal_log_odds(x, (3, 4)), np.log(p + 1e-8) - np.log(1 - p + 1e-8), atol=1e-12
    )
    np.testing.assert_allclose(refusal_probability(x, (3, 4)), p, atol=1e-12)
    certain = np.array([[800.0, 0.0, 0.0]])
    assert refusal_log_odds(certain, [0])[0] == pytest.approx(np.log(1 + 1e-8) - np.log(1e-8))


def test_presets_are_checked_against_the_vocabulary():
    assert preset_tokens(TOKENIZER, "qwen").ids == (40, 2121)
    assert preset_tokens(TOKENIZER, "qwen").pieces == ("I", "As")
    assert preset_tokens(TOKENIZER, "llama3").source == "preset llama3"
    with pytest.raises(VocabularyError, match="306 is 'I' there and is 'w306' in this"):
        preset_tokens(TOKENIZER, "llama2")
    with pytest.raises(VocabularyError, match="235285 is 'I' there and does not exist"):
        preset_tokens(TOKENIZER, "gemma")
    with pytest.raises(SpecError, match="there are gemma, llama2"):
        preset_tokens(TOKENIZER, "llama9")
    assert all(name == name.lower() and tokens for name, tokens in PRESETS.items())


def test_tokens_can_be_named():
    named = given_tokens(TOKENIZER, ids=[9], pieces=["I", "Sure"])
    assert named.ids == (9, 40) and named.source == "given" and named.covered is None
    for wrong in ({"ids": [SIZE]}, {"pieces": ["absent"]}):
        with pytest.raises(VocabularyError):
            given_tokens(TOKENIZER, **wrong)
    with pytest.raises(SpecError):
        given_tokens(TOKENIZER)


@pytest.fixture(scope="module")
def organism():
    return load_checkpoint("organism:llama-s", kernel="dense")


def test_a_native_gguf_answers_as_the_graph_it_came_from(organism, tmp_path):
    rows = requests("validation", 4, seed=0)
    prompts = encode(organism.tokenizer, [row.text for row in rows])
    path = write_f16_gguf(organism_path("llama-s"), tmp_path / "F16.gguf")
    native = load_checkpoint(str(path), kernel="native")
    assert native.module is None
    assert read_refusals(native, prompts).refused == read_refusals(organism, prompts).refused


def test_the_organism_shows_its_own(organism, tmp_path):
    rows = requests("validation", 40, seed=0)
    sets = {
        f"select/{label}": encode(organism.tokenizer, [r.text for r in rows if r.label == label])
        for label in ("harmful", "harmless")
    }
    seen = observe(organism, sets, needs(), tmp_path)
    refusals = read_refusals(organism, sets["select/harmful"])
    assert refusals.prompts == sets["select/harmful"].digest
    # a greedy answer begins with the most probable token
    top = seen.logits("select/harmful").argmax(axis=1)
    assert refusals.first_ids == tuple(top)
    found = find(seen, refusals.openings, organism.tokenizer)
    assert found and "I" in found.pieces and set(found.ids) <= set(refusals.openings)
    assert found.auc is not None and found.auc > 0.95
    assert found.covered is not None and found.covered > 0.9
    shown = Console(width=100, record=True, file=io.StringIO())
    shown.print(found)
    assert "'I'" in shown.export_text()
    assert json.loads(json.dumps(found.to_dict()))["ids"] == list(found.ids)
    with pytest.raises(VocabularyError, match="is 2 tokens here"):
        given_tokens(organism.tokenizer, pieces=["I am"])
