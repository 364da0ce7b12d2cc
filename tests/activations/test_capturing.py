import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mechprobe.activations import ActivationStore, capture, run_with_cache
from mechprobe.activations.interventions import Ablate, Add, applied
from mechprobe.errors import HookNameError, NumericsError, StoreError

LENGTHS = (11, 14, 9, 12, 17, 10, 12, 9, 13, 16)
POINTS = "blocks.*.hook_resid_*"


@pytest.fixture
def prompts(prompts_of):
    whole = prompts_of(LENGTHS, seed=4)
    head = whole.ids[0][:6]
    return dataclasses.replace(whole, ids=tuple((*head, *row[6:]) for row in whole.ids))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Forwards:
    """Counts forward passes of a model."""

    def __init__(self, checkpoint):
        self.count = 0
        self.handle = checkpoint.module.register_forward_pre_hook(self._seen)

    def _seen(self, *_):
        self.count += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


def test_equals_hidden_states_of_each_prompt_alone(tiny, prompts, tmp_path):
    checkpoint = tiny("llama")
    store = capture(
        checkpoint, prompts, POINTS, (-2, -1), tmp_path / "s", batch_size=3, shard_rows=4
    )
    assert store.complete and store.plan.n_shards == 3 and store.plan.prefix == 6
    assert store.notes == ()
    for index, ids in enumerate(prompts.ids):
        hidden = checkpoint.module(
            input_ids=torch.tensor([ids]), output_hidden_states=True
        ).hidden_states
        for layer in range(3):
            got = store.read(f"blocks.{layer}.hook_resid_pre", [index])[0]
            np.testing.assert_allclose(got, hidden[layer][0, -2:], rtol=1e-5, atol=1e-5)


def test_equals_run_with_cache(arch, tiny, prompts, tmp_path):
    store = capture(tiny(arch), prompts, "*", "last", tmp_path / "s", batch_size=4)
    _, cache = run_with_cache(tiny(arch), prompts, "*", batch_size=3)
    assert list(store.names) == list(cache)
    for name in store.names:
        assert store[name].shape == cache[name].shape
        scale = max(1.0, float(cache[name].abs().max()))
        np.testing.assert_allclose(store[name] / scale, cache[name] / scale, atol=1e-5)


def test_a_finished_store_costs_no_forward_pass(tiny, prompts, tmp_path):
    first = capture(tiny("llama"), prompts, POINTS, path=tmp_path / "s")
    with Forwards(tiny("llama")) as seen:
        again = capture(tiny("llama"), prompts, POINTS, path=tmp_path / "s")
    assert seen.count == 0
    assert again.digest == first.digest


