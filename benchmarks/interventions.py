"""What interventions cost: selection and patching against every pass of every prompt.

One run on one model. *Selection*: the race of candidates against every candidate on every selection
prompt. *Patching*: sets of neurons put back from where they act, against whole passes of whole
prompts. Both sides must give the same choice, and their numbers are compared. Tokens are forward
equivalents: one that goes through half of the blocks is half a token.

    python benchmarks/interventions.py --model SOURCE --cell SOURCE --refusal-token I [--json]

`benchmarks/probes.py` runs it on a random-weight model.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechprobe import session
from mechprobe.activations import Ablate, Add, Patch
from mechprobe.activations.streaming import stream
from mechprobe.experiments.probe_setup import ProbeRequest, make_setup
from mechprobe.models.checkpoint import Checkpoint
from mechprobe.models.rendering import EncodedPrompts
from mechprobe.probes import battery, safety_neurons
from mechprobe.probes.candidate_passes import join, kl
from mechprobe.probes.candidates import score_candidates
from mechprobe.probes.counting import counting
from mechprobe.probes.direction import RefusalDirection
from mechprobe.probes.fitting import Kept, fit_directions
from mechprobe.probes.folder import ProbeFolder
from mechprobe.probes.neuron_errors import ERRORS, KINDS, Profile
from mechprobe.probes.neuron_patching import AS_IT_IS, DRAWS, NeuronSet, neuron_sets, patch_back
from mechprobe.probes.neuron_weights import weight_errors
from mechprobe.probes.observation import Observation
from mechprobe.probes.refusal_tokens import refusal_log_odds
from mechprobe.probes.selection import NoCandidateError, select_direction

BUDGETS = {
    "selection_over_exhaustive": 0.25,
    "selection_seconds_over_exhaustive": 0.25,
    "patching_over_full": 0.4,
    "patching_seconds_over_full": 0.4,
}
SCORES = ("bypass", "induce", "kl")
CUTOFF = 0.05


def logits_of(
    checkpoint: Checkpoint, prompts: EncodedPrompts, interventions: Sequence[Any] = (), **how: Any
) -> np.ndarray[Any, Any]:
    """Next-token logits, shape (prompt, vocabulary), by passes from the first block on."""
    found: dict[int, Any] = {}
    for each in stream(checkpoint, prompts, (), logits=True, interventions=interventions, **how):
        assert each.logits is not None
        found.update(zip(each.indices, each.logits.double().numpy(), strict=True))
    return np.stack([found[row] for row in range(len(prompts))])


def every_score(
    checkpoint: Checkpoint,
    candidates: RefusalDirection,
    harmful: EncodedPrompts,
    harmless: EncodedPrompts,
    refusal_ids: Sequence[int],
) -> pd.DataFrame:
    """Bypass, induce and KL of every candidate on every prompt, as before there was a race."""
    before = logits_of(checkpoint, join(harmful, harmless), batch_size=32)
    odds = refusal_log_odds(before, refusal_ids)
    kept = Kept.by_score(odds[: len(harmful)], odds[len(harmful) :])
    bad, good = harmful.select(kept.harmful), harmless.select(kept.harmless)
    base = before[len(harmful) :][list(kept.harmless)]
    means = odds[list(kept.harmful)].mean(), odds[len(harmful) :][list(kept.harmless)].mean()
    rows = []
    for position in candidates.positions:
        for layer in range(candidates.n_layers):
            raw = torch.from_numpy(candidates.at(position, layer))
            if not float(raw.norm()) > 0:
                rows.append((position, layer, *means, 0.0))
                continue
            ablated = logits_of(checkpoint, join(bad, good), [Ablate(raw)], batch_size=32)
            added = logits_of(checkpoint, good, [Add(raw, layer=layer)], batch_size=32)
            bypass = refusal_log_odds(ablated[: len(bad)], refusal_ids).mean()
            induce = refusal_log_odds(added, refusal_ids).mean()
            rows.append((position, layer, bypass, induce, kl(base, ablated[len(bad) :]).mean()))
    return pd.DataFrame(rows, columns=["position", "layer", *SCORES])


def every_patch(
    checkpoint: Checkpoint,
    prompts: EncodedPrompts,
    baseline: Observation,
    profiles: Sequence[Profile],
    refusal_ids: Sequence[int],
) -> dict[str, float]:
    """Mean refusal log-odds of each set of neurons, by whole passes that share nothing."""
    positions = tuple(range(-prompts.post_instruction, 0))
    values = {
        each.point: baseline.values(ERRORS, each.point, positions) / each.gain for each in profiles
    }
    found: dict[str, float] = {}
    sets: dict[str, NeuronSet] = {AS_IT_IS: {}, **neuron_sets(profiles, CUTOFF, DRAWS, 0)}
    for name, neurons in sets.items():
        patches = [
            Patch(
                point,
                torch.from_numpy(values[point][..., slice(None) if dims is None else dims]).float(),
                positions,
                None if dims is None else tuple(dims.tolist()),
            )
            for point, dims in neurons.items()
        ]
        logits = logits_of(checkpoint, prompts, patches, batch_size=16, share_prefix=False)
        found[name] = float(refusal_log_odds(logits, refusal_ids).mean())
    return found


class Meter:
    """Forward equivalents, seconds and CPU seconds of two sides of a comparison."""

    def __init__(self) -> None:
        self.tokens: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def run(self, side: str, checkpoint: Checkpoint, work: Callable[[], Any]) -> Any:
        """Add a piece of work to a side."""
        gc.collect()
        with counting(checkpoint) as count:
            begun, cpu = time.perf_counter(), time.process_time()
            found = work()
            spent, cpu = time.perf_counter() - begun, time.process_time() - cpu
        for table, value in ((self.tokens, count.tokens), (self.seconds, spent), (self.cpu, cpu)):
            table[side] = table.get(side, 0.0) + value
        return found

    def over(self, table: dict[str, float]) -> float:
        """The first side over the second."""
        first, second = table.values()
        return first / second


def compare_selection(
    checkpoint: Checkpoint, setup: battery.Setup, folder: ProbeFolder
) -> dict[str, float]:
    """Both ways to select a direction, on an observed baseline."""
    ids = setup.tokens.ids if setup.tokens else folder.tokens.ids
    fitted = fit_directions(folder.observation, refusal_ids=ids)
    given = fitted, setup.prompts["select/harmful"], setup.prompts["select/harmless"], ids
    meter = Meter()
    scores = meter.run("race", checkpoint, lambda: score_candidates(checkpoint, *given))
    full = meter.run("exhaustive", checkpoint, lambda: every_score(checkpoint, *given))
    try:
        want = select_direction(full, fitted.n_layers)
        place = (want.position, want.layer)
    except NoCandidateError:
        place = None
    if scores.place != place:
        raise SystemExit(f"the race selects {scores.place}, all scores {place}")
    both = scores.table.merge(full, on=["position", "layer"], suffixes=("", " of all"))
    apart = [np.nanmax(np.abs(both[name] - both[f"{name} of all"])) for name in SCORES]
    return {
        "selection_over_exhaustive": meter.over(meter.tokens),
        "selection_seconds_over_exhaustive": meter.over(meter.seconds),
        "selection_cpu_over_exhaustive": meter.over(meter.cpu),
        "selection_largest_difference": float(max(apart)),
        "selection_exhaustive_seconds": meter.seconds["exhaustive"],
        "selection_exhaustive_tokens": meter.tokens["exhaustive"],
    }


def compare_patching(
    checkpoint: Checkpoint, setup: battery.Setup, cell: ProbeFolder, baseline: ProbeFolder
) -> dict[str, float]:
    """Both ways to patch neurons, on an observed cell."""
    seen, prompts = baseline.observation, setup.prompts[ERRORS]
    ids = setup.tokens.ids if setup.tokens else baseline.tokens.ids
    weights = weight_errors(checkpoint, baseline.weights)
    result = safety_neurons.measure(cell.observation, seen, weights=weights)
    meter, apart = Meter(), [0.0]
    for kind in KINDS:
        given = checkpoint, prompts, seen, result.of_kind(kind), ids
        if not result.of_kind(kind):
            continue
        part = meter.run("restarted", checkpoint, lambda given=given: patch_back(*given))
        full = meter.run("full", checkpoint, lambda given=given: every_patch(*given))
        moved = {name: odds - full[AS_IT_IS] for name, odds in full.items()}
        apart += [
            abs(part.whole.value - moved["whole"]),
            abs(part.everything.value - moved["everything"]),
        ]
        if part.matched is not None:
            apart.append(abs(part.matched.value - moved["matched"]))
        apart += [abs(each - moved[f"random {k}"]) for k, each in enumerate(part.random)]
    return {
        "patching_over_full": meter.over(meter.tokens),
        "patching_seconds_over_full": meter.over(meter.seconds),
        "patching_cpu_over_full": meter.over(meter.cpu),
        "patching_largest_difference": max(apart),
        "patching_full_seconds": meter.seconds["full"],
        "patching_full_tokens": meter.tokens["full"],
    }


def compare(
    load_baseline: Callable[[], Checkpoint], load_cell: Callable[[], Checkpoint], setup: Any
) -> dict[str, float]:
    """Both comparisons; the second model is loaded when the first was let go."""
    found: dict[str, float] = {}
    setup = replace(setup, probes=("refusal_direction", "safety_neurons"), causal=False)
    with tempfile.TemporaryDirectory(prefix="mechprobe-benchmark-") as scratch:
        baseline, cell = (ProbeFolder(Path(scratch) / name) for name in ("baseline", "cell"))
        checkpoint = load_baseline()
        battery.observe_cell(checkpoint, setup, baseline, is_baseline=True)
        battery.choose_tokens(checkpoint, setup, baseline)
        found |= compare_selection(checkpoint, setup, baseline)
        battery.probe_neurons(checkpoint, setup, baseline, None)
        del checkpoint
        gc.collect()
        checkpoint = load_cell()
        battery.observe_cell(checkpoint, setup, cell, is_baseline=False)
        found |= compare_patching(checkpoint, setup, cell, baseline)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="organism:llama-s", help="the baseline")
    parser.add_argument("--cell", required=True, help="a quantized form of it")
    parser.add_argument("--prompts", help="as `mechprobe probe` takes them")
    parser.add_argument("--refusal-token", action="append", default=[])
    parser.add_argument("--select", type=int, default=32)
    parser.add_argument("--evaluate", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="one flat object on stdout")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    request = ProbeRequest(
        model=args.cell,
        out=Path("unused"),
        probes=("refusal_direction", "safety_neurons"),
        baseline=args.model,
        prompts=args.prompts,
        select=args.select,
        evaluate=args.evaluate,
        refusal_tokens=tuple(args.refusal_token),
    )

    def load(source: str) -> Checkpoint:
        return session.load(source, kernel="dense", tokenizer=args.model).checkpoint

    found = compare(lambda: load(args.model), lambda: load(args.cell), make_setup(request))
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(
            f"{name:36} {value:12.4g}" + (f"   at most {BUDGETS[name]}" if name in BUDGETS else "")
        )


if __name__ == "__main__":
    main()
