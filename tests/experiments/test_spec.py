from importlib.resources import files

import pytest

from mechprobe.errors import SpecError
from mechprobe.experiments.spec import canonical, load_spec, parse_spec

SMALL = """
name: small
models:
  - name: m
    source: some/model
    cells:
      - precision: FP16
      - {precision: AWQ-INT4, source: some/model-awq}
      - {precision: F16, quantize: F16}
      - {precision: Q4_K_M, quantize: Q4_K_M}
      - {precision: Q8_0, source: folder/model-Q8_0.gguf, baseline: Q4_K_M}
"""


def test_cells_find_their_baseline_on_the_same_engine():
    spec = parse_spec(SMALL, "small.yaml")
    found = {c.key: c.baseline for _, c in spec.cells(spec.models[0])}
    assert found == {
        "FP16@transformers": None,
        "AWQ-INT4@transformers": "FP16",
        "F16@llama.cpp": None,
        "Q4_K_M@llama.cpp": "F16",
        "Q8_0@llama.cpp": "Q4_K_M",
    }
    sources = [c.source for _, c in spec.cells(spec.models[0])]
    assert sources[0] == "some/model"
    assert sources[1] == "some/model-awq"


def test_the_demo_has_ten_cells_of_one_organism():
    spec = parse_spec(
        files("mechprobe.experiments").joinpath("specs/demo.yaml").read_text(), "demo"
    )
    assert [c.key for _, c in spec.cells(spec.models[0])] == [
        "FP16@transformers",
        "AWQ-INT4@transformers",
        "GPTQ-INT4@transformers",
        "F16@llama.cpp",
        "Q8_0@llama.cpp",
        "Q6_K@llama.cpp",
        "Q5_K_M@llama.cpp",
        "Q4_K_M@llama.cpp",
        "Q3_K_S@llama.cpp",
        "Q2_K@llama.cpp",
    ]
    assert spec.tasks.refusal.prompts >= 200


def test_canonical_text_reads_back_to_the_same_spec():
    spec = parse_spec(SMALL, "small.yaml")
    assert parse_spec(canonical(spec), "again") == spec


CELLS = "models[0].cells"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: small", "name: small\nmodel: x", "s.yaml: model: unknown field"),
        ("name: small\n", "", "s.yaml: name: this field is missing"),
        ("name: small", "name: [1]", "s.yaml: name: input should be a valid string"),
        ("name: small", "name: a/b", "s.yaml: name: string should match pattern"),
        ("precision: FP16", "precission: FP16", f"s.yaml: {CELLS}[0].precision: this field is"),
        ("quantize: F16", "quantize: int3", f"s.yaml: {CELLS}[2].quantize: input should be 'awq'"),
        ("quantize: F16", "quantize: Q8_0", f"s.yaml: {CELLS}[2].quantize: Q8_0 cannot be F16"),
        ("precision: AWQ-INT4", "precision: FP16", f"s.yaml: {CELLS}[1].precision: FP16@transf"),
        ("baseline: Q4_K_M", "baseline: Q5_K_M", f"{CELLS}[4].baseline: Q5_K_M is not a cell of m"),
        ("baseline: Q4_K_M", "baseline: FP16", f"{CELLS}[4].baseline: FP16 is not a cell of m on"),
        (
            "name: small",
            "name: small\ntasks: {refusal: {prompts: 0}}",
            "tasks.refusal.prompts: inp",
        ),
        ("name: small", 'name: small\nprompts: {seed: "1"}', "prompts.seed: input should be a val"),
        ("name: small", "name: small: x", "s.yaml, line 2: not YAML (mapping values"),
        (SMALL, "- a\n- b", "s.yaml: a spec is a mapping of fields"),
        (SMALL, "", "s.yaml: a spec is a mapping of fields"),
        (SMALL, "name: x\nmodels: []", "models: tuple should have at least 1 item"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(old, new, said):
    assert old in SMALL
    with pytest.raises(SpecError) as caught:
        parse_spec(SMALL.replace(old, new, 1), "s.yaml")
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_an_unreadable_file_is_one_line(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8 text"):
        load_spec(tmp_path / "bad.yaml")
    with pytest.raises(SpecError, match="is a directory"):
        load_spec(tmp_path)
