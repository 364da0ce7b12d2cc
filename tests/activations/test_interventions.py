"""Interventions against other ways to the same end: edited weights, inputs and prompts."""

import pytest
import torch

from mechprobe.activations import Ablate, Add, Patch, applied, next_token_logits, prompt_rows
from mechprobe.activations import run_with_cache as run
from mechprobe.activations.forward import recorder
from mechprobe.activations.interventions import active
from mechprobe.activations.points import resolve_points
from mechprobe.errors import HookNameError, SpecError

POST_NORMS = {"gemma2", "gemma3", "gemma4", "olmo2"}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def direction(seed=3):
    return torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 2.0


def orthogonalize(model, row, unit):
    """Edit every matrix and bias that writes to the stream: W ← (I - r̂r̂ᵀ) W, in float64."""

    def project(tensor, axis):
        moved = tensor.double().movedim(axis, -1)
        moved = moved - (moved @ unit).unsqueeze(-1) * unit
        tensor.copy_(moved.movedim(-1, axis))

    unit = unit.double()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)  # untie
    project(model.get_input_embeddings().weight, 1)
    for path, tensor in model.named_parameters():
        parts = path.split(".")
        if row.name == "gpt2" and parts[1] == "wpe":
            project(tensor, 1)
        elif f"{row.attn}.{row.attn_output}" in path or f"{row.mlp}.{row.down_projection}" in path:
            # nn.Linear is (out, in), GPT-2's Conv1D (in, out); a bias is (out,)
            project(tensor, 1 if row.name == "gpt2" and tensor.dim() == 2 else 0)
        elif "experts.down_proj" in path:
            # (expert, out, in) in Qwen3-MoE; (expert, in, out) and a bias (expert, out) in gpt-oss
            project(tensor, 1 if row.name == "qwen3_moe" else tensor.dim() - 1)


def test_ablation_equals_orthogonalized_weights(arch, tiny, fresh, prompts_of):
    """The equivalence of Arditi et al. 2024, section 4: same logits, by weights alone."""
    if arch in POST_NORMS:
        pytest.skip("a norm follows the projection; test_adapters.py compares with TransformerLens")
    prompts, remove = prompts_of((7, 7)), Ablate(direction())
    edited = fresh(arch)
    orthogonalize(edited.module, edited.architecture, remove.unit)
    ids = torch.tensor(prompts.ids)
    found = next_token_logits(tiny(arch), prompts, interventions=[remove])
    torch.testing.assert_close(found, edited.module(input_ids=ids).logits[:, -1], **CLOSE)
    plain = next_token_logits(tiny(arch), prompts)
    assert float((found - plain).abs().max()) > 0.1


def test_ablation_leaves_nothing_along_the_direction(arch, tiny, prompts_of):
    remove = Ablate(direction())
    prompts = prompts_of((8, 5))
    names = ["blocks.*.hook_resid_*", "blocks.*.hook_*_out"]
    _, cache = run(tiny(arch), prompts, names, positions=range(-5, 0), interventions=[remove])
    _, plain = run(tiny(arch), prompts, names, positions=range(-5, 0))
    for name, x in cache.items():
        before = (plain[name] @ remove.unit).abs().max()
        after = (x @ remove.unit).abs().max()
        assert float(before) > 1e-2, name
        assert float(after) < 2e-6 * float(plain[name].norm(dim=-1).max()), name


def test_ablation_in_some_layers_leaves_the_others(tiny, prompts_of):
    remove = Ablate(direction(), layers=[1])
    names = "blocks.*.hook_attn_out"
    _, cache = run(tiny("llama"), prompts_of((6,)), names, interventions=[remove])
    along = [float((cache[f"blocks.{i}.hook_attn_out"] @ remove.unit).abs()) for i in range(3)]
    assert along[1] < 1e-5 < 1e-3 < min(along[0], along[2])


def test_addition_shifts_the_block_input_by_exactly_that(arch, tiny, prompts_of):
    prompts, vector = prompts_of((6, 6)), direction()
    name = "blocks.1.hook_resid_pre"
    _, plain = run(tiny(arch), prompts, name, positions=range(-6, 0))
    _, moved = run(
        tiny(arch), prompts, name, positions=range(-6, 0), interventions=[Add(vector, 1, -1.5)]
    )
    assert torch.equal(moved[name], plain[name] + (-1.5 * vector.double()).float())


