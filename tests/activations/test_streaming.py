import dataclasses
from contextlib import closing

import numpy as np
import pytest
import torch

from mechprobe.activations.forward import recorder
from mechprobe.activations.interventions import Patch, applied
from mechprobe.activations.points import resolve_points
from mechprobe.activations.prefix import Sharing
from mechprobe.activations.streaming import as_points, sharing_for, stream
from mechprobe.errors import HookNameError, NumericsError

LENGTHS = (12, 15, 9, 12, 20, 10)
POINTS = "blocks.*.hook_resid_*"


@pytest.fixture
def prompts(prompts_of):
    whole = prompts_of(LENGTHS, seed=3)
    head = whole.ids[0][:6]
    return dataclasses.replace(whole, ids=tuple((*head, *row[6:]) for row in whole.ids))


def gathered(passing, n):
    """All rows of a pass in the prompts' order: values by name, and logits."""
    values, logits, order = {}, [None] * n, []
    for found in passing:
        order += found.indices
        for row, index in enumerate(found.indices):
            logits[index] = None if found.logits is None else found.logits[row]
            for name, value in found.values.items():
                values.setdefault(name, [None] * n)[index] = value[row]
    assert sorted(order) == list(range(n))
    return {name: torch.stack(rows) for name, rows in values.items()}, logits


def hooks_in(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_equals_transformers_hidden_states_and_logits(tiny, prompts):
    checkpoint = tiny("olmo2")
    values, logits = gathered(stream(checkpoint, prompts, POINTS, (-3, -1), logits=True), 6)
    for index, ids in enumerate(prompts.ids):
        out = checkpoint.module(input_ids=torch.tensor([ids]), output_hidden_states=True)
        torch.testing.assert_close(logits[index], out.logits[0, -1], rtol=1e-5, atol=1e-5)
        for layer in range(3):
            got = values[f"blocks.{layer}.hook_resid_pre"][index]
            torch.testing.assert_close(
                got, out.hidden_states[layer][0, [-3, -1]], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_and_sharing_do_not_change_the_result(tiny, prompts, share, batch_size):
    want, _ = gathered(stream(tiny("phi3"), prompts, POINTS, batch_size=1, share_prefix=False), 6)
    got, _ = gathered(
        stream(tiny("phi3"), prompts, POINTS, batch_size=batch_size, share_prefix=share), 6
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_nothing_beyond_the_last_point_is_computed(tiny, prompts):
    checkpoint = tiny("llama")
    ran = []
    model = checkpoint.module
    watched = {
        "layer 0": model.model.layers[0],
        "mlp 1": model.model.layers[1].mlp,
        "layer 2": model.model.layers[2],
        "norm": model.model.norm,
        "head": model.lm_head,
    }
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in watched.items()
    ]
    list(stream(checkpoint, prompts, "blocks.1.hook_attn_out", share_prefix=False))
    assert ran == ["layer 0"]
    ran.clear()
    list(stream(checkpoint, prompts, "blocks.*.hook_resid_post", share_prefix=False))
    assert ran == ["layer 0", "mlp 1", "layer 2"]
    for handle in handles:
        handle.remove()


def test_logits_are_computed_for_the_last_position_alone(tiny, prompts):
    checkpoint = tiny("gemma4")
    seen = []
    handle = checkpoint.module.lm_head.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[1])
    )
    values, _ = gathered(stream(checkpoint, prompts, POINTS, (-4, -1), logits=True), 6)
    handle.remove()
    assert set(seen) == {1}
    assert values["blocks.2.hook_resid_post"].shape == (6, 2, 64)


def test_all_positions_begin_with_padding_and_share_nothing(tiny, prompts):
    checkpoint = tiny("mistral")
    assert sharing_for(checkpoint, prompts, None) == Sharing(0)
    with recorder(checkpoint, as_points(checkpoint, "ln_final.hook_out"), "all") as record:
        want = []
        for ids in prompts.ids:
            record.forward(input_ids=torch.tensor([ids]))
            want.append(record.values["ln_final.hook_out"][0])
    for found in stream(checkpoint, prompts, "ln_final.hook_out", "all", batch_size=3):
        for row, index in enumerate(found.indices):
            got = found.values["ln_final.hook_out"][row, -len(want[index]) :]
            torch.testing.assert_close(got, want[index], rtol=1e-5, atol=1e-5)


