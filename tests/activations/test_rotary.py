"""Rows of a batch whose rotary frequencies follow the length of what is read.

Every expectation is transformers' own, one prompt at a time through a graph that has read nothing
before: dynamic scaling remembers the longest pass.
"""

import copy
import dataclasses

import pytest
import torch

from mechprobe.activations.caching import next_token_logits, run_with_cache
from mechprobe.activations.capturing import capture
from mechprobe.activations.interventions import Patch
from mechprobe.activations.points import resolve_points
from mechprobe.activations.prefix import plan_sharing
from mechprobe.activations.rotary import batch_key, longest_row
from mechprobe.generation.base import Sampling
from mechprobe.generation.hf import TransformersEngine
from mechprobe.generation.likelihood import continuation_logprobs

BORDER = 16
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": BORDER,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [2.0 + 1.5 * i for i in range(8)],
}


CASES = {
    "phi3 longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": BORDER}
        | {"max_position_embeddings": 64},
    ),
    "llama longrope": ("llama", {"rope_parameters": LONGROPE, "max_position_embeddings": 64}),
    "llama dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": BORDER}),
    "qwen2 dynamic": ("qwen2", {"rope_parameters": DYNAMIC, "max_position_embeddings": BORDER}),
    "gemma3 dynamic": (
        "gemma3",
        {"rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": DEFAULT}}
        | {"max_position_embeddings": BORDER, "sliding_window": 64},
    ),
    "gpt_oss dynamic": (
        "gpt_oss",
        {"rope_parameters": DYNAMIC, "max_position_embeddings": BORDER, "sliding_window": 6},
    ),
    "llama yarn": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
         | {"original_max_position_embeddings": BORDER}, "max_position_embeddings": 64},
    ),
}  # fmt: skip
FOLLOWING = [name for name in CASES if "yarn" not in name]
LENGTHS = (5, 30, 16, 17, 23, 23, 9, 15, 30)
"""Both sides of the border, on it, and twice the same past it."""


@pytest.fixture(params=CASES)
def model(request, fresh):
    name, changes = CASES[request.param]
    return fresh(name, **changes)


@pytest.fixture
def prompts(prompts_of):
    """With a common beginning of 4 tokens, long enough to be shared."""
    made = prompts_of(LENGTHS)
    head = made.ids[0][:4]
    return dataclasses.replace(made, ids=tuple((*head, *row[4:]) for row in made.ids))


def alone(checkpoint, ids, points=()):
    """Activations and logits of one prompt, by transformers and hooks of PyTorch's."""
    module = copy.deepcopy(checkpoint.module)
    seen = {}
    for point in points:
        target = module.get_submodule(point.module)

        def before(_, args, kwargs, point=point):
            value = args[0] if args else kwargs["hidden_states"]
            seen[point.name] = value[0, -1].clone() * point.scale

        def after(_, args, output, point=point):
            value = output[0] if isinstance(output, tuple) else output
            seen[point.name] = value[0, -1].clone() * point.scale

        if point.side == "in":
            target.register_forward_pre_hook(before, with_kwargs=True)
        else:
            target.register_forward_hook(after)
    with torch.no_grad():
        logits = module(input_ids=torch.tensor([ids])).logits[0]
    return seen, logits


def generated(checkpoint, ids, new):
    module = copy.deepcopy(checkpoint.module)
    row = torch.tensor([ids])
    out = module.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=new, do_sample=False,
        eos_token_id=[127], pad_token_id=0,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


def close(found, expected):
    scale = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) <= 2e-5 * scale


def test_every_point_is_that_of_the_prompt_alone(model, prompts):
    points = resolve_points(model, "*")
    wanted = [alone(model, ids, points) for ids in prompts.ids]
    logits, cache = run_with_cache(model, prompts, "*", batch_size=9)
    for row, (values, expected) in enumerate(wanted):
        assert close(logits[row], expected[-1])
        for name, value in values.items():
            assert close(cache[name][row, 0], value), name


@pytest.mark.parametrize("name", FOLLOWING)
def test_the_frequencies_of_these_models_do_change_at_the_border(name, fresh, prompts):
    """The control: a batch that is not split is wrong by far more than rounding."""
    from mechprobe.activations.batching import pad_batch

    stem, changes = CASES[name]
    checkpoint = fresh(stem, **changes)
    batch = pad_batch(prompts, (0, 1), 0)
    with torch.no_grad():
        mixed = copy.deepcopy(checkpoint.module)(**batch.model_inputs()).logits[0, -1]
    assert float((mixed - alone(checkpoint, prompts.ids[0])[1][-1]).abs().max()) > 0.02


def test_captures_and_their_order(model, prompts, tmp_path):
    found = capture(
        model, prompts, "blocks.1.hook_resid_post", "last", tmp_path, batch_size=4, logits=True
    )
    for row, ids in enumerate(prompts.ids):
        expected = alone(model, ids)[1][-1]
        assert close(torch.as_tensor(found.read("logits", [row])[0, 0]), expected)