def test_addition_at_the_first_block_equals_moved_embeddings(tiny, prompts_of):
    checkpoint, prompts, vector = tiny("qwen3"), prompts_of((6, 6)), direction()
    embedded = checkpoint.module.get_input_embeddings()(torch.tensor(prompts.ids))
    wanted = checkpoint.module(inputs_embeds=embedded + 0.5 * vector).logits[:, -1]
    found = next_token_logits(checkpoint, prompts, interventions=[Add(vector, 0, 0.5)])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["hook_resid_pre", "hook_resid_mid", "hook_resid_post"])
def test_patching_the_whole_stream_gives_the_other_prompts_answer(
    arch, fresh, tiny, kind, prompts_of
):
    """From a patched stream on, nothing depends on the prompt it was patched into."""
    checkpoint = tiny(arch)
    if arch == "gemma4":  # its later blocks read token ids and earlier keys besides the stream
        checkpoint = fresh(arch, num_kv_shared_layers=0, hidden_size_per_layer_input=0)
    name = f"blocks.1.{kind}"
    if kind == "hook_resid_mid" and checkpoint.architecture.parallel:
        with pytest.raises(HookNameError, match="parallel"):
            run(checkpoint, prompts_of((7,)), "*", interventions=[Patch(name, torch.ones(1, 64))])
        return
    source, target = prompts_of((7,), seed=1), prompts_of((7,), seed=2)
    wanted, cache = run(checkpoint, source, name, positions="all")
    patch = Patch(name, cache[name][0], cache.positions)
    found, seen = run(checkpoint, target, name, positions="all", interventions=[patch])
    assert torch.equal(seen[name], cache[name])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert float((next_token_logits(checkpoint, target) - wanted).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"])
@pytest.mark.parametrize("model", ["llama", "granite", "gemma2", "gpt_oss", "phi"])
def test_patching_what_is_added_changes_the_sum_by_the_difference(tiny, model, name, prompts_of):
    checkpoint, prompts = tiny(model), prompts_of((6,))
    post, values = "blocks.1.hook_resid_post", torch.randn(2, 64)
    names = [name, post, "blocks.1.hook_mlp_out"]
    _, plain = run(checkpoint, prompts, names, positions=[-3, -2])
    patch = Patch(name, values, (-3, -2))
    _, found = run(checkpoint, prompts, names, positions=[-3, -2], interventions=[patch])
    torch.testing.assert_close(found[name][0], values, rtol=1e-6, atol=1e-6)
    change = sum(found[n] - plain[n] for n in {name, "blocks.1.hook_mlp_out"})
    torch.testing.assert_close(found[post], plain[post] + change, rtol=1e-5, atol=1e-5)


def test_patching_some_neurons_leaves_the_others(tiny, prompts_of):
    name, dims = "blocks.2.mlp.hook_post", (5, 90, 17)
    patch = Patch(name, torch.tensor([[1.0, 2.0, 3.0]]), dims=dims)
    prompts = prompts_of((6, 4))
    _, plain = run(tiny("llama"), prompts, name)
    _, found = run(tiny("llama"), prompts, name, interventions=[patch])
    wanted = plain[name].clone()
    wanted[:, 0, list(dims)] = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(found[name], wanted, rtol=1e-6, atol=1e-6)


def test_values_per_prompt_find_their_rows(tiny, prompts_of):
    """Batches are sorted by length; every prompt must get its own values all the same."""
    checkpoint, prompts = tiny("qwen2"), prompts_of((4, 9, 6, 9, 5))
    name = "blocks.1.hook_resid_pre"
    values = torch.randn(5, 2, 64)
    patch = Patch(name, values, (-2, -1))
    logits, cache = run(
        checkpoint, prompts, name, positions=[-2, -1], batch_size=2, interventions=[patch]
    )
    assert torch.equal(cache[name], values)
    for row in range(5):
        alone = Patch(name, values[row], (-2, -1))
        one = next_token_logits(checkpoint, prompts.select([row]), interventions=[alone])
        torch.testing.assert_close(logits[row], one[0], rtol=1e-5, atol=1e-5)


def test_values_per_prompt_are_never_guessed(tiny, prompts_of):
    checkpoint, ids = tiny("qwen2"), torch.tensor(prompts_of((6, 6)).ids)
    patch = Patch("blocks.0.hook_resid_pre", torch.randn(4, 1, 64))
    with applied(checkpoint, [patch]):
        with pytest.raises(SpecError, match="nobody said which prompts"):
            checkpoint.module(input_ids=ids)
        with prompt_rows(checkpoint, [3, 0]):
            checkpoint.module(input_ids=ids)
        with (
            prompt_rows(checkpoint, [3, 4]),
            pytest.raises(SpecError, match="for 4 prompts; prompt 4 runs"),
        ):
            checkpoint.module(input_ids=ids)


def test_recorders_see_what_interventions_leave_whichever_came_first(tiny, prompts_of):
    checkpoint, ids = tiny("llama"), torch.tensor(prompts_of((6,)).ids)
    points = resolve_points(checkpoint, "blocks.1.hook_resid_*")
    values = torch.ones(1, 64)
    patches = [Patch(point.name, values) for point in points]
    with recorder(checkpoint, points) as record, applied(checkpoint, patches):
        record.forward(input_ids=ids)
        first = dict(record.values)
    with applied(checkpoint, patches), recorder(checkpoint, points) as record:
        record.forward(input_ids=ids)
        second = dict(record.values)
    for found in (first, second):
        assert all(torch.equal(x[0], values) for x in found.values())


def test_contexts_nest_in_order_and_leave_in_any(tiny, prompts_of):
    """Ablate then add keeps the addition; add then ablate does not."""
    checkpoint, prompts = tiny("llama"), prompts_of((6,))
    vector, name = direction(), "blocks.1.hook_resid_pre"
    remove, add = Ablate(vector), Add(vector, layer=1)

    def along(interventions=()):
        _, cache = run(checkpoint, prompts, name, interventions=interventions)
        return float((cache[name] @ remove.unit).squeeze())

    length = float(vector.norm())
    assert along([remove, add]) == pytest.approx(length, rel=1e-5)
    assert along([add, remove]) == pytest.approx(0.0, abs=1e-5)
    with applied(checkpoint, [remove]), applied(checkpoint, [add]):
        assert active(checkpoint) == (remove, add)
        assert along() == pytest.approx(length, rel=1e-5)
        assert along([remove]) == pytest.approx(0.0, abs=1e-5)
    with applied(checkpoint, [add]), applied(checkpoint, [remove]):
        assert along() == pytest.approx(0.0, abs=1e-5)
    outer, inner = applied(checkpoint, [remove]), applied(checkpoint, [add])
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert active(checkpoint) == (add,)
    inner.__exit__(None, None, None)
    assert active(checkpoint) == ()


def test_only_our_hooks_are_removed(tiny, prompts_of):
    checkpoint, ids = tiny("llama"), torch.tensor(prompts_of((6,)).ids)
    block, norm = checkpoint.module.model.layers[1], checkpoint.module.model.norm
    seen = []
    mine = [
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        norm.register_forward_hook(lambda module, args, output: output * 2.0),
    ]
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in checkpoint.module.modules()]
    before = [(dict(a), dict(b)) for a, b in hooks]
    try:
        doubled = checkpoint.module(input_ids=ids).logits
        with pytest.raises(ZeroDivisionError), applied(checkpoint, [Add(direction(), 1)]):
            seen.clear()
            checkpoint.module(input_ids=ids)
            raise ZeroDivisionError
        assert len(seen) == 1
        assert [(dict(a), dict(b)) for a, b in hooks] == before
        assert torch.equal(checkpoint.module(input_ids=ids).logits, doubled)
    finally:
        for handle in mine:
            handle.remove()