def test_a_patch_finds_its_prompts_and_is_no_part_of_their_prefix(tiny, prompts):
    checkpoint = tiny("qwen3")
    values = torch.randn(6, 2, 64, generator=torch.Generator().manual_seed(2))
    patch = Patch("blocks.1.hook_resid_pre", values, (-3, -1))
    name = "blocks.1.hook_resid_mid"
    assert sharing_for(checkpoint, prompts, (-1,)).tokens > 0
    shared = sharing_for(checkpoint, prompts, (-1,), [patch]).tokens
    assert shared == sharing_for(checkpoint, prompts, (-3,)).tokens
    got, _ = gathered(stream(checkpoint, prompts, name, batch_size=2, interventions=[patch]), 6)
    apart = stream(checkpoint, prompts, name, share_prefix=False, interventions=[patch])
    torch.testing.assert_close(got, gathered(apart, 6)[0], rtol=1e-5, atol=1e-5)
    with applied(checkpoint, [patch]):
        assert sharing_for(checkpoint, prompts, (-1,)).tokens == shared
        outer, _ = gathered(stream(checkpoint, prompts, name, batch_size=4), 6)
    torch.testing.assert_close(got, outer, rtol=1e-5, atol=1e-5)
    plain, _ = gathered(stream(checkpoint, prompts, "blocks.1.hook_attn_out"), 6)
    patched, _ = gathered(
        stream(checkpoint, prompts, "blocks.1.hook_attn_out", interventions=[patch]), 6
    )
    added = patched["blocks.1.hook_attn_out"]
    torch.testing.assert_close(got[name], values[:, 1:] + added, rtol=1e-5, atol=1e-5)
    assert float((added - plain["blocks.1.hook_attn_out"]).abs().max()) > 1e-2


def test_out_of_memory_halves_the_batch_and_goes_on(tiny, prompts):
    checkpoint = tiny("llama")
    sizes = []

    def only_two_fit(_, args, kwargs):
        rows = kwargs["input_ids"].shape[0]
        sizes.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    want, _ = gathered(stream(checkpoint, prompts, POINTS), 6)
    handle = checkpoint.module.register_forward_pre_hook(only_two_fit, with_kwargs=True)
    got, _ = gathered(stream(checkpoint, prompts, POINTS, batch_size=5), 6)
    handle.remove()
    assert sizes == [1, 5, 2, 2, 1, 1]  # the prefix; 5 fails; 2 + 2 + 1; and the last prompt
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_cpu_allocator_counts_as_out_of_memory_and_other_errors_do_not(tiny, prompts):
    checkpoint = tiny("llama")
    message = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"

    def fail(_, args, kwargs):
        raise RuntimeError(message)

    handle = checkpoint.module.model.layers[0].register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with pytest.raises(NumericsError, match=r"out of memory with prompt 4 alone \(20 tokens\)"):
            list(stream(checkpoint, prompts, POINTS, share_prefix=False))
        message = "size mismatch"
        with pytest.raises(RuntimeError, match="size mismatch"):
            list(stream(checkpoint, prompts, POINTS, share_prefix=False))
    finally:
        handle.remove()


def test_hooks_are_gone_after_the_end_a_break_and_an_error(fresh, prompts):
    checkpoint = fresh("llama")
    before = hooks_in(checkpoint.module)
    list(stream(checkpoint, prompts, POINTS))
    assert hooks_in(checkpoint.module) == before
    with closing(stream(checkpoint, prompts, POINTS, batch_size=2)) as passing:
        next(passing)
        assert hooks_in(checkpoint.module) > before
    assert hooks_in(checkpoint.module) == before
    checkpoint.module.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"blocks\.1\.hook_resid_post \(layer 1\)"):
        list(stream(checkpoint, prompts, POINTS))
    assert hooks_in(checkpoint.module) == before


def test_nan_in_the_logits_alone(fresh, prompts):
    checkpoint = fresh("llama")
    checkpoint.module.lm_head.weight.data[7, 0] = float("inf")
    list(stream(checkpoint, prompts, POINTS))
    with pytest.raises(NumericsError, match="llama: NaN or infinity in the logits"):
        list(stream(checkpoint, prompts, POINTS, logits=True))


def test_what_cannot_be_asked_for(tiny, prompts):
    checkpoint = tiny("llama")
    with pytest.raises(HookNameError, match=r"position -10 lies before .* prompt 2, which has 9"):
        list(stream(checkpoint, prompts, POINTS, (-10, -1)))
    with pytest.raises(HookNameError, match="hook_resid_post"):
        list(stream(checkpoint, prompts, "blocks.0.hook_resid_pots"))
    point = resolve_points(checkpoint, "blocks.0.hook_resid_pre")
    with pytest.raises(HookNameError, match="twice"):
        as_points(checkpoint, point + point)


def test_values_are_the_callers_to_keep(tiny, prompts):
    """Views would pin whole activations; buffers would be overwritten by the next batch."""
    kept = list(stream(tiny("llama"), prompts, POINTS, batch_size=1))
    copies = [
        {name: value.clone() for name, value in found.values.items()}
        for found in stream(tiny("llama"), prompts, POINTS, batch_size=1)
    ]
    for found, copy in zip(kept, copies, strict=True):
        for name, value in found.values.items():
            assert torch.equal(value, copy[name])
            assert value.untyped_storage().nbytes() == value.numel() * 4
            assert np.isfinite(value.numpy()).all()
