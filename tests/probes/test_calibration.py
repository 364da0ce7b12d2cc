"""Calibration of classifiers that are known, and of a real small model before and after noise."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from mechprobe import stats
from mechprobe.behavior.multiple_choice import as_question
from mechprobe.errors import (
    GenerationError,
    NumericsError,
    ParityError,
    PromptFileError,
    StoreError,
)
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import questions, requests
from mechprobe.probes import calibration as probe
from mechprobe.probes.calibration import OptionScores, Refusals
from mechprobe.probes.calibration_view import beside_limit
from mechprobe.probes.observation import observe
from mechprobe.probes.refusal_presets import given_tokens
from mechprobe.probes.reliability import expected_calibration_error


def classifier(seed: int, n: int = 1500, sharpen: float = 1.0) -> OptionScores:
    """Four options whose answers are drawn from the scores; `sharpen` above 1 overstates them."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=1.5, size=(n, 4))
    answers = np.array([rng.choice(4, p=p) for p in softmax(scores, axis=1)])
    return OptionScores(sharpen * scores - 7.0, answers)  # letters share little of the mass


def test_scores_equal_sklearn():
    scores = classifier(0, 400)
    found = probe.labelled_calibration(scores)
    p = softmax(scores.logprobs, axis=1)
    correct = p.argmax(axis=1) == scores.answers
    labels = list(range(4))
    assert found.accuracy.count == correct.sum()
    assert found.nll.value == pytest.approx(log_loss(scores.answers, p, labels=labels), abs=1e-12)
    assert found.brier.value == pytest.approx(
        brier_score_loss(scores.answers, p, labels=labels, scale_by_half=False), abs=1e-12
    )
    assert found.top.auroc.value == pytest.approx(roc_auc_score(correct, p.max(1)), abs=1e-12)
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    ece = torchmetrics.multiclass_calibration_error(
        torch.from_numpy(p), torch.from_numpy(scores.answers), num_classes=4, n_bins=15
    )
    assert found.top.ece == pytest.approx(ece.item(), abs=1e-7)
    assert found.true_answer.value == pytest.approx(
        p[np.arange(400), scores.answers].mean(), abs=1e-12
    )


def test_calibrated_and_overconfident_classifiers_come_out_as_such():
    honest = classifier(1)
    boastful = OptionScores(honest.logprobs * 2.5, honest.answers)
    found = probe.labelled_calibration(honest)
    assert found.top.verdict == "no miscalibration shown"
    assert found.top.gap.low < 0 < found.top.gap.high
    against = probe.labelled_calibration(boastful, honest)
    assert against.top.verdict == "overconfident" and against.top.p_calibrated < 0.001
    assert against.baseline.verdict == "no miscalibration shown"
    assert against.accuracy == found.accuracy and against.accuracy_shift.value == 0
    assert against.confidence_shift.low > 0.1
    assert against.ece_shift.low > 0.05
    assert against.nll_shift.low > 0
    before, after = (
        brier_score_loss(one.answers, softmax(one.logprobs, axis=1), scale_by_half=False)
        for one in (honest, boastful)
    )
    assert against.brier_shift.baseline == pytest.approx(before, abs=1e-12)
    assert against.brier_shift.value == pytest.approx(after - before, abs=1e-12)
    assert against.brier_shift.low > 0
    assert found.brier_shift is None
    # the published shift: confidence in the true answer, prompt by prompt
    truth = boastful.true_probability - honest.true_probability
    assert against.true_answer_shift.value == pytest.approx(truth.mean(), abs=1e-12)


def test_questions_may_have_fewer_options_and_ties_are_never_right():
    two = OptionScores(np.array([[0.0, 0.0, -np.inf], [-1.0, -2.0, -3.0]]), np.array([0, 0]))
    assert two.probabilities[0].tolist() == [0.5, 0.5, 0.0]
    assert two.correct.tolist() == [False, True]


def test_wrong_scores_are_refused():
    good, answers = np.log([[0.6, 0.4], [0.3, 0.7]]), np.array([0, 1])
    with pytest.raises(GenerationError, match="this engine gives none"):
        OptionScores(np.full((3, 4), -1.0), np.zeros(3, int))
    with pytest.raises(NumericsError):
        OptionScores(np.array([[np.nan, 0.0]]), np.array([0]))
    with pytest.raises(PromptFileError, match="2 scored questions and 1"):
        OptionScores(good, answers[:1])
    with pytest.raises(PromptFileError, match="not one of the 2 options"):
        OptionScores(good, np.array([0, 2]))
    with pytest.raises(ParityError, match="different right answers"):
        probe.labelled_calibration(
            OptionScores(good, answers), OptionScores(good, np.array([1, 1]))
        )
    with pytest.raises(ParityError, match="prompt digests differ"):
        probe.labelled_calibration(
            OptionScores(good, answers, "a"), OptionScores(good, answers, "b")
        )


def planted(p, seed, blind=False):
    """Answers that refuse as often as the first token says, or regardless of it."""
    rng = np.random.default_rng(seed)
    refused = rng.random(len(p)) < (0.1 if blind else p)
    return Refusals(tuple(bool(r) for r in refused), (5,) * len(p), "hard", "digest")


