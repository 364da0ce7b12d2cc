import csv
import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from mechprobe.behavior.prompts import (
    SPLITS,
    load_arditi,
    load_builtin,
    load_jsonl,
    load_prompts,
    write_jsonl,
)
from mechprobe.errors import PromptFileError

REPOSITORY = Path(__file__).parents[2]
OWN = {
    "builtin": "a333eda993b2f6c6",
    "over-refusal": "88b264ece161ffd6",
    "refusal-training": "e07050aca171ff10",
}
FIRST = "11f3ad9150fc83f2"
DATA = Path(os.environ.get("MECHPROBE_EVALUATION_DATA", REPOSITORY / "shared" / "data"))


def _words(text):
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


def _write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


# the built-in set


def test_builtin_has_balanced_splits():
    prompts = load_builtin()
    assert prompts.counts == {
        (label, split): n
        for label in ("harmful", "harmless")
        for split, n in (("train", 99), ("validation", 55), ("test", 110))
    }
    per_category = Counter((r.category, r.label, r.split) for r in prompts)
    assert len({r.category for r in prompts}) == 11
    for (_, _, split), n in per_category.items():
        assert n == {"train": 9, "validation": 5, "test": 10}[split]


def test_builtin_twins_are_small_edits_in_one_split():
    prompts = load_builtin()
    by_id = {r.id: r for r in prompts}
    for record in prompts:
        twin = by_id[record.twin]
        assert twin.twin == record.id
        assert twin.label != record.label
        assert (twin.split, twin.category, twin.cluster) == (
            record.split,
            record.category,
            record.cluster,
        )
        a, b = record.text.split(), twin.text.split()
        assert abs(len(a) - len(b)) <= 2
        assert len(a) <= 20
        shared = len(_words(record.text) & _words(twin.text))
        assert shared >= 0.45 * max(len(_words(record.text)), len(_words(twin.text)))


def test_builtin_repeats_nothing():
    texts = [r.text.lower() for name in OWN for r in load_builtin(name)]
    assert len(set(texts)) == len(texts) == 528 + 126 + 12234


def test_over_refusal_prompts_are_harmless_and_held_out():
    prompts = load_prompts("over-refusal")
    assert {(r.label, r.split) for r in prompts} == {("harmless", "test")}
    assert len(prompts) == 126
    kinds = Counter(r.category for r in prompts)
    assert (len(kinds), set(kinds.values())) == (9, {14})
    assert max(len(r.text.split()) for r in prompts) <= 20
    with pytest.raises(PromptFileError, match="over-refusal: no harmful prompts"):
        prompts.select("harmful")


def test_an_unknown_builtin_name_lists_those_there_are():
    with pytest.raises(PromptFileError, match="no built-in prompt set 'xs'; there are builtin, ov"):
        load_builtin("xs")


def test_the_first_pairs_are_as_they_were():
    # results of the first release name prompts by id: ids 01 to 16 keep text and split
    rows = [
        (r.id, r.text, r.label, r.split, r.category, r.twin)
        for r in load_builtin()
        if int(r.id[4:6]) <= 16
    ]
    assert len(rows) == 352
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest().startswith(FIRST)


@pytest.mark.parametrize("name", OWN)
def test_builtin_digest_is_pinned(name):
    # results name this digest: changing the set is a change of the benchmark and must be meant
    assert load_builtin(name).digest.startswith(OWN[name])


def test_the_data_card_counts_what_is_there():
    card = (REPOSITORY / "mechprobe/behavior/data/README.md").read_text("utf-8")
    for name in OWN:
        counts = Counter((r.category, r.label, r.split) for r in load_builtin(name))
        for category in {category for category, _, _ in counts}:
            each = [counts[category, "harmless", split] for split in SPLITS]
            row = f"| {category} | " + " | ".join(map(str, each)) + " |"
            assert row in card, row


def _published():
    columns = {
        "advbench/harmful_behaviors.csv": "goal",
        "harmbench/harmbench_behaviors_text_test.csv": "Behavior",
        "harmbench/harmbench_behaviors_text_val.csv": "Behavior",
        "jailbreakbench/jbb_behaviors.csv": "Goal",
        "strongreject/strongreject_dataset.csv": "forbidden_prompt",
        "xstest/xstest_prompts.csv": "prompt",
        "truthfulqa/TruthfulQA.csv": "Question",
    }
    texts = []
    for name, column in columns.items():
        with (DATA / name).open(encoding="utf-8", newline="") as file:
            texts += [row[column] for row in csv.DictReader(file)]
    for file in sorted((DATA / "refusal_direction").glob("*.json")):
        texts += [row["instruction"] for row in json.loads(file.read_text("utf-8"))]
    return texts


def _counts(own, others):
    """Which words each own and each other text has, two sparse arrays (text, word)."""
    vocabulary = {w: i for i, w in enumerate({w for t in own + others for w in _words(t)})}

    def counts(texts):
        rows = [(i, vocabulary[w]) for i, text in enumerate(texts) for w in _words(text)]
        i, j = zip(*rows, strict=True)
        return csr_array((np.ones(len(rows)), (i, j)), shape=(len(texts), len(vocabulary)))

    return counts(own), counts(others)


