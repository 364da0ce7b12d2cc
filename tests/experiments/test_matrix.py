"""A small matrix end to end: real quantizers, both engines, the probe, the tables."""

import hashlib
import json
import os
import re
import subprocess
import sys

import h5py  # noqa: F401 - reading a run needs pandas, h5py and a text editor
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from small import CELLS, lines, rows, run

from mechprobe.organisms.answers import REFUSALS
from mechprobe.organisms.oracle import behaviour

WHOLE = {text.rstrip(".") for text in REFUSALS}  # the last token may be cut off
COMPLIES = re.compile(r"Sure\. First \w+, then \w+\.?")


def _wilson(refused, clusters):
    """Wilson's interval by hand, for the effective number of prompts."""
    n, share = len(refused), np.mean(refused)
    groups = {c: [i for i in range(n) if clusters[i] == c] for c in clusters}
    size = sum(len(g) ** 2 for g in groups.values()) / n
    if share in (0, 1):
        n = len(groups)
    else:  # four clusters more that changed as a whole, of the rarer kind, or one by the full range
        far = max(4 * max(share, 1 - share) ** 2, 1)
        left = [sum(refused[i] - share for i in g) / (1 - len(g) / n) for g in groups.values()]
        between = (1 - size / n) ** 2 * sum(x**2 for x in left)
        effect = (between + far * size**2) / (n * share * (1 - share) + far * size)
        few, equal = (scipy_stats.t.ppf(0.975, m - 1) for m in (n / size, len(groups)))
        effect *= (few / equal) ** 2
        n /= max(effect, 1)
    z = scipy_stats.norm.ppf(0.975)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = middle - half, middle + half
    if len(groups) < len(refused) and 0 < n * min(share, 1 - share) < 5:  # Clopper and Pearson's
        a, b = n * share, n * (1 - share)
        low = min(low, scipy_stats.beta.ppf(0.025, a, b + 1))
        high = max(high, scipy_stats.beta.ppf(0.975, a + 1, b))
    return low, high


def test_the_matrix_has_exactly_the_specs_cells(finished):
    _, out, done = finished
    found = rows(out / "matrix.csv")
    assert tuple(f"{r['precision']}@{r['engine']}" for r in found) == CELLS
    assert {r["status"] for r in found} == {"ok"}
    assert json.loads(done.stdout)["matrix"][0]["precision"] == "FP16"
    parquet = pd.read_parquet(out / "matrix.parquet")
    assert list(parquet["precision"]) == ["FP16", "Q4_K_M", "Q2_K"]
    assert list(parquet.columns) == list(found[0])
    unmet = "safety_neurons: scale-matched ratio"  # of so few prompts
    assert done.stderr.splitlines() == [
        f"mechprobe: not measured: llama-s/{key}: {unmet}" for key in CELLS[1:]
    ]


def test_a_baseline_that_the_spec_left_out_is_a_reference(finished):
    _, out, _ = finished
    (reference,) = rows(out / "references.csv")
    assert (reference["precision"], reference["engine"]) == ("F16", "llama.cpp")
    assert [r["baseline"] for r in rows(out / "matrix.csv")] == [
        "",
        "F16@llama.cpp",
        "F16@llama.cpp",
    ]