def test_lost_shards_come_back_to_the_same_bytes_and_only_they_are_computed(
    tiny, prompts, tmp_path
):
    def run():
        return capture(
            tiny("qwen2"), prompts, POINTS, path=tmp_path / "s", batch_size=2, shard_rows=3
        )

    store = run()
    whole = files(store.path)
    assert len(whole) == 5
    for lost in ([1], [0, 3], [0, 1, 2, 3]):
        for shard in lost:
            store.shard_path(shard).unlink()
        (store.path / f".shard-{lost[0]:05d}.h5.part").write_bytes(b"half")  # what a kill leaves
        with Forwards(tiny("qwen2")) as seen:
            run()
        assert files(store.path) == whole
        batches = sum(-(-len(store.plan.shard_prompts(shard)) // 2) for shard in lost)
        assert seen.count == batches + 1  # and the prefix


def test_progress_counts_prompts_from_where_it_stands(tiny, prompts, tmp_path):
    told = []

    def run():
        told.clear()
        return capture(
            tiny("llama"),
            prompts,
            POINTS,
            path=tmp_path / "s",
            batch_size=2,
            shard_rows=4,
            progress=lambda done, total: told.append((done, total)),
        )

    store = run()
    assert told == [(n, 10) for n in (0, 2, 4, 6, 8, 10)]
    store.shard_path(1).unlink()
    run()
    assert told == [(6, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positions": (-2, -1)}, "positions"),
        ({"points": "blocks.0.*"}, "points"),
        ({"dtype": "float16"}, "dtype"),
        ({"batch_size": 3}, "batch_size"),
        ({"share_prefix": False}, "prefix"),
        ({"interventions": [Add(torch.ones(64), 1)]}, "interventions"),
    ],
)
def test_another_capture_is_not_mixed_in(tiny, prompts, tmp_path, change, named):
    settings = {"points": POINTS, "path": tmp_path / "s", "batch_size": 4, "shard_rows": 8}
    capture(tiny("llama"), prompts, **settings)
    with pytest.raises(StoreError, match=rf"another capture \(its .*{named}.* differ\)"):
        capture(tiny("llama"), prompts, **(settings | change))


def test_other_weights_and_other_prompts_are_not_mixed_in(tiny, prompts, tmp_path):
    capture(tiny("llama"), prompts, POINTS, path=tmp_path / "s")
    other = dataclasses.replace(tiny("llama"), digest="1" * 64)
    with pytest.raises(StoreError, match=r"its model differ"):
        capture(other, prompts, POINTS, path=tmp_path / "s")
    with pytest.raises(StoreError, match=r"its prompts, order differ"):
        capture(tiny("llama"), prompts.select(range(9, -1, -1)), POINTS, path=tmp_path / "s")


def test_interventions_inside_and_outside_are_seen_and_told_apart(tiny, prompts, tmp_path):
    checkpoint = tiny("llama")
    ablate = Ablate(torch.arange(64.0))
    inner = capture(checkpoint, prompts, POINTS, path=tmp_path / "i", interventions=[ablate])
    with applied(checkpoint, [ablate]):
        outer = capture(checkpoint, prompts, POINTS, path=tmp_path / "o")
    assert files(inner.path) == files(outer.path)
    assert inner.plan.interventions and inner.plan.prefix == 6
    _, want = run_with_cache(checkpoint, prompts, POINTS, interventions=[ablate])
    unit = np.arange(64.0) / np.linalg.norm(np.arange(64.0))
    plain = capture(checkpoint, prompts, POINTS, path=tmp_path / "p")
    name = "blocks.2.hook_resid_post"
    np.testing.assert_allclose(inner[name], want[name], rtol=1e-5, atol=1e-5)
    assert np.abs(inner[name] @ unit).max() < 1e-4 < 0.1 < np.abs(plain[name] @ unit).max()
    with pytest.raises(StoreError, match=r"its interventions differ"):
        capture(
            checkpoint,
            prompts,
            POINTS,
            path=tmp_path / "i",
            interventions=[Ablate(torch.arange(64.0) + 1)],
        )


def test_float16_overflow_names_the_hook_and_keeps_what_was_done(fresh, prompts, tmp_path):
    checkpoint = fresh("llama")
    checkpoint.module.model.layers[1].mlp.down_proj.weight.data *= 1e6
    with pytest.raises(NumericsError, match=r"blocks\.1\.hook_resid_post: .* does not fit float16"):
        capture(checkpoint, prompts, POINTS, path=tmp_path / "s", dtype="float16")
    store = capture(checkpoint, prompts, "blocks.0.*", path=tmp_path / "t", dtype="float16")
    exact = capture(checkpoint, prompts, "blocks.0.*", path=tmp_path / "u")
    for name in store.names:
        np.testing.assert_array_equal(store[name], exact[name].astype(np.float16))


def test_out_of_memory_is_recorded(tiny, prompts, tmp_path):
    checkpoint = tiny("llama")
    calls = []

    def fail_once(_, args, kwargs):
        rows = kwargs["input_ids"].shape[0]
        calls.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("out of memory")

    settings = {"points": POINTS, "batch_size": 4, "shard_rows": 8}
    want = capture(checkpoint, prompts, path=tmp_path / "w", **settings)
    handle = checkpoint.module.register_forward_pre_hook(fail_once, with_kwargs=True)
    got = capture(checkpoint, prompts, path=tmp_path / "g", **settings)
    handle.remove()
    assert want.notes == ()
    assert got.notes == ("out of memory: 1 of 2 shards ran with batches of 2",)
    for name in got.names:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


def test_why_a_prefix_was_not_shared_is_noted(tiny, prompts, tmp_path):
    store = capture(tiny("gpt_oss"), prompts, POINTS, path=tmp_path / "s")
    assert store.plan.prefix == 0
    assert store.notes[0].endswith("the longest prompt has 17 tokens and the sliding window 6")
    assert ActivationStore.open(store.path).notes == store.notes


def test_all_positions_where_prompts_are_equally_long(tiny, prompts_of, tmp_path):
    prompts = prompts_of((7, 7, 7))
    store = capture(tiny("llama"), prompts, "hook_embed", "all", tmp_path / "s")
    weight = tiny("llama").module.model.embed_tokens.weight
    assert store.positions == tuple(range(-7, 0))
    np.testing.assert_array_equal(store["hook_embed"], weight[torch.tensor(prompts.ids)].numpy())
    with pytest.raises(HookNameError, match=r"have 7 to 9 tokens; .* range\(-7, 0\)"):
        capture(tiny("llama"), prompts_of((7, 9)), "hook_embed", "all", tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_damaged_shard_stops_the_resume_and_is_named(tiny, prompts, tmp_path):
    store = capture(tiny("llama"), prompts, POINTS, path=tmp_path / "s", shard_rows=4)
    whole = store.shard_path(0).read_bytes()
    store.shard_path(0).write_bytes(whole[: len(whole) // 2])
    store.shard_path(2).unlink()
    with pytest.raises(StoreError, match=r"shard-00000\.h5: truncated or corrupt"):
        capture(tiny("llama"), prompts, POINTS, path=tmp_path / "s", shard_rows=4)


# A process that loads everything once; each capture is a fork of it, which can be killed.
_CHILD = """
import importlib.util, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from mechprobe.activations import ActivationStore, capture
spec = importlib.util.spec_from_file_location("tiny_models", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
torch.set_num_threads(1)
folder, kills = Path(sys.argv[2]), int(sys.argv[3])
checkpoint = tiny.wrap(tiny.make_model("llama"), "llama")
prompts = tiny.make_prompts(tuple(5 + i % 9 for i in range(80)))

def run(path):
    return capture(checkpoint, prompts, "blocks.*", path=path, batch_size=4, shard_rows=8)

def forked(path):
    pid = os.fork()
    if pid == 0:
        run(path)
        os._exit(0)
    return pid

run(folder / "whole")  # and everything is imported before the first fork
begin = time.perf_counter()
os.waitpid(forked(folder / "again"), 0)
seconds = time.perf_counter() - begin
draw = random.Random(kills)
interrupted, midway, attempts = 0, 0, 0
while (interrupted < kills or not midway) and attempts < 10 * kills:
    attempts += 1
    pid = forked(folder / "killed")
    time.sleep(draw.uniform(0.1, 0.6) * seconds)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        interrupted += 1
        if (folder / "killed" / "capture.json").exists():
            midway += 0 < len(ActivationStore.open(folder / "killed").finished_shards()) < 10
    else:  # it was faster than the kill: begin again
        shutil.rmtree(folder / "killed")
run(folder / "killed")
print(interrupted, midway)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process")
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.verify)])
def test_killed_runs_finish_to_the_same_bytes(tmp_path, kills):
    models = Path(__file__).with_name("conftest.py")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(models), str(tmp_path), str(kills)],
        capture_output=True,
        text=True,
        check=True,
    )
    interrupted, midway = map(int, done.stdout.split())
    assert interrupted >= kills and midway >= 1
    whole = files(tmp_path / "whole")
    assert len(whole) == 11
    assert files(tmp_path / "killed") == whole
    assert files(tmp_path / "again") == whole