def _overlap(a, b):
    """Jaccard index of the words of each text of `a` with those of each of `b`, (a, b)."""
    shared = (a @ b.T).toarray()
    return shared / (a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - shared)


def _close(own, others):
    """Places of an own and another text that share 60 % of their words, some rows at a time."""
    a, b = _counts(own, others)
    step = 500
    return [
        (start + int(i), int(j))
        for start in range(0, len(own), step)
        for i, j in np.argwhere(_overlap(a[start : start + step], b) >= 0.6)
    ]


def _runs(text, n):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_overlap_counts_words_by_hand():
    # {a, b, c} and {b, c, d}: 2 of 4; the order of words and their repetition do not count
    own, others = ["a b c", "x"], ["c d b B", "a b c"]
    assert _overlap(*_counts(own, others)).tolist() == [[0.5, 1.0], [0.0, 0.0]]
    assert _close(own, others) == [(0, 1)]
    assert _runs("How do I?", 2) == {("how", "do"), ("do", "i")}


def test_builtin_prompts_are_no_near_duplicates_of_each_other():
    own = [record for name in OWN for record in load_builtin(name)]
    texts = [r.text for r in own]
    assert all(own[i].cluster == own[j].cluster for i, j in _close(texts, texts))


@pytest.mark.skipif(not DATA.is_dir(), reason="no evaluation files: set MECHPROBE_EVALUATION_DATA")
def test_builtin_copies_no_published_set():
    published = _published()
    assert len(published) > 30_000
    own = [record.text for name in OWN for record in load_builtin(name)]
    # the message gives places, never a text of the files
    assert not _close(own, published), "own and published prompts share 60 % of their words"
    # a run of eight words is more than a common opening ("give me a short description of an …")
    theirs = {run for text in published for run in _runs(text, 8)}
    copied = [i for i, text in enumerate(own) if _runs(text, 8) & theirs]
    assert not copied, "own prompts repeat eight words of a published one"
    assert not {text.strip().lower() for text in own} & {t.strip().lower() for t in published}


@pytest.mark.skipif(not DATA.is_dir(), reason="no evaluation files: set MECHPROBE_EVALUATION_DATA")
def test_arditi_files_as_published():
    prompts = load_prompts(DATA / "refusal_direction")
    assert prompts.counts == {
        ("harmful", "train"): 260,
        ("harmful", "validation"): 39,
        ("harmful", "test"): 572,
        ("harmless", "train"): 18793,
        ("harmless", "validation"): 6264,
        ("harmless", "test"): 6266,
    }
    # published provenance: 572 rows of the test split, 562 distinct
    test = prompts.select("harmful", "test")
    assert len({r.text for r in test}) == 562
    assert len({r.cluster for r in test}) <= 562
    assert len(prompts.sample(128).select("harmless", "train")) == 128


# a user's file


def test_a_users_file(tmp_path):
    path = _write(
        tmp_path / "mine.jsonl",
        [
            {"text": "Do a bad thing.", "label": "harmful", "id": "a", "twin": "b"},
            "",
            {"text": "Do a good thing.", "label": "harmless", "id": "b", "split": "test"},
            {"text": "Whistle.", "label": "harmless", "category": "music", "extra": 1},
        ],
    )
    prompts = load_prompts(path)
    a, b, c = prompts.records
    assert (a.split, b.split) == ("test", "test")  # the twin's split holds for both
    assert (a.twin, b.twin) == ("b", "a")  # named once, known both ways
    assert a.cluster == b.cluster != c.cluster
    assert (c.id, c.category) == ("p00003", "music")


def test_splits_by_hash_do_not_depend_on_order_or_company(tmp_path):
    rows = [
        {"text": f"Request {i}.", "label": "harmful" if i % 2 else "harmless"} for i in range(400)
    ]
    one = load_jsonl(_write(tmp_path / "one.jsonl", rows))
    two = load_jsonl(_write(tmp_path / "two.jsonl", rows[::-1][:150]))
    split = {r.text: r.split for r in one}
    assert all(split[r.text] == r.split for r in two)
    share = Counter(split.values())
    # binomial, n = 400: four standard deviations are 0.10 at most
    assert abs(share["train"] / 400 - 0.4) < 0.1
    assert abs(share["validation"] / 400 - 0.2) < 0.1
    # the value itself, computed by hand from SHA-256: the same on every machine
    at = int(hashlib.sha256(b"request 7.").hexdigest()[:16], 16) / 16**16
    assert split["Request 7."] == ("train" if at < 0.4 else "validation" if at < 0.6 else "test")


def test_repeated_texts_stay_together(tmp_path):
    rows = [{"text": t, "label": "harmful"} for t in ("Sing  loud.", "sing loud.", "Other.")]
    a, b, c = load_jsonl(_write(tmp_path / "r.jsonl", rows)).records
    assert a.cluster == b.cluster != c.cluster
    assert a.split == b.split


