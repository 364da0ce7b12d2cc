"""Entropy against scipy and torch, and what quantization does to a real small model."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.special import softmax

from mechprobe.errors import NumericsError, ParityError, StoreError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import requests
from mechprobe.probes import entropy as probe
from mechprobe.probes.next_token import entropy_nats
from mechprobe.probes.observation import Observation, observe
from mechprobe.probes.refusal_presets import given_tokens


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 200), st.integers(2, 3000))
def test_entropy_equals_scipy(seed, scale, vocabulary):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(3, vocabulary)) + 50
    expected = scipy.stats.entropy(softmax(logits, axis=1), axis=1)
    np.testing.assert_allclose(entropy_nats(logits), expected, atol=1e-10, rtol=0)


def test_entropy_closed_forms():
    assert entropy_nats(np.zeros((1, 1000)))[0] == pytest.approx(np.log(1000), abs=1e-12)
    assert entropy_nats([[0.0, -np.inf, 0.0]])[0] == pytest.approx(np.log(2), abs=1e-15)
    assert entropy_nats([[900.0, 0.0]])[0] == 0.0
    for bad in (np.nan, np.inf):
        with pytest.raises(NumericsError):
            entropy_nats([[0.0, bad]])


def test_bfloat16_logits_do_not_bias_it():
    rng = np.random.default_rng(0)
    # a model sure of its first word: probability 0.998 to 0.9997, over a tail of 5,000 tokens
    exact = rng.normal(scale=1.0, size=(400, 5_000))
    exact[:, 7] = rng.uniform(15.3, 17.0, size=400)
    logits = torch.from_numpy(exact).to(torch.bfloat16)
    truth = scipy.stats.entropy(softmax(exact, axis=1), axis=1)

    found = entropy_nats(logits)
    widened = softmax(logits.double().numpy(), axis=1)
    np.testing.assert_allclose(found, scipy.stats.entropy(widened, axis=1), atol=1e-10)
    # what is left is the rounding of the logits themselves, which has no sign
    error = found - truth
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(len(error))

    p = torch.softmax(logits, dim=-1)  # in bfloat16 the first word's probability becomes 1
    naive = -torch.where(p > 0, p * torch.log(p), 0.0).double().sum(dim=-1).numpy() - truth
    assert naive.mean() < -0.04 * truth.mean() and abs(error.mean()) < 0.01 * truth.mean()


@pytest.fixture(scope="module")
def base():
    return load_checkpoint("organism:llama-s", kernel="dense")


@pytest.fixture(scope="module")
def prompts(base):
    rows = requests("test", 40, seed=3)
    return {
        f"evaluate/{label}": encode(base.tokenizer, [r.text for r in rows if r.label == label])
        for label in ("harmful", "harmless")
    }


@pytest.fixture(scope="module")
def cells(base, prompts, tmp_path_factory):
    """The organism, and the same with noise of 15 % on every weight matrix."""
    clean = observe(base, prompts, probe.needs(), tmp_path_factory.mktemp("base"))
    noisy = load_checkpoint("organism:llama-s", kernel="dense")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in noisy.module.model.layers.parameters():
            if weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight += 0.15 * weight.std() * noise
    return clean, observe(noisy, prompts, probe.needs(), tmp_path_factory.mktemp("noisy"))


@pytest.fixture(scope="module")
def tokens(base):
    return given_tokens(base.tokenizer, pieces=["I"])


def test_every_number_equals_a_direct_computation(cells, tokens):
    base, cell = cells
    found = probe.measure(cell, base, tokens=tokens)
    assert found.not_measured == ()
    for name, side in (("evaluate/harmful", found.harmful), ("evaluate/harmless", found.harmless)):
        x, y = (torch.from_numpy(o.logits(name)) for o in (cell, base))
        h = torch.distributions.Categorical(logits=x).entropy().numpy()
        h0 = torch.distributions.Categorical(logits=y).entropy().numpy()
        assert side.entropy.value == pytest.approx(h.mean(), abs=1e-9)
        assert side.shift.value == pytest.approx((h - h0).mean(), abs=1e-9)
        assert side.shift.effect == pytest.approx((h - h0).mean() / (h - h0).std(ddof=1), rel=1e-6)
        d, n = h - h0, len(h)
        error = scipy.stats.sem(d)
        drawn = np.random.default_rng(5).choice(d, (20_000, n))
        errors = (drawn.mean(axis=1) - d.mean()) / scipy.stats.sem(drawn, axis=1)
        t = scipy.stats.t(n - 1).ppf(0.975)
        reach = np.quantile(errors, 0.975).clip(t), -np.quantile(errors, 0.025).clip(None, -t)
        expected = (d.mean() - error * reach[0], d.mean() + error * reach[1])
        width = expected[1] - expected[0]
        assert (side.shift.low, side.shift.high) == pytest.approx(expected, abs=0.1 * width)
        kl = torch.nn.functional.kl_div(
            x.log_softmax(-1), y.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        assert side.kl.value == pytest.approx(kl.mean().item(), abs=1e-9)
        assert side.kl_max == pytest.approx(kl.max().item(), abs=1e-9)
        assert side.flips.count == int((x.argmax(-1) != y.argmax(-1)).sum())
        p, p0 = (z.softmax(-1)[:, list(tokens.ids)].sum(-1).numpy() for z in (x, y))
        odds, odds0 = (np.log(q + 1e-8) - np.log(1 - q + 1e-8) for q in (p, p0))
        assert side.log_odds.value == pytest.approx(odds.mean(), abs=1e-9)
        assert side.log_odds_shift.value == pytest.approx((odds - odds0).mean(), abs=1e-9)
        assert side.n == 40 and len(side.per_prompt["kl"]) == 40
    lost = found.margin_lost
    assert lost.value == -found.harmful.log_odds_shift.value and lost.low <= lost.value <= lost.high


def test_a_cell_against_itself_has_not_moved(cells, tokens):
    found = probe.measure(cells[0], cells[0], tokens=tokens)
    for side in (found.harmful, found.harmless):
        assert (side.shift.value, side.shift.low, side.shift.high) == (0, 0, 0)
        assert side.shift.effect is None
        assert side.flips.count == 0 and side.kl.value == pytest.approx(0, abs=1e-12)
    assert found.margin_lost.value == 0


def test_what_was_not_measured_is_said(cells):
    alone = probe.measure(cells[0])
    assert alone.harmful.shift is None and alone.harmful.log_odds is None
    assert alone.margin_lost is None
    assert any("no baseline" in line for line in alone.not_measured)
    assert any("no refusal tokens" in line for line in alone.not_measured)
    study = probe.measure(cells[1], cells[0], study=True)
    assert alone.unmet == ("refusal log-odds",) and study.unmet == ()
    assert study.study and study.harmful.kl is None and study.harmful.shift is not None
    assert study.harmful.shift == probe.measure(cells[1], cells[0]).harmful.shift


def test_no_prompt_of_the_figure_is_hidden_or_squeezed(cells, tokens):
    found = probe.measure(cells[1], cells[0], tokens=tokens)
    squeezed = {  # every prompt near 0.1 nats before, far apart after
        "baseline_entropy": tuple(np.linspace(0.1, 0.12, found.harmful.n)),
        "entropy": tuple(np.linspace(0.1, 5.0, found.harmful.n)),
    }
    sides = [
        replace(side, per_prompt=dict(side.per_prompt) | squeezed)
        for side in (found.harmful, found.harmless)
    ]
    page = replace(found, harmful=sides[0], harmless=sides[1]).plot()
    page.draw_without_rendering()
    (legend,) = page.legends
    assert [text.get_text() for text in legend.texts][-1] == "no change"
    for axes in page.axes:
        assert axes.get_legend() is None
        assert legend.get_window_extent().y1 < axes.get_window_extent().y0
    box = page.axes[0].get_window_extent()
    points = np.concatenate([dots.get_offsets() for dots in page.axes[0].collections])
    drawn = page.axes[0].transData.transform(points)
    assert np.ptp(drawn[:, 0]) > 0.8 * box.width and np.ptp(drawn[:, 1]) > 0.8 * box.height


def test_clusters_are_resampled_together(cells, tokens):
    pairs = {"evaluate/harmful": [i // 8 for i in range(40)]}
    own = probe.measure(cells[1], cells[0], tokens=tokens)
    together = probe.measure(cells[1], cells[0], tokens=tokens, clusters=pairs)
    assert together.harmful.entropy.value == own.harmful.entropy.value
    assert together.harmful.entropy != own.harmful.entropy
    assert together.harmless == own.harmless


def test_it_survives_the_disk_and_is_shown(cells, tokens, tmp_path):
    found = probe.measure(cells[1], cells[0], tokens=tokens)
    assert probe.EntropyResult.load(found.save(tmp_path / "out")) == found
    alone = probe.measure(cells[0])
    assert probe.EntropyResult.load(alone.save(tmp_path / "alone")) == alone
    out = Console(width=100, file=io.StringIO(), record=True)
    out.print(found, alone)
    text = out.export_text()
    assert str(found.harmful.shift) in text and "not measured: shifts" in text
    for result, panels in ((found, 2), (alone, 1)):
        drawn = result.plot()
        drawn.savefig(tmp_path / "figure.png")
        assert len(drawn.axes) == panels
        assert all("nats" in axes.get_xlabel() for axes in drawn.axes)
        assert "organism:llama-s, FP16 (dense)" in drawn.get_suptitle()
    (tmp_path / "out" / "entropy.json").write_text('{"schema": 1, "probe": "entropy"}')
    with pytest.raises(StoreError, match="not a result of this version's entropy probe"):
        probe.EntropyResult.load(tmp_path / "out")
    with pytest.raises(StoreError, match="no such file"):
        probe.EntropyResult.load(tmp_path / "nowhere")


def test_other_prompts_are_refused(base, cells, prompts, tmp_path):
    fewer = {name: p.select(range(5)) for name, p in prompts.items()}
    other = observe(base, fewer, probe.needs(), tmp_path)
    with pytest.raises(ParityError):
        probe.measure(other, cells[0])
    assert probe.measure(Observation.open(tmp_path)).harmful.n == 5