def test_refusal_calibration_sees_a_first_token_that_came_apart_from_the_text():
    p = {"evaluate/harmful": np.random.default_rng(0).beta(0.6, 0.6, size=400)}
    honest = {"evaluate/harmful": planted(p["evaluate/harmful"], 1)}
    found = probe.refusal_calibration(p, honest)
    assert found.predicted.verdict == "no miscalibration shown" and found.instrument == "hard"
    y = np.array(honest["evaluate/harmful"].refused)
    assert found.predicted.brier.value == pytest.approx(
        brier_score_loss(y, p["evaluate/harmful"]), abs=1e-12
    )
    blind = {"evaluate/harmful": planted(p["evaluate/harmful"], 1, blind=True)}
    apart = probe.refusal_calibration(p, blind, (p, honest))
    assert apart.predicted.verdict == "overconfident"
    assert apart.predicted.auroc.low < 0.5 < apart.predicted.auroc.high
    assert apart.baseline.auroc.low > 0.7


def test_answers_that_cannot_be_read_are_left_out_and_counted():
    refusals = Refusals((True, None, False, None), (1, 2, 3, None), "hard", "d")
    found = probe.refusal_calibration({"x": [0.9, 0.5, 0.2, 0.1]}, {"x": refusals})
    assert (found.predicted.n, found.unread) == (2, 2)
    assert found.predicted.brier.value == pytest.approx((0.1**2 + 0.2**2) / 2)
    other = Refusals((True, None, False, None), (1, 2, 3, None), "soft", "d")
    with pytest.raises(ParityError, match="one instrument"):
        probe.refusal_calibration(
            {"x": [0.1] * 4}, {"x": refusals}, ({"x": [0.1] * 4}, {"x": other})
        )


def test_the_shape_of_a_distribution_by_hand():
    p = np.array([[0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.02]])
    found = probe.first_token_shape(np.log(p) + 3)
    assert found["top1"][0] == pytest.approx(0.5)
    assert found["top5"][0] == pytest.approx(0.95)
    assert found["gini"][0] == pytest.approx(1 - (p**2).sum())
    assert found["logit_range"][0] == pytest.approx(np.log(0.5 / 0.02))
    entropy = -(p * np.log(p)).sum()
    assert found["certainty"][0] == pytest.approx(1 - entropy / np.log(7))


@pytest.fixture(scope="module")
def organism():
    return load_checkpoint("organism:llama-s", kernel="dense")


@pytest.fixture(scope="module")
def measured(organism, tmp_path_factory):
    """The organism and a noisy copy: observed, answering, and asked."""
    rows = requests("test", 24, seed=5)
    prompts = {
        f"evaluate/{label}": encode(organism.tokenizer, [r.text for r in rows if r.label == label])
        for label in ("harmful", "harmless")
    }
    asked = [as_question(item, id=str(i)) for i, item in enumerate(questions(40, 1))]
    rendered = encode(organism.tokenizer, [question.prompt for question in asked])
    noisy = load_checkpoint("organism:llama-s", kernel="dense")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in noisy.module.model.layers.parameters():
            if weight.ndim == 2:
                weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
    out = []
    for name, checkpoint in (("base", organism), ("noisy", noisy)):
        seen = observe(checkpoint, prompts, probe.needs(), tmp_path_factory.mktemp(name))
        answers = {k: probe.read_refusals(checkpoint, p) for k, p in prompts.items()}
        out.append((seen, answers, probe.ask(checkpoint, rendered, asked)))
    return out


@pytest.fixture(scope="module")
def result(organism, measured):
    (base, base_answers, base_scores), (cell, answers, scores) = measured
    return probe.measure(
        cell,
        base,
        tokens=given_tokens(organism.tokenizer, pieces=["I"]),
        refusals=answers,
        baseline_refusals=base_answers,
        options=scores,
        baseline_options=base_scores,
    )


def test_a_real_cell_equals_direct_computation(organism, measured, result):
    (base, _, base_scores), (cell, answers, scores) = measured
    x, y = cell.logits("evaluate/harmful"), base.logits("evaluate/harmful")
    p, q = softmax(x, axis=1), softmax(y, axis=1)
    first = result.first_token
    top5 = np.sort(p, axis=1)[:, -5:].sum(axis=1)
    assert first.top1.value == pytest.approx(p.max(1).mean(), abs=1e-9)
    assert first.top5.value == pytest.approx(top5.mean(), abs=1e-9)
    assert first.gini.value == pytest.approx((1 - (p**2).sum(1)).mean(), abs=1e-9)
    assert first.logit_range.value == pytest.approx(np.ptp(x, axis=1).mean(), abs=1e-9)
    assert first.shifts["top1"].value == pytest.approx((p.max(1) - q.max(1)).mean(), abs=1e-9)
    certainty = 1 + (p * log_softmax(x, axis=1)).sum(1) / np.log(p.shape[1])
    assert first.proxy_ece == pytest.approx(expected_calibration_error(p.max(1), certainty))

    ids = list(result.tokens.ids)
    both = [softmax(cell.logits(n), axis=1)[:, ids].sum(1) for n in answers]
    refused = [r for found in answers.values() for r in found.refused]
    assert result.refusal.predicted.n == 48
    assert result.refusal.predicted.brier.value == pytest.approx(
        np.mean((np.concatenate(both) - refused) ** 2), abs=1e-9
    )
    assert result.refusal.baseline.auroc.value > 0.95
    right = scores.logprobs.argmax(1) == scores.answers
    assert result.labelled.accuracy.count == right.sum()
    shift = scores.true_probability - base_scores.true_probability
    assert result.labelled.true_answer_shift.value == pytest.approx(shift.mean(), abs=1e-12)