def test_what_was_written_is_read_back(tmp_path):
    prompts = load_builtin()
    again = load_jsonl(write_jsonl(prompts, tmp_path / "copy.jsonl"))
    assert again.records == prompts.records
    assert again.digest == prompts.digest


GOOD = {"text": "Sing.", "label": "harmless", "id": "x"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, '{"text": "Sing."'], r"bad\.jsonl, line 2: not JSON"),
        ([GOOD, "", "[1]"], r"bad\.jsonl, line 3: needs an object"),
        ([{"label": "harmful"}], r"line 1: the field 'text' is missing"),
        ([{"text": "Sing."}], r"line 1: the field 'label' is missing"),
        ([{"prompt": "Sing."}], r"line 1: the fields 'text' and 'label' are missing"),
        ([GOOD, {"text": " ", "label": "harmful"}], r"line 2: the text is empty"),
        ([{"text": None, "label": "harmful"}], r"line 1: the text is empty"),
        ([{"text": 3, "label": "harmful"}], r"line 1: 'text' must be a text, not 3"),
        ([{"text": "a", "label": "evil"}], r"unknown label 'evil'; use harmful or harmless"),
        ([{"text": "a", "label": "harmful", "split": "dev"}], r"line 1: unknown split 'dev'"),
        ([GOOD, GOOD], r"line 2: id 'x' is also the id of line 1"),
        ([{**GOOD, "twin": "y"}], r"line 1: twin 'y' is no id of this file"),
        ([GOOD, {**GOOD, "id": "y", "twin": "x"}], r"line 2: twin 'x' has the same label"),
        (
            [
                {**GOOD, "split": "train"},
                {"text": "b", "label": "harmful", "id": "y", "twin": "x", "split": "test"},
            ],
            r"line 2: twins of 'x' are in splits train and test",
        ),
        ([], r"bad\.jsonl: no prompts"),
        (["", "  "], r"bad\.jsonl: no prompts"),
    ],
)
def test_a_bad_file_names_the_line(tmp_path, rows, message):
    path = _write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(PromptFileError, match=message) as caught:
        load_jsonl(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(PromptFileError, match="no such file"):
        load_prompts(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9", "label": "harmless"}')
    with pytest.raises(PromptFileError, match="not UTF-8"):
        load_prompts(tmp_path / "latin.jsonl")
    with pytest.raises(
        PromptFileError, match=r"give 'builtin', 'over-refusal', 'organism' .*a \.jsonl"
    ):
        load_prompts("prompts.txt")


def test_arditi_folder_and_single_file(tmp_path):
    rows = [{"instruction": f"Do {i}.", "category": None} for i in range(3)]
    (tmp_path / "harmful_train.json").write_text(json.dumps(rows))
    (tmp_path / "harmless_val.json").write_text(
        json.dumps([{"instruction": "Hum.", "category": "m"}])
    )
    both = load_prompts(tmp_path)
    assert [(r.label, r.split, r.category) for r in both][2:] == [
        ("harmful", "train", None),
        ("harmless", "validation", "m"),
    ]
    one = load_prompts(tmp_path / "harmless_val.json")
    assert one.texts("harmless", "validation") == ["Hum."]
    with pytest.raises(PromptFileError, match=r"file name must be one of harmful_train\.json"):
        (tmp_path / "other.json").write_text("[]")
        load_arditi(tmp_path / "other.json")
    (tmp_path / "harmful_val.json").write_text('[{"goal": "x"}]')
    with pytest.raises(PromptFileError, match=r"harmful_val\.json, item 0: needs an object"):
        load_arditi(tmp_path)
    (tmp_path / "harmful_val.json").write_text("[\n{")
    with pytest.raises(PromptFileError, match=r"harmful_val\.json, line 2: not JSON"):
        load_arditi(tmp_path)
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(PromptFileError, match=r"none of harmful_train\.json"):
        load_arditi(empty)


# choosing


def test_an_empty_choice_is_an_error(tmp_path):
    only = load_jsonl(
        _write(tmp_path / "h.jsonl", [{"text": "a", "label": "harmful", "split": "test"}])
    )
    with pytest.raises(
        PromptFileError, match=r"no harmless prompts in split 'test'; it has 1 harm"
    ):
        only.texts("harmless", "test")


def test_a_sample_keeps_twins_and_grows():
    prompts = load_builtin()
    small, large = prompts.sample(10), prompts.sample(20)
    assert set(small.counts.values()) == {10}
    assert {r.id for r in small} < {r.id for r in large}
    ids = {r.id for r in small}
    assert all(r.twin in ids for r in small)
    assert [r.id for r in small] == [r.id for r in prompts if r.id in ids]
    assert {r.id for r in prompts.sample(10, seed=1)} != ids
    assert {r.split for r in small} == set(SPLITS)
