"""Fitting, scoring and selection on a real model whose weights hold a planted direction."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mechprobe.activations import Ablate, Add, next_token_logits
from mechprobe.errors import MechprobeError, PromptFileError
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.lexicon import NAMES, THINGS, TOWNS
from mechprobe.probes import refusal_direction as probe
from mechprobe.probes.candidate_passes import join, kl
from mechprobe.probes.counting import counting
from mechprobe.probes.fitting import Kept
from mechprobe.probes.observation import observe
from mechprobe.probes.partial import PartialResults
from mechprobe.probes.refusal_tokens import refusal_log_odds

WIDTH, LAYERS, PLANTED = 256, 6, 2
CONSTANT, BOS, LAST, CONTENT, BAD = range(5)
"""Features of a token that its embedding carries, one dimension each; the rest is noise."""
V = np.zeros(WIDTH)
V[[20, 21, 22]] = (2.0, -1.0, 2.0)
V /= 3.0
COMPLY = 10
"""What every token carries, and the answer to harmless prompts is read from."""


def plant(organism):
    """A Llama that answers by one token, or by another where the last token's stream holds V.

    Block 1 attends from the last token to the content and writes V where it finds a bad word.
    Block 2 then takes from what the harmless answer is read from. So the direction is first there
    at the input of block 2, last token; from block 3 on it is mixed with something that harmless
    prompts need, and only the KL filter tells. Everything else is small noise.
    """
    tokenizer = organism.tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=32, head_dim=WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=1, num_key_value_heads=1,
        max_position_embeddings=256, rope_theta=1e14, initializer_range=0.001,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    refuse, comply = (tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in ("I", "Sure"))
    last = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    bad = set(tokenizer(" thief", add_special_tokens=False)["input_ids"])
    bad -= set(tokenizer(" guard", add_special_tokens=False)["input_ids"])
    v = torch.tensor(V, dtype=torch.float32)
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table[:, :5] = 0.0
        table[:, CONSTANT] = 1.0
        table[:, CONTENT] = 1.0
        table[:, COMPLY] = 1.0
        table[:, 40:64] = 0.3 * torch.randn(len(table), 24)
        for token, feature in ((tokenizer.bos_token_id, BOS), (last, LAST)):
            table[token, feature], table[token, CONTENT] = 1.0, 0.0
        for token in bad:
            table[token, BAD] = 4.0
        attention = model.model.layers[1].self_attn
        # slow rotary pairs: with this base they do not turn within a prompt
        slow, slower = WIDTH - 1, WIDTH - 2
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(attention, name).weight.zero_()
        attention.q_proj.weight[slow, CONSTANT] = 8.0
        attention.q_proj.weight[slow, LAST] = -16.0
        attention.q_proj.weight[slower, LAST] = 0.3
        attention.k_proj.weight[slow, BOS] = 8.0
        attention.k_proj.weight[slower, CONTENT] = 0.3
        attention.v_proj.weight[0, BAD] = 12.0
        attention.o_proj.weight[:, 0] = v
        mlp = model.model.layers[PLANTED].mlp
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(mlp, name).weight.zero_()
        mlp.gate_proj.weight[0, CONSTANT] = 1.0
        mlp.up_proj.weight[0] = 0.048 * v
        mlp.down_proj.weight[COMPLY, 0] = -1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[refuse] = 4.0 * v
        model.lm_head.weight[comply, COMPLY] = 1.0
    planted = dataclasses.replace(organism, module=model, source="planted", digest="planted")
    return planted, (refuse,)


def words(n, seed, who):
    rng = np.random.default_rng(seed)
    pool = [*NAMES, *TOWNS, *THINGS]
    return [
        " ".join([*rng.choice(pool, rng.integers(2, 6)), who, *rng.choice(pool, 3)])
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def planted():
    return plant(load_checkpoint("organism:llama-s", kernel="dense"))


@pytest.fixture(scope="module")
def prompts(planted):
    return {
        f"{split}/{label}": encode(planted[0].tokenizer, words(n, seed, who))
        for split, n, seed in (("fit", 48, 1), ("select", 16, 2), ("evaluate", 40, 3))
        for label, who in (("harmful", "thief"), ("harmless", "guard"))
    }


@pytest.fixture(scope="module")
def seen(planted, prompts, tmp_path_factory):
    post = prompts["fit/harmful"].post_instruction
    assert post == 3
    return observe(planted[0], prompts, probe.needs(post), tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def fitted(planted, seen):
    return probe.fit_directions(seen, refusal_ids=planted[1])


@pytest.fixture(scope="module")
def scores(planted, prompts, fitted):
    return probe.score_candidates(
        planted[0], fitted, prompts["select/harmful"], prompts["select/harmless"], planted[1]
    )


def log_odds(planted, prompts, interventions=()):
    logits = next_token_logits(planted[0], prompts, interventions=interventions)
    return refusal_log_odds(logits.double().numpy(), planted[1])


def test_the_planted_model_refuses_by_the_planted_direction(planted, prompts):
    assert log_odds(planted, prompts["evaluate/harmful"]).min() > 2
    assert log_odds(planted, prompts["evaluate/harmless"]).max() < -2


def test_the_probe_recovers_what_was_planted(fitted):
    found = fitted.at(-1, PLANTED).astype(np.float64)
    assert found @ V / np.linalg.norm(found) > 0.99
    later = fitted.at(-1, PLANTED + 1).astype(np.float64)
    assert later @ V / np.linalg.norm(later) < 0.9  # block 2 turned it
    assert not fitted.vectors[:, 0].any()  # template tokens' embeddings are the same everywhere
    assert fitted.floor(-1, 0) is None
    assert (fitted.n_harmful, fitted.n_harmful_given) == (48, 48)


def test_selection_picks_the_planted_place(scores):
    assert scores.place == (-1, PLANTED)
    assert scores.selection.bypass < -2 < 2 < scores.selection.induce
    assert scores.selection.kl < 0.01
    assert len(scores.table) == 3 * LAYERS
    assert (scores.table["dropped"] == "layer").sum() == 3 * 2  # int(0.8 * 6) = 4


def test_scores_are_those_of_forward_hooks_written_by_hand(planted, prompts, fitted, scores):
    """Arditi's hooks, on one prompt at a time, without anything of ours in between."""
    model = planted[0].module
    raw = torch.from_numpy(fitted.at(-1, PLANTED)).double().float()
    unit = raw / raw.norm()

    def run(ids, hooks):
        handles = [hooks(index, block) for index, block in enumerate(model.model.layers)]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        for handle in (h for group in handles for h in group):
            handle.remove()
        return logits

    def off(x):
        return x - (x @ unit).unsqueeze(-1) * unit

    def ablate(_, block):
        def out(module, args, output):
            return (off(output[0]), *output[1:]) if isinstance(output, tuple) else off(output)

        return [
            block.register_forward_pre_hook(lambda module, args: (off(args[0]), *args[1:])),
            block.self_attn.register_forward_hook(out),
            block.mlp.register_forward_hook(out),
        ]

    def add(index, block):
        if index != PLANTED:
            return []
        return [block.register_forward_pre_hook(lambda m, args: (args[0] + raw, *args[1:]))]

    def odds(logits):
        p = logits.softmax(-1)[list(planted[1])].sum()
        return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))

    bad, good = prompts["select/harmful"], prompts["select/harmless"]
    row = scores.table.query(f"position == -1 and layer == {PLANTED}").iloc[0]
    assert row["bypass"] == pytest.approx(np.mean([odds(run(i, ablate)) for i in bad]), abs=1e-4)
    assert row["induce"] == pytest.approx(np.mean([odds(run(i, add)) for i in good]), abs=1e-4)
    total = 0.0
    for ids in good:
        p, q = (run(ids, how).softmax(-1) for how in (lambda i, b: [], ablate))
        total += float((p * (torch.log(p + 1e-6) - torch.log(q + 1e-6))).sum())
    assert row["kl"] == pytest.approx(total / len(good), abs=1e-6)