def greedy(checkpoint, prompts, steps, interventions):
    """Greedy decoding without a cache, one whole forward per token."""
    rows = [list(ids) for ids in prompts.ids]
    for _ in range(steps):
        batch = type(prompts)(tuple(map(tuple, rows)), prompts.texts, prompts.pieces, 1, "raw")
        logits = next_token_logits(checkpoint, batch, interventions=interventions)
        rows = [[*row, int(token)] for row, token in zip(rows, logits.argmax(-1), strict=True)]
    return [row[len(ids) :] for row, ids in zip(rows, prompts.ids, strict=True)]


def generate(checkpoint, prompts, steps):
    width = max(map(len, prompts.ids))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in prompts.ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts.ids])
    out = checkpoint.module.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=steps, min_new_tokens=steps,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out[:, width:].tolist()


@pytest.mark.parametrize("model", ["llama", "gpt2", "gemma2", "gemma4", "olmo2", "phi", "gpt_oss"])
def test_generation_with_a_key_value_cache_is_intervened_at_every_step(tiny, model, prompts_of):
    checkpoint, prompts = tiny(model), prompts_of((6, 9))
    interventions = [Ablate(direction()), Add(direction(5), layer=1)]
    plain = generate(checkpoint, prompts, 5)
    with applied(checkpoint, interventions):
        found = generate(checkpoint, prompts, 5)
    assert found == greedy(checkpoint, prompts, 5, interventions)
    assert found != plain
    assert generate(checkpoint, prompts, 5) == plain


