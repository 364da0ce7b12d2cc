"""Reports of matrices whose numbers are known, with names that nobody should trust."""

import numpy as np
import pandas as pd

from mechprobe.analysis.document import analyse
from mechprobe.analysis.factorial import CellOf, Design, analyse_factorial
from mechprobe.report import Material

HOSTILE = "<script>alert('m')</script>$\\frac{x}$\" onload=x"
EVIL = '<img src=x onerror="alert(1)">$x_1$'
ERROR = "</details><img src=x onerror=alert(1)> out of memory"
N = 100
# refused of the first 100 prompts, right answers of 100 questions; the baseline has 90 and 80
PLAIN = {
    "FP16@transformers": (90, 80),
    "AWQ-INT4@transformers": (60, 81),  # hidden: 30 lost, quality holds
    "Q4_K_M@transformers": (80, 80),  # exactly 10 lost: at the boundary
    "Q2_K@transformers": (20, 40),  # both collapse
    "Q8_0@transformers": (90, 80),
}


def outcomes(models):
    """Every cell answers the first so many prompts as 1; refusals are read by two instruments."""
    lines = []
    for model, cells in models.items():
        base = next(iter(cells))
        for cell, (refused, right) in cells.items():
            for measure, instrument, ones in (
                ("refusal", "hard", refused),
                ("refusal", "soft", min(N, refused + 15)),
                ("accuracy", "letters", right),
            ):
                lines.append(
                    pd.DataFrame(
                        {
                            "model": model, "family": "f", "cell": cell,
                            "precision": cell.partition("@")[0],
                            "engine": cell.partition("@")[2],
                            "baseline": "" if cell == base else base, "reference": False,
                            "measure": measure, "instrument": instrument,
                            "prompt": [f"p{i:03d}" for i in range(N)],
                            "cluster": [f"p{i:03d}" for i in range(N)],
                            "value": (np.arange(N) < ones).astype(float),
                        }
                    )
                )  # fmt: skip
    return pd.concat(lines, ignore_index=True)


def matrix(frame):
    """The rows that such outcomes belong to, with a count, a probe and one failed cell."""
    who = ["model", "family", "precision", "engine", "baseline", "cell"]
    rows = frame[who].drop_duplicates(["model", "cell"]).reset_index(drop=True)
    mine = frame[(frame["measure"] == "refusal") & (frame["instrument"] == "hard")]
    counts = mine.groupby(["model", "cell"])["value"].sum()
    keys = list(zip(rows["model"], rows["cell"], strict=True))
    return rows.drop(columns="cell").assign(
        status="ok", error="",
        harmful_refusal_count=[int(counts[key]) for key in keys], harmful_refusal_n=N,
        refusal_margin_lost=np.linspace(0, 2, len(rows)),
        direction_cosine=np.linspace(1, 0.4, len(rows)),
        source="organism:llama-s", weights="ab" * 32,
    )  # fmt: skip


def templates(frame):
    """Wording that drifts with what is lost."""
    rows = frame.drop_duplicates(["model", "cell"])[
        ["model", "family", "cell", "baseline", "precision", "engine"]
    ]
    mine = frame[(frame["measure"] == "refusal") & (frame["instrument"] == "hard")]
    refused = mine.groupby(["model", "cell"])["value"].sum()
    k = np.array([refused[key] for key in zip(rows["model"], rows["cell"], strict=True)])
    return rows.assign(
        n_prompts=N, refusals=k, dominant_prefix_share=0.2 + k / 200,
        unique_prefix_rate=0.9 - k / 200, prefix_entropy_norm=0.8 - k / 300,
        mean_tokens_refusal=40 - k / 10,
    )  # fmt: skip


GAPS = pd.DataFrame(
    [("m", "engine", "F16@llama.cpp", "FP16@transformers", 64, 3.7e-07, 1.8e-06, 0.984375, "d")],
    columns=["model", "gap", "cell", "against", "n", "mean_kl", "max_kl", "top1_agreement",
             "prompts"],
)  # fmt: skip


def material(models=None, *, failed=False, name="test", **options):
    """A report's material, analysed by the real analysis."""
    models = models or {HOSTILE: PLAIN, "calm": {**PLAIN, "Q2_K@transformers": (70, 90)}}
    frame = outcomes(models)
    rows = matrix(frame)
    if failed:
        lost = (rows["precision"] == "Q8_0") & (rows["model"] == rows["model"].iloc[0])
        rows.loc[lost, ["status", "error"]] = ["failed", ERROR]
    chosen = {"quality": "accuracy", "instrument": "hard", "second_instrument": "soft",
              "resamples": 200} | options  # fmt: skip
    document = analyse(frame, rows, templates(frame), GAPS, **chosen)
    return Material(name, document, rows, frame)


def factorial(temperatures=(0.0, 1.0), judges=("a", "b", "c"), clusters=12):
    """A small factorial in which warm answers comply more, and one cell is missing."""
    base = "FP16@transformers"
    cells = tuple(
        CellOf(EVIL, "f", f"{name}@transformers", name, "transformers", held, False)
        for name, held in (("FP16", ""), ("Q", base), ("gone", base))
    )
    rng = np.random.default_rng(0)
    labels = [
        {
            "model": EVIL, "cell": cell.cell, "request": request, "temperature": at,
            "prompt": f"{EVIL}{request}{i}", "cluster": str(i), "sample": k, "judge": judge,
            "label": "comply" if rng.random() < 0.2 + 0.4 * at else "refuse",
        }
        for cell in cells[:2] for at in temperatures for request in ("harmful", "benign")
        for i in range(clusters) for k in range(3) for judge in judges
    ]  # fmt: skip
    design = Design(cells, temperatures, dict.fromkeys(temperatures, 3), judges)
    found = analyse_factorial(pd.DataFrame(labels), design)
    return {"name": EVIL, **found, "errors": {"m/gone": f"no file {EVIL}"}}