def test_a_random_orthogonal_direction_does_neither(planted, prompts, fitted):
    vector = fitted.at(-1, PLANTED)
    control = torch.from_numpy(probe.random_orthogonal(vector, seed=1))
    real = torch.from_numpy(vector)
    harmful, harmless = prompts["evaluate/harmful"], prompts["evaluate/harmless"]
    assert log_odds(planted, harmful, [Ablate(real)]).max() < -2
    assert log_odds(planted, harmful, [Ablate(control)]).min() > 2
    assert log_odds(planted, harmless, [Add(real, layer=PLANTED)]).min() > 2
    assert log_odds(planted, harmless, [Add(control, layer=PLANTED)]).max() < -1


def test_a_candidate_without_length_is_no_intervention(scores):
    rows = scores.table[scores.table["layer"] == 0]
    assert (rows["bypass"] == scores.harmful).all()
    assert (rows["induce"] == scores.harmless).all()
    assert (rows["kl"] == 0).all()


def every_score(planted, prompts, fitted):
    """Every candidate on every prompt, in passes that begin at the first block."""
    bad, good = prompts["select/harmful"], prompts["select/harmless"]
    base = next_token_logits(planted[0], good).double().numpy()
    for position in fitted.positions:
        for layer in range(LAYERS):
            raw = torch.from_numpy(fitted.at(position, layer))
            if not raw.any():
                continue
            remove, add = [Ablate(raw)], [Add(raw, layer=layer)]
            ablated = next_token_logits(planted[0], good, interventions=remove).double().numpy()
            yield (
                position,
                layer,
                log_odds(planted, bad, remove).mean(),
                log_odds(planted, good, add).mean(),
                kl(base, ablated).mean(),
            )