@pytest.mark.parametrize("model", ["llama", "gemma4"])
def test_a_patch_acts_on_the_prompt_and_not_on_what_is_generated(tiny, model, prompts_of):
    """Another token's embedding at the prompt's end gives the other prompt's continuation."""
    checkpoint, prompts = tiny(model), prompts_of((6, 9))
    other = tuple((*ids[:-2], 40, ids[-1]) for ids in prompts.ids)
    others = type(prompts)(other, prompts.texts, prompts.pieces, 1, "raw")
    table = checkpoint.module.get_input_embeddings()
    name = "blocks.0.hook_resid_pre"
    patches = [Patch(name, table(torch.tensor([40])), (-2,))]
    if model == "gemma4":  # which token it is also enters every block through its own table
        _, cache = run(checkpoint, others, "blocks.*.hook_resid_post", positions=[-2])
        values = torch.cat(list(cache.values()), dim=1)
        patches += [
            Patch(f"blocks.{i}.hook_resid_post", values[:, i : i + 1], (-2,)) for i in range(3)
        ]
    with applied(checkpoint, patches), prompt_rows(checkpoint, [0, 1]):
        found = generate(checkpoint, prompts, 5)
    assert found == generate(checkpoint, others, 5)
    assert found != generate(checkpoint, prompts, 5)


def test_half_precision_is_ablated_to_its_own_rounding(fresh, prompts_of):
    checkpoint, remove = fresh("llama"), Ablate(direction())
    checkpoint.module.to(torch.bfloat16)
    name = "blocks.2.hook_attn_out"
    _, cache = run(checkpoint, prompts_of((6, 4)), name, interventions=[remove])
    x = cache[name].double()
    rounding = torch.finfo(torch.bfloat16).eps / 2 * x.norm(dim=-1)
    assert bool(((x @ remove.unit.double()).abs() <= rounding).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablate(torch.ones(63)), "Ablate.direction has 63 dimensions; .* has 64"),
        (lambda: Ablate(torch.zeros(64)), "Ablate.direction has length 0.0"),
        (lambda: Ablate(torch.full((64,), float("nan"))), "Ablate.direction has length nan"),
        (lambda: Ablate(torch.ones(2, 64)), r"Ablate.direction has shape \(2, 64\)"),
        (lambda: Ablate(torch.ones(64, dtype=torch.long)), "type torch.int64"),
        (lambda: Ablate(torch.ones(64), layers=[0, 3]), "Ablate.layers: no block 3"),
        (lambda: Ablate(torch.ones(64), layers=[]), "Ablate.layers is empty"),
        (lambda: Add(torch.ones(64), layer=-1), "Add.layer: no block -1"),
        (lambda: Add(torch.ones(64), layer=0, coeff=float("inf")), "Add.coeff is inf"),
        (lambda: Patch("blocks.0.hook_resid_pre", torch.ones(1, 60)), "have width 60; .* 64"),
        (lambda: Patch("blocks.0.hook_resid_pre", torch.ones(2, 64)), "1 positions need"),
        (lambda: Patch("hook_embed", torch.ones(1, 64), (0,)), r"Patch.positions \[0\]"),
        (lambda: Patch("hook_embed", torch.ones(1, 64), ()), r"Patch.positions \[\]"),
        (lambda: Patch("hook_embed", torch.ones(1, 2), dims=(64, 0)), "no dimension 64"),
        (lambda: Patch("hook_embed", torch.ones(1, 2), dims=(1, 1)), "each once"),
        (lambda: Patch("hook_embed", torch.full((1, 64), float("inf"))), "finite"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(tiny, make, message):
    with pytest.raises(SpecError, match=message), applied(tiny("llama"), [make()]):
        pass
    assert active(tiny("llama")) == ()


def test_a_patch_of_an_unknown_point_or_a_short_prompt(tiny, prompts_of):
    with (
        pytest.raises(HookNameError, match="near"),
        applied(tiny("llama"), [Patch("blocks.0.hook_resid_pra", torch.ones(1, 64))]),
    ):
        pass
    deep = Patch("blocks.0.hook_resid_pre", torch.ones(2, 64), (-5, -1))
    with pytest.raises(SpecError, match=r"reach 5 tokens back; the shortest prompt .* has 4"):
        next_token_logits(tiny("llama"), prompts_of((9, 4)), interventions=[deep])