def test_a_pass_leaves_no_frequencies_behind(model, prompts, prompts_of):
    """On the border itself transformers keeps what a longer pass left."""
    on_it = prompts_of((BORDER,), seed=3)
    expected = alone(model, on_it.ids[0])[1][-1]
    next_token_logits(model, prompts.select([1]))
    assert close(next_token_logits(model, on_it)[0], expected)


def test_continuations_are_those_of_the_row_alone(model, prompts):
    own = [[(7, 8), (9,) * 12], [(5,)], [(6, 7, 8)], [(4,)], [(9, 9)], [(3,)], [(8,) * 9], [(7, 6)],
           [(5, 5, 5)]]  # fmt: skip
    found = continuation_logprobs(model, prompts.ids, own, batch_size=16)
    for ids, each, values in zip(prompts.ids, own, found, strict=True):
        for tokens, value in zip(each, values, strict=True):
            row = alone(model, [*ids, *tokens][:-1])[1].double().log_softmax(-1)
            places = range(len(ids) - 1, len(ids) + len(tokens) - 1)
            assert value == pytest.approx(
                sum(float(row[place, t]) for place, t in zip(places, tokens, strict=True)), abs=2e-4
            )


NEW = 14


def test_generation_is_transformers_own_across_the_border(model, prompts):
    expected = [generated(model, ids, NEW) for ids in prompts.ids]
    assert len({tuple(row) for row in expected}) > 3
    for size in (1, 9):
        with TransformersEngine(model, batch_size=size) as engine:
            engine.stop_ids = frozenset([127])
            found = engine.generate(prompts.ids, max_new_tokens=NEW)
        assert [list(answer.ids) for answer in found] == [
            row[:-1] if row[-1] == 127 else row for row in expected
        ]


def test_samples_are_those_of_the_prompt_alone(model, prompts):
    drawn = Sampling(temperature=1.3, samples=3, seed=5)
    alone = []
    for ids in prompts.ids:
        twin = dataclasses.replace(model, module=copy.deepcopy(model.module))
        alone += TransformersEngine(twin, batch_size=1).generate(
            [ids], max_new_tokens=NEW, sampling=drawn
        )
    found = TransformersEngine(model, batch_size=4).generate(
        prompts.ids, max_new_tokens=NEW, sampling=drawn
    )
    assert [answer.ids for answer in found] == [answer.ids for answer in alone]


@pytest.mark.parametrize("name", ["phi3 longrope", "llama longrope"])
def test_a_patch_stays_at_its_token_when_the_prompt_is_read_again(name, fresh, prompts):
    stem, changes = CASES[name]
    checkpoint = fresh(stem, **changes)
    values = 3 * torch.randn(2, 64, generator=torch.Generator().manual_seed(2))
    patch = Patch("blocks.1.hook_resid_pre", values, positions=(-3, -1))
    expected = []
    for ids in prompts.ids:
        twin = dataclasses.replace(checkpoint, module=copy.deepcopy(checkpoint.module))

        length = len(ids)

        def put(_, args, length=length):
            if args[0].shape[1] >= length:
                args[0][:, [length - 3, length - 1]] = values

        twin.module.model.layers[1].register_forward_pre_hook(put)
        expected.append(generated(twin, ids, NEW))
    with TransformersEngine(checkpoint, interventions=[patch]) as engine:
        engine.stop_ids = frozenset([127])
        found = engine.generate(prompts.ids, max_new_tokens=NEW)
    assert [list(answer.ids) for answer in found] == [
        row[:-1] if row[-1] == 127 else row for row in expected
    ]


def test_a_prefix_is_shared_where_no_frequency_changes(fresh, prompts_of, prompts):
    stem, changes = CASES["llama dynamic"]
    config = fresh(stem, **changes).module.config
    assert "rotary frequencies change" in plan_sharing(config, prompts, 1).note
    assert plan_sharing(config, prompts.select([0, 2, 6, 7]), 1).tokens == 4


def test_keys():
    class Config:
        max_position_embeddings = 64
        rope_parameters = LONGROPE

        def get_text_config(self, decoder=False):
            return self

    config = Config()
    assert batch_key(config, 16) == batch_key(config, 3) != batch_key(config, 17)
    # the last token is never read: 12 and 5 new ones end at 16
    assert batch_key(config, 12, 5) == batch_key(config, 12)
    assert batch_key(config, 12, 6) != batch_key(config, 11, 6) == batch_key(config, 11)
    assert batch_key(config, 17, 30) == batch_key(config, 60, 1)
    assert longest_row(config) == 64
    config.rope_parameters, config.max_position_embeddings = DYNAMIC, 16
    assert batch_key(config, 16) == batch_key(config, 3) != batch_key(config, 17)
    assert batch_key(config, 18) != batch_key(config, 17)
    assert longest_row(config) == 64