def test_choice_and_numbers_are_those_of_every_candidate_on_every_prompt(
    planted, prompts, fitted, scores
):
    with counting(planted[0]) as count:
        rows = list(every_score(planted, prompts, fitted))
    assert len(rows) == 3 * (LAYERS - 1)
    full = pd.DataFrame(rows, columns=["position", "layer", "bypass", "induce", "kl"])
    want = probe.select_direction(full, LAYERS)
    assert scores.place == (want.position, want.layer)
    table = scores.table.merge(full, on=["position", "layer"], suffixes=("", " of all"))
    for name in ("bypass", "induce", "kl"):
        known = table[table[name].notna()]
        assert len(known)
        np.testing.assert_allclose(known[name], known[f"{name} of all"], rtol=0, atol=1e-6)
    out = table["dropped"]
    assert (table[out == "kl"]["kl of all"] > 0.1).all()
    assert (table[out == "induce"]["induce of all"] < 0).all()
    assert (table[out == "bypass"]["bypass of all"] > want.bypass).all()
    assert scores.forward_tokens < 0.4 * count.tokens


def test_an_ended_selection_goes_on_where_it_was(planted, prompts, fitted, scores, tmp_path):
    def select(told):
        return probe.score_candidates(
            planted[0], fitted, prompts["select/harmful"], prompts["select/harmless"], planted[1],
            partial=PartialResults(tmp_path), progress=told,
        )  # fmt: skip

    def end(done, total):
        if done == total // 2 + 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select(end)
    with counting(planted[0]) as count:
        found = select(lambda done, total: None)
    assert found.to_dict() == scores.to_dict()
    assert 0 < count.tokens < scores.forward_tokens / 2


def test_prompts_on_the_wrong_side_are_left_out_and_counted(planted, prompts, tmp_path):
    checkpoint, ids = planted
    fooled = encode(checkpoint.tokenizer, words(8, 9, "guard"))
    mixed = join(prompts["fit/harmful"], fooled)
    seen = observe(
        checkpoint,
        {"fit/harmful": mixed, "fit/harmless": prompts["fit/harmless"]},
        probe.needs()[:2],
        tmp_path,
    )
    found = probe.fit_directions(seen, refusal_ids=ids)
    assert (found.n_harmful, found.n_harmful_given) == (48, 56)
    assert found.rows_harmful == tuple(range(48))
    everything = probe.fit_directions(seen)
    assert everything.n_harmful == 56
    assert found.at(-1, 2) @ V > everything.at(-1, 2) @ V


def test_no_prompt_on_the_right_side_is_an_error():
    assert Kept.by_score(np.array([1.0, 0.0, 2.0]), np.array([-1.0, 0.0])) == Kept((0, 2), (0,))
    with pytest.raises(PromptFileError, match="none of 2 harmful prompts"):
        Kept.by_score(np.array([-1.0, 0.0]), np.array([-1.0]))


def test_a_model_that_does_not_refuse_by_one_direction_selects_none(planted, prompts, fitted):
    checkpoint, _ = planted
    comply = checkpoint.tokenizer("Sure", add_special_tokens=False)["input_ids"][:1]
    found = probe.score_candidates(
        checkpoint, fitted, prompts["select/harmless"], prompts["select/harmful"], comply
    )
    assert found.selection is None and found.place is None
    assert "candidates were dropped" in found.problem
    assert probe.Scores.from_dict(found.to_dict()).to_dict() == found.to_dict()


def test_kl_has_the_published_epsilon():
    p, q = np.array([[0.7, 0.3, 0.0]]), np.array([[0.5, 0.5, 0.0]])
    with np.errstate(divide="ignore"):
        found = kl(np.log(p), np.log(q))
    expected = 0.7 * np.log(0.700001 / 0.500001) + 0.3 * np.log(0.300001 / 0.500001)
    assert found == pytest.approx([expected], abs=1e-12)


def test_a_place_that_was_not_fitted_is_an_error(seen, fitted):
    with pytest.raises(MechprobeError, match="layer 9: directions were fitted at"):
        fitted.at(-1, 9)
    with pytest.raises(MechprobeError, match=r"positions .* were observed"):
        probe.fit_directions(seen, place=(-4, 1))
    with pytest.raises(MechprobeError, match="do not differ at position -1 of layer 0"):
        _ = dataclasses.replace(fitted, layer=0).unit
