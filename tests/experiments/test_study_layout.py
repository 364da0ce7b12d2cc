"""`baseline: study`: one baseline per model, and what that mixes up is marked."""

from small import LOST, rows, run

SPEC = """
name: layout
baseline: study
models:
  - name: llama-s
    source: organism:llama-s
    cells:
      - {precision: F16, quantize: F16}
      - {precision: Q2_K, quantize: Q2_K}
      - {precision: FP16}
prompts: {source: organism}
tasks:
  refusal: {prompts: 6, max_new_tokens: 4}
"""


def test_rows_of_another_engine_than_their_baseline_are_marked(tmp_path):
    spec = tmp_path / "layout.yaml"
    spec.write_text(SPEC)
    done = run(spec, tmp_path / "run")
    assert done.returncode == LOST, done.stderr
    found = {row["precision"]: row for row in rows(tmp_path / "run" / "matrix.csv")}
    held = {name: (row["baseline"], row["engine_differs"]) for name, row in found.items()}
    assert held == {
        "F16": ("", "False"),
        "Q2_K": ("F16@llama.cpp", "False"),
        "FP16": ("F16@llama.cpp", "True"),
    }
    assert rows(tmp_path / "run" / "references.csv") == []
    assert all(row["harmful_refusal_delta_points"] for row in found.values() if row["baseline"])