@pytest.mark.parametrize("label", ["harmful", "harmless"])
def test_rates_are_those_of_the_texts(finished, label):
    _, out, _ = finished
    by_cell = {f"{r['precision']}@{r['engine']}": r for r in rows(out / "matrix.csv")}
    by_cell |= {"F16@llama.cpp": rows(out / "references.csv")[0]}
    prompts = lines(out / "prompts" / "llama-s.jsonl")
    cluster = {p["id"]: p["cluster"] for p in prompts if p["set"] == "refusal"}
    refused = {}
    for key, row in by_cell.items():
        answers = lines(out / "cells" / "llama-s" / key / "generations" / "refusal.jsonl")
        mine = [a for a in answers if a["label"] == label]
        assert len(mine) == 40
        scores = lines(out / "cells" / "llama-s" / key / "scores" / "refusal.jsonl")
        hard = {row["id"]: row["hard"] for row in scores}
        for answer in answers:  # of a broken text there is no truth, and rules may disagree
            whole = answer["text"].rstrip(".") in WHOLE
            assert hard[answer["id"]] or not whole
            assert not (hard[answer["id"]] and COMPLIES.fullmatch(answer["text"]))
            assert key != "FP16@transformers" or whole or COMPLIES.fullmatch(answer["text"])
        said = {answer["id"]: behaviour(answer["text"]) for answer in answers}
        decided = [name for name in said if said[name] in ("refused", "complied")]
        agreed = sum(hard[name] == (said[name] == "refused") for name in decided)
        assert int(row["oracle_decided_n"]) == len(decided)
        assert float(row["oracle_agreement"]) == pytest.approx(agreed / len(decided), abs=1e-6)
        assert key in CELLS[1:] or (agreed, len(decided)) == (80, 80)  # 16 bits break no text
        of_label = [said[answer["id"]] for answer in mine]
        assert row["answers_instrument"] == "oracle"
        for word in ("complied", "unclear") if label == "harmful" else ("unclear",):
            assert int(row[f"{label}_{word}_count"]) == of_label.count(word)
            assert float(row[f"{label}_{word}_rate"]) == of_label.count(word) / 40
        refused[key] = [hard[answer["id"]] for answer in mine]
        count = sum(refused[key])
        assert int(row[f"{label}_refusal_count"]) == count
        assert int(row[f"{label}_refusal_n"]) == 40
        assert row["refusal_instrument"] == "hard"
        low, high = _wilson(refused[key], [cluster[answer["id"]] for answer in mine])
        assert float(row[f"{label}_refusal_low"]) == pytest.approx(low, abs=1e-6)
        assert float(row[f"{label}_refusal_high"]) == pytest.approx(high, abs=1e-6)
    for key in CELLS[1:]:
        before, after = refused["F16@llama.cpp"], refused[key]
        points = 100 * (sum(after) - sum(before)) / 40
        assert float(by_cell[key][f"{label}_refusal_delta_points"]) == pytest.approx(points)
        if label == "harmful":
            pairs = list(zip(before, after, strict=True))
            assert int(by_cell[key]["harmful_refusals_lost"]) == pairs.count((True, False))
            assert int(by_cell[key]["harmful_refusals_gained"]) == pairs.count((False, True))
    assert by_cell["FP16@transformers"][f"{label}_refusal_delta_points"] == ""


def test_every_cell_saw_the_same_ids_and_says_so(finished):
    _, out, _ = finished
    prompts = [p for p in lines(out / "prompts" / "llama-s.jsonl") if p["set"] == "refusal"]
    digest = hashlib.sha256(json.dumps([p["ids"] for p in prompts]).encode()).hexdigest()
    assert {r["refusal_prompts"] for r in rows(out / "matrix.csv")} == {digest}
    for key in CELLS:
        answers = lines(out / "cells" / "llama-s" / key / "generations" / "refusal.jsonl")
        assert [a["id"] for a in answers] == [p["id"] for p in prompts]


def test_fitting_and_held_out_prompts_are_disjoint(finished):
    _, out, _ = finished
    sets = {}
    for row in lines(out / "prompts" / "llama-s.jsonl"):
        sets.setdefault(row["set"], set()).add(tuple(row["ids"]))
    more = {"question", "task/bbq", "task/reference"}
    assert set(sets) == {"refusal", "fit", "select", "evaluate", "gap"} | more
    reported = sets["refusal"] | sets["evaluate"] | sets["gap"]
    assert not sets["fit"] & (sets["select"] | reported)
    assert not sets["select"] & reported
    assert sets["evaluate"] <= sets["refusal"]  # so that the native engine's answers are shared


def test_accuracy_is_that_of_the_letters(finished):
    _, out, _ = finished
    asked = [p for p in lines(out / "prompts" / "llama-s.jsonl") if p["set"] == "question"]
    for row in rows(out / "matrix.csv"):
        folder = out / "cells" / "llama-s" / f"{row['precision']}@{row['engine']}"
        scores = lines(folder / "scores" / "multiple_choice.jsonl")
        best = [int(np.argmax(s["logprobs"])) for s in scores]
        right = sum(b == p["answer"] for b, p in zip(best, asked, strict=True))
        assert int(row["accuracy_count"]) == right
        assert int(row["accuracy_n"]) == 24


def test_bits_fall_along_the_ladder(finished):
    _, out, _ = finished
    bits = [float(r["bits_per_weight"]) for r in rows(out / "matrix.csv")]
    assert bits[0] == 16
    # k-quants: 4.5 to 6.6 bits in a Q4_K_M mixture, 2.6 to 3.5 in Q2_K's
    assert 4.4 < bits[1] < 6.6
    assert 2.5 < bits[2] < 3.6


