"""`mechprobe run`: its options, before anything runs."""

import json

import pytest


def test_the_shipped_specs_are_listed(mechprobe):
    done = mechprobe("run", "--list")
    assert (done.code, done.err) == (0, "")
    names = [line.split()[0] for line in done.out.splitlines()]
    assert names == [
        "demo",
        "demo-51",
        "qwen2.5-0.5b",
        "smollm2-135m",
        "smollm2-refuses",
        "study-51",
    ]
    found = json.loads(mechprobe("run", "--list", "--json").out)
    assert [one["name"] for one in found] == names
    assert all(name in mechprobe("run", "--help").out for name in names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a spec: a YAML file, or one that `mechprobe run --list` shows"),
        (
            ("dmeo",),
            "dmeo: no such file, and no shipped spec is called so; there are demo, ",
        ),
        (("demo", "--shard", "3/2"), "--shard 3/2: give I/N, such as 1/4"),
        (("demo", "--plan", "--shard", "3/2"), "--shard 3/2: give I/N, such as 1/4"),
        (("demo", "--plan", "--shard", "1/2"), "--plan shows the whole run; leave --shard out"),
        (("demo", "--engine", "dask"), "--engine dask: there are local, ray"),
        (("demo", "--address", "a:1"), "--address is of a Ray cluster; add --engine ray"),
        (("demo", "--engine", "ray", "--shard", "1/2"), "--shard is for job arrays"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(mechprobe, tmp_path, arguments, said):
    done = mechprobe("run", *arguments)
    assert done.code == 2
    assert done.err.startswith(f"mechprobe: {said}")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_plan_says_what_would_happen_and_does_nothing(mechprobe, tmp_path):
    done = mechprobe("run", "qwen2.5-0.5b", "--plan")
    assert (done.code, done.err) == (0, "")
    assert "runs/qwen2.5-0.5b: 12 cells and 0 references" in done.out
    pinned = "Qwen/Qwen2.5-0.5B-Instruct-AWQ at db09cd27ead7fee40cdee309693cf83601b9c899"
    assert f"downloads  {pinned}: size unknown" in done.out
    assert "time       unknown" in done.out
    assert not list(tmp_path.iterdir())