def test_study_mode_measures_what_the_study_did(measured):
    (base, *_), (cell, *_) = measured
    study = probe.measure(cell, base, study=True)
    assert study.study and study.labelled is None and study.refusal is None
    assert set(study.first_token.shifts) == {"top1", "top5", "gini", "logit_range"}
    assert study.first_token == probe.measure(cell, base).first_token
    assert [need.prompts for need in probe.needs(study=True)] == ["evaluate/harmful"]


def test_what_was_not_measured_is_said(organism, measured):
    (base, answers, _), _ = measured
    alone = probe.measure(base)
    assert alone.labelled is None and alone.refusal is None and alone.first_token.shifts == {}
    assert alone.unmet == ("refusal calibration",)  # questions were not asked for
    assert probe.measure(base, study=True).unmet == ()
    text = "\n".join(alone.not_measured)
    for part in ("none was given", "no labelled questions", "no refusal tokens"):
        assert part in text
    tokens = given_tokens(organism.tokenizer, pieces=["I"])
    one_sided = {"evaluate/harmful": answers["evaluate/harmful"]}
    found = probe.measure(base, tokens=tokens, refusals=one_sided)
    if found.refusal.predicted.auroc is None:  # the organism refuses every one of them
        assert any("AUROC of refusal" in line for line in found.not_measured)
    foreign = {"evaluate/harmful": Refusals((True,) * 24, (1,) * 24, "hard", "other digest")}
    with pytest.raises(ParityError, match="refusal calibration, evaluate/harmful"):
        probe.measure(base, tokens=tokens, refusals=foreign)


def test_rounding_never_puts_a_verdict_and_its_numbers_at_odds():
    assert beside_limit(0.02116, 0.02116) == ("0.021", "0.021")  # up to it: within
    assert beside_limit(0.0208, 0.0214) == ("0.021", "0.021")
    assert beside_limit(0.02141, 0.02138) == ("0.02141", "0.02138")
    assert beside_limit(0.4, 0.1) == ("0.400", "0.100")


def test_a_fall_of_confidence_is_a_finding_in_table_and_figure(result):
    def shown(top1):
        shift = stats.paired_shift(np.array(top1), np.full(24, 0.78), most=1.0)
        first = replace(result.first_token, shifts=result.first_token.shifts | {"top1": shift})
        found = replace(result, first_token=first)
        screen = Console(file=io.StringIO(), width=140)
        screen.print(found)
        titles = "".join(axes.get_title() for axes in found.plot().axes)
        return first.confidence, screen.file.getvalue(), titles

    kind, table, titles = shown([0.14, 0.16] * 12)
    assert kind == "fell"
    assert "confidence fell" in table and "confidence fell" in titles
    kind, table, titles = shown([0.77, 0.79] * 12)
    assert kind is None
    assert "confidence fell" not in table + titles


def test_the_verdict_in_a_figure_is_said_to_be_the_cells(result):
    titles = [axes.get_title() for axes in result.plot().axes[:2]]
    words = (
        ("labelled questions", result.labelled.top),
        ("refusal of the", result.refusal.predicted),
    )
    for title, (start, found) in zip(titles, words, strict=True):
        first, second = title.split("\n")
        assert first.startswith(start) and second.startswith("cell: ")
        assert f"{found.p_calibrated:.3f}" in second or "p < 0.001" in second


def test_it_survives_the_disk_and_is_shown(measured, result, tmp_path):
    alone = probe.measure(measured[0][0])
    for name, found in (("full", result), ("alone", alone)):
        assert probe.CalibrationResult.load(found.save(tmp_path / name)) == found
    out = Console(width=120, file=io.StringIO(), record=True)
    out.print(result, alone)
    text = out.export_text()
    assert "ECE, bins of equal width" in text and "not measured: labelled calibration" in text
    base = measured[0][2]
    before = brier_score_loss(base.answers, softmax(base.logprobs, axis=1), scale_by_half=False)
    (line,) = [x for x in text.splitlines() if x.strip().startswith("Brier, all options")]
    assert f" {before:.3f} " in line and str(result.labelled.brier_shift) in line
    for found, panels in ((result, 5), (alone, 1)):
        drawn = found.plot()
        drawn.savefig(tmp_path / "figure.png")
        assert len(drawn.axes) == panels
        assert "organism:llama-s, FP16 (dense)" in drawn.get_suptitle()
    with pytest.raises(StoreError, match="no such file"):
        probe.CalibrationResult.load(tmp_path / "nowhere")