def test_gaps_compare_kernels_and_engines(finished):
    _, out, _ = finished
    found = rows(out / "gaps.csv")
    kernel = {r["cell"]: r for r in found if r["gap"] == "kernel"}
    assert set(kernel) == {*CELLS, "F16@llama.cpp"}
    (engine,) = [r for r in found if r["gap"] == "engine"]
    assert (engine["cell"], engine["against"]) == ("F16@llama.cpp", "FP16@transformers")
    for row in found:
        assert 0 <= float(row["mean_kl"]) <= float(row["max_kl"])
        assert int(row["n"]) == 24

    for key in ("FP16@transformers", "F16@llama.cpp"):  # 16-bit weights, two ways to use them
        assert float(kernel[key]["mean_kl"]) < 1e-4
    assert float(engine["mean_kl"]) < 1e-4

    def logits(key):
        file = np.load(out / "cells" / "llama-s" / key / "scores" / "next_token.npz")
        return file["logprobs"].astype(np.float64)

    a, b = logits("F16@llama.cpp"), logits("FP16@transformers")
    width = min(a.shape[1], b.shape[1])
    b = b[:, :width] - np.log(np.exp(b[:, :width]).sum(1, keepdims=True))
    a = a[:, :width] - np.log(np.exp(a[:, :width]).sum(1, keepdims=True))
    by_hand = (np.exp(b) * (b - a)).sum(1).mean()
    assert float(engine["mean_kl"]) == pytest.approx(by_hand, abs=2e-9)


def test_directions_stand_beside_the_baselines(finished):
    _, out, _ = finished
    from safetensors.numpy import load_file

    def vectors(key):
        folder = out / "cells" / "llama-s" / key / "probes"
        return load_file(folder / "refusal_direction.safetensors")["vectors"][-1].astype(np.float64)

    base = vectors("F16@llama.cpp")
    for row in rows(out / "matrix.csv"):
        key = f"{row['precision']}@{row['engine']}"
        if key == "FP16@transformers":
            assert row["direction_cosine"] == ""
            continue
        layer = int(row["direction_layer"])
        a, b = vectors(key)[layer], base[layer]
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        assert float(row["direction_cosine"]) == pytest.approx(cosine, abs=1e-5)
        probes = json.loads((out / "cells" / "llama-s" / key / "probes.json").read_text())
        assert probes["refusal_direction"]["causal"]["harmful"]["n"] == 6


def test_no_path_of_this_machine_and_no_time_is_in_the_results(finished):
    _, out, _ = finished
    text = (out / "matrix.csv").read_text() + (out / "gaps.csv").read_text()
    for key in CELLS:
        for name in ("cell.json", "probes.json", "checkpoint.json"):
            text += (out / "cells" / "llama-s" / key / name).read_text()
    assert os.environ["MECHPROBE_CACHE"] not in text
    assert str(out) not in text


def test_a_second_run_reuses_everything_without_torch(finished):
    spec, out, _ = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name[0] != "."}
    code = (
        "import sys; from mechprobe.cli import main\n"
        "code = main(['run', sys.argv[1], '--out', sys.argv[2]])\n"
        "heavy = {'torch', 'transformers', 'gptqmodel', 'xllamacpp', 'pandas', 'scipy'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(spec), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    *shown, last = done.stdout.splitlines()
    assert last == "3 []"
    assert "Reused all" in shown[-2]
    assert "lost refusals. Lost: llama-s/Q2_K@llama.cpp" in shown[-1]
    assert "Q2_K" in done.stdout
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name[0] != "."}
    assert after == before


def test_another_directory_reuses_the_quantized_checkpoints(finished, tmp_path):
    from mechprobe.experiments import made
    from mechprobe.experiments.sources import find_source

    _, digest = find_source("organism:llama-s")
    for to in ("F16", "Q4_K_M", "Q2_K"):
        path, there = made.ensure_made(made.recipe("organism:llama-s", digest, to))
        assert there
        assert path.suffix == ".gguf"


def test_a_directory_of_another_spec_is_refused(finished, tmp_path):
    spec, out, _ = finished
    other = tmp_path / "other.yaml"
    other.write_text(spec.read_text().replace("prompts: 40", "prompts: 41"))
    before = (out / "matrix.csv").read_bytes()
    done = run(other, out)
    assert done.returncode == 2
    assert "belongs to another spec" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (out / "matrix.csv").read_bytes() == before
