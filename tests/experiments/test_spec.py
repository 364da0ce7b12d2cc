import re
from collections import Counter
from importlib.resources import files

import pytest
from gguf import LlamaFileType

from mechprobe.errors import MechprobeError, SpecError
from mechprobe.experiments.plan import make_plan
from mechprobe.experiments.spec import Spec, canonical
from mechprobe.experiments.spec_file import load_spec, parse_spec, shipped_specs
from mechprobe.experiments.spec_names import precision_mistake
from mechprobe.experiments.spec_reading import read_spec
from mechprobe.models.cell import TRANSFORMERS_PRECISIONS
from mechprobe.models.gguf_levels import LADDER

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


def test_the_demo_has_ten_cells_of_an_organism_and_two_of_a_planted_control():
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
    assert spec.models[1].source == "control:llama-s-planted"
    planted = [c.key for _, c in spec.cells(spec.models[1])]
    assert planted == ["F16@llama.cpp", "Q4_1@llama.cpp"]
    assert spec.tasks.refusal.prompts >= 200


def test_canonical_text_reads_back_to_the_same_spec():
    spec = parse_spec(SMALL, "small.yaml")
    assert parse_spec(canonical(spec), "again") == spec


CELLS = "models[0].cells"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "name: small",
            "name: small\nmodel: x",
            "line 3: model: unknown field; did you mean model",
        ),
        ("name: small\n", "", "line 2: name: this field is missing"),
        ("name: small", "name: [1]", "line 2: name: input should be a valid string"),
        ("name: small", "name: a/b", "line 2: name: string should match pattern"),
        ("name: small", "name: small\nname: x", "line 3: name: this field is there twice"),
        (
            "{precision: AWQ-INT4, so",
            "{precision: AWQ-INT4, precision: FP16, so",
            f"line 8: {CELLS}[1].precision: this field is there twice",
        ),
        (
            "precision: FP16",
            "precission: FP16",
            f"line 7: {CELLS}[0].precission: unknown field; did you mean precision",
        ),
        (
            "precision: FP16",
            "precision: FP16\n        qantize: F16",
            f"line 8: {CELLS}[0].qantize: unknown field; did you mean quantize?",
        ),
        (
            "quantize: F16",
            "quantize: int3",
            f"line 9: {CELLS}[2].quantize: unknown target int3; there are awq, ",
        ),
        ("quantize: F16", "quantize: Q8_0", f"line 9: {CELLS}[2].quantize: Q8_0 cannot be F16"),
        ("quantize: F16", "quantize: gptq", f"line 9: {CELLS}[2].quantize: gptq cannot be F16"),
        ("precision: AWQ-INT4", "precision: FP16", f"line 8: {CELLS}[1].precision: FP16@transform"),
        (
            "precision: AWQ-INT4",
            "precision: AWQ_INT4",
            f"line 8: {CELLS}[1].precision: AWQ_INT4 is no precision that can be found in a "
            "checkpoint; did you mean AWQ-INT4",
        ),
        (
            "precision: Q4_K_M,",
            "precision: Q4_K_N,",
            f"line 10: {CELLS}[3].precision: Q4_K_N is no precision that can be found in a "
            "checkpoint; did you mean Q4_K_S or Q4_K_M",
        ),
        ("precision: FP16", "precision: zzz", "zzz is no precision that can be found in a checkp"),
        ("baseline: Q4_K_M", "baseline: Q5_K_M", f"line 11: {CELLS}[4].baseline: Q5_K_M is not a"),
        ("baseline: Q4_K_M", "baseline: FP16", f"{CELLS}[4].baseline: FP16 is not a cell of m on"),
        (
            "quantize: Q4_K_M",
            "quantize: Q4_K_M, baseline: Q8_0",
            f"line 10: {CELLS}[3].baseline: a chain of baselines leads back to Q4_K_M",
        ),
        (
            "name: small",
            "name: small\nbaseline: study",
            f"line 12: {CELLS}[4].baseline: under `baseline: study` a model names one",
        ),
        (
            "source: some/model",
            "source: some/model\n    baseline: F16",
            "line 6: models[0].baseline: is for `baseline: study`",
        ),
        (
            "name: small",
            "name: small\ntasks: {refusal: {prompts: 0}}",
            "line 3: tasks.refusal.prompts: inp",
        ),
        ("name: small", 'name: small\nprompts: {seed: "1"}', "prompts.seed: input should be a val"),
        ("name: small", "name: small: x", "s.yaml, line 2: not YAML (mapping values"),
        (SMALL, "- a\n- b", "s.yaml: a spec is a mapping of fields"),
        (SMALL, "", "s.yaml: a spec is a mapping of fields"),
        (SMALL, "name: x\nmodels: []", "models: takes at least 1"),
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


@pytest.mark.parametrize(
    "label",
    [
        "FP32", "BF16", "GPTQ-INT8", "GPTQ-INT3", "GPTQ-MIXED", "W4A16", "W8A8", "Q4_0", "IQ4_XS",
        "UD-Q4_K_XL", "UD-IQ2_M", "Q4_K_L",
    ],
)  # fmt: skip
def test_every_precision_that_a_reader_can_find_is_known(label):
    assert precision_mistake(label) is None


def test_every_level_that_the_quantizers_write_is_known():
    for label in (*LADDER, *TRANSFORMERS_PRECISIONS):
        assert precision_mistake(label) is None


def test_a_cell_of_every_level_of_llama_cpp_can_be_asked_for():
    named = {kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    own = sorted(named - {"GUESSED", "BF16"})  # no level, and the label of a folder too
    cells = ", ".join(f"{{precision: {level}, quantize: {level}}}" for level in own)
    spec = parse_spec(f"name: s\nmodels: [{{name: m, source: some/model, cells: [{cells}]}}]", "s")
    assert {cell.engine for _, cell in spec.cells(spec.models[0])} == {"llama.cpp"}
    assert {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K_S", "IQ4_XS", "TQ2_0"} <= set(own)
    with pytest.raises(SpecError, match=r"quantize: a BF16 cell of a folder"):
        parse_spec(SMALL.replace("quantize: F16", "quantize: BF16"), "s")


REREAD = (
    SMALL
    + """
tasks:
  more:
    - {task: reference, name: rouge, source: organism, items: 4, instrument: rouge_l}
    - {task: reference, name: again, source: organism, items: 4, answers: rouge, instrument: x}
"""
)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("answers: rouge", "answers: none", "tasks.more[1].answers: none is no task above this"),
        ("name: again, source: organism", "name: again", "tasks.more[1].source: must be the same"),
        ("name: again", "name: rouge", "tasks.more[1]: rouge is taken"),
    ],
)
def test_answers_are_read_again_only_where_the_same_is_asked(old, new, said):
    assert parse_spec(REREAD, "s.yaml").tasks.more[1].answers == "rouge"
    with pytest.raises(SpecError, match=re.escape(said)):
        parse_spec(REREAD.replace(old, new, 1), "s.yaml")


def test_every_mistake_of_tasks_and_models_is_named():
    wrong = REREAD.replace("name: again, source: organism", "name: rouge")
    wrong = wrong.replace(
        "models:", "models:\n  - {name: m, source: x, cells: [{precision: Q9}]}", 1
    )
    with pytest.raises(SpecError) as caught:
        parse_spec(wrong, "s.yaml")
    lines = str(caught.value).splitlines()
    for said in ("rouge is taken", "source: must be the same", "Q9 is no precision"):
        assert sum(said in line for line in lines) == 1, lines


BROKEN = """
models:
  - name: a
    source: x
    cells: [{precision: Q9}, {precision: Q8_0, baseline: F16}, {precision: F16}]
  - {name: b, source: x, devise: cpu, cells: [{precision: FP16}]}
  - {name: c, source: x, device: gpu, cells: [{precision: FP16}, {precision: Q4_0, baseline: Q8_0}]}
tasks: {more: [{tusk: bbq}, {task: bbq, answers: none}, {task: reference, items: 0}, {task: xyz}]}
"""


def test_what_is_right_beside_a_mistake_can_be_used():
    reading = read_spec(BROKEN, "s.yaml", Spec, lambda spec: spec)
    said = [str(one).removeprefix("s.yaml, ") for one in reading.mistakes]
    places = [line.split(":")[0] + line.split(":")[1] for line in said]
    assert places == [
        "line 2 name",
        "line 5 models[0].cells[0].precision",
        "line 6 models[1].devise",
        "line 7 models[2].device",
        "line 7 models[2].cells[1].baseline",
        "line 8 tasks.more[0].tusk",
        "line 8 tasks.more[2].items",
    ]
    left = reading.spec
    assert [model.name for model in left.models] == ["a", "c"]
    assert [[cell.precision for cell in model.cells] for model in left.models] == [
        ["Q8_0", "F16"],
        ["FP16", "Q4_0"],
    ]
    assert [task.task for task in left.tasks.more] == ["bbq", "xyz"]
    # what is left out does not move the places of the rest
    assert str(left.mistake(("models", 1, "cells", 1), "x")).startswith(
        "s.yaml, line 7: models[2].cells[1]: x"
    )
    assert str(left.mistake(("tasks", "more", 1), "x")).startswith("s.yaml, line 8: tasks.more[3]")


@pytest.mark.parametrize(
    "text",
    ["name: s\n", "name: s\nmodels: 3\n", "name: s\nmodels: [{name: m}]\n", "- a", "a: [", ""],
)
def test_nothing_can_be_used_without_models(text):
    reading = read_spec(text, "s.yaml", Spec, lambda spec: spec)
    assert reading.spec is None
    assert len(reading.mistakes) >= 1
    with pytest.raises(SpecError, match=re.escape(str(reading.mistakes[0]))):
        reading.require_right()


STUDY = """
name: study
baseline: study
models:
  - name: a
    source: some/a
    cells:
      - {precision: Q8_0, quantize: Q8_0}
      - {precision: F16, quantize: F16}
      - {precision: AWQ-INT4, quantize: awq}
  - name: b
    source: some/b
    cells:
      - {precision: Q8_0, quantize: Q8_0}
      - {precision: Q2_K, quantize: Q2_K}
      - {precision: GPTQ-INT4, quantize: gptq}
"""


def test_the_published_layout_holds_a_model_against_one_cell():
    spec = parse_spec(STUDY, "study.yaml")
    found = {(m.name, c.key): c.baseline_key for m in spec.models for _, c in spec.cells(m)}
    assert found == {
        ("a", "Q8_0@llama.cpp"): "F16@llama.cpp",
        ("a", "F16@llama.cpp"): None,
        ("a", "AWQ-INT4@transformers"): "F16@llama.cpp",
        ("b", "Q8_0@llama.cpp"): None,
        ("b", "Q2_K@llama.cpp"): "Q8_0@llama.cpp",
        ("b", "GPTQ-INT4@transformers"): "Q8_0@llama.cpp",
    }
    with pytest.raises(SpecError, match=r"line 11: models\[1\]: baseline: study needs a cell F16"):
        parse_spec(STUDY.replace("Q8_0, quantize: Q8_0", "Q6_K, quantize: Q6_K"), "study.yaml")
    named = STUDY.replace("some/b", "some/b\n    baseline: Q2_K")
    spec = parse_spec(named, "study.yaml")
    assert [c.baseline_key for _, c in spec.cells(spec.models[1])][1] is None


def test_a_shipped_spec_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of that name is no spec
    assert load_spec("demo").name == "demo"
    assert "demo" in [one.name for one in shipped_specs()]
    assert all(one.about for one in shipped_specs())
    with pytest.raises(SpecError, match=r"no such file, and no shipped spec is called so; there"):
        load_spec("dmeo")


@pytest.mark.parametrize("name", [one.name for one in shipped_specs()])
def test_every_shipped_spec_is_sound(name):
    spec = load_spec(name)
    assert spec.name == name
    assert parse_spec(canonical(spec), "again") == spec


PUBLISHED = {
    "F16@llama.cpp": 4,
    **dict.fromkeys(["Q8_0@llama.cpp", "Q6_K@llama.cpp", "Q5_K_M@llama.cpp"], 6),
    **dict.fromkeys(["Q4_K_M@llama.cpp", "Q3_K_S@llama.cpp", "Q2_K@llama.cpp"], 6),
    "AWQ-INT4@transformers": 5,
    "GPTQ-INT4@transformers": 6,
}


@pytest.mark.parametrize("name", ["demo-51", "study-51"])
def test_the_published_layout_has_51_rows_of_six_models(name):
    spec = load_spec(name)
    planted = [m for m in spec.models if m.source.startswith("control:")]
    assert [m.family for m in planted] == (["Llama", "Qwen"] if name == "demo-51" else [])
    models = [m for m in spec.models if m not in planted]
    cells = [c for m in models for _, c in spec.cells(m)]
    assert Counter(c.key for c in cells) == PUBLISHED
    assert Counter(m.family for m in models) == {"Llama": 2, "Qwen": 2, "Phi": 1, "Mistral": 1}
    ladder = [c for c in cells if c.engine == "llama.cpp"]
    assert Counter(c.precision for c in ladder if c.baseline_key is None) == {"F16": 4, "Q8_0": 2}
    others = [c for c in ladder if c.baseline_key]
    assert {c.baseline_key for c in others} == {"F16@llama.cpp", "Q8_0@llama.cpp"}
    packed = {c.baseline_key for c in cells if c.engine == "transformers"}
    # the organisms' are held against a reference on their own engine, which the plan adds
    assert packed == ({None} if name == "demo-51" else {"F16@llama.cpp", "Q8_0@llama.cpp"})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("x: 2024-13-45", "line 12: 2024-13-45: reads as timestamp and is none: month"),
        ("x: 2024-13-45", "month must be in 1..12; put it in quotes if it is text"),
        ("x:\n- !!bool maybe", "line 13: maybe: reads as bool and is none; put it in quotes"),
        ("x: !!timestamp noon", "line 12: noon: reads as timestamp and is none; put"),
        ("x: !!int ''", "line 12: : reads as int and is none"),
        ("x: !!float [1]", "line 12: not YAML (expected a scalar node"),
        (f"x: {'9' * 5000}", f"line 12: {'9' * 39}…: reads as int and is none; put"),
        (f"x: *{'a' * 500}", f"line 12: not YAML (found undefined alias '{'a' * 56}…)"),
        (f"x: 0x{'f' * 4000}", f"line 12: 0x{'f' * 37}…: reads as int and is none; put"),
        ("x: !!binary aaaa", "line 12: aaaa: reads as binary and is none; put"),
        (f"x: !!bool {'ab ' * 50}", f"line 12: {'ab ' * 13}…: reads as bool"),
        ('a: "b"\nx: "\\UFFFFFFFF"', "line 13: not YAML (an escaped character or a number that"),
        ('a: "b"\nx: "\\U00110000"', "line 13: not YAML (an escaped character or a number that"),
        ("x: &a [*a]", "fields lie in each other too deep, or an alias"),
        (f"x: {'[' * 900}{']' * 900}", "fields lie in each other too deep"),
        ("3: 4", "line 12: 3: a field's name is text"),
        ("x: a\0b", "line 12: not YAML (the character U+0000 cannot be in it)"),
    ],
)
def test_what_yaml_trips_over_is_one_line(more, said):
    with pytest.raises(SpecError) as caught:
        parse_spec(f"{SMALL}{more}\n", "small.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_list_emptied_by_its_mistake_is_no_second_mistake():
    with pytest.raises(SpecError) as caught:
        parse_spec("name: t\nmodels:\n  - {name: m, source: a, cells: []}\n", "t.yaml")
    assert str(caught.value).startswith("t.yaml, line 3: models[0].cells: ")
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize(
    ("cells", "fields"),
    [
        (["precison: F16", "precision: Q2_K, sorce: b"], ["precison", "sorce"]),
        (["precision: Q9", "precision: F16", "precision: F16"], ["precision", "precision"]),
        (["precision: F16, baseline: Q3", "precision: Q2_K, baseline: Q3"], ["baseline"] * 2),
    ],
)
def test_every_mistake_is_named(cells, fields):
    listed = "\n".join(f"      - {{{one}}}" for one in cells)
    with pytest.raises(SpecError) as caught:
        parse_spec(f"name: t\nmodels:\n  - name: m\n    source: a\n    cells:\n{listed}\n", "t")
    named = [line.split(": ")[1].rpartition(".")[2] for line in caught.value.lines]
    assert named == fields


@pytest.mark.parametrize(
    ("precision", "quantize", "made"),
    [
        ("GPTQ-INT8", "gptq", "GPTQ-INT4"),
        ("GPTQ-INT4", "gptq-int8", "GPTQ-INT8"),
        ("AWQ-INT8", "awq", "AWQ-INT4"),
        ("W4A16", "awq", "AWQ-INT4"),
    ],
)
def test_a_label_is_what_its_quantizer_makes(precision, quantize, made):
    def cells(label):
        named = SMALL.replace("AWQ-INT4, source: some/model-awq", f"{label}, quantize: {quantize}")
        spec = parse_spec(named, "small.yaml")
        return [cell.key for _, cell in spec.cells(spec.models[0])]

    said = f"line 8: .*{quantize} cannot be {precision}; it makes {made}$"
    with pytest.raises(SpecError, match=said):
        cells(precision)
    assert cells(made)[1] == f"{made}@transformers"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("tasks: {refusal: {instrument: eye}}", "line 12: tasks.refusal.instrument: unknown"),
        ("analysis: {quality: eye}", "line 12: analysis.quality: eye is no measure"),
        ("analysis: {instrument: eye}", "line 12: analysis.instrument: eye reads no refusals"),
        ("tasks: {more: [{task: bqq}]}", "line 12: tasks.more[0]: bqq: unknown task 'bqq'"),
        ("prompts: {source: none.jsonl}", "line 12: prompts: none.jsonl: cannot be read"),
        (
            "tasks: {multiple_choice: {source: none.jsonl}}",
            "line 12: tasks.multiple_choice.source: none.jsonl: cannot be read",
        ),
    ],
)
def test_a_mistake_that_the_plan_finds_names_its_line_too(more, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = SMALL.replace("some/model-awq", "none").replace("some/model", "organism:llama-s")
    with pytest.raises(MechprobeError) as caught:
        make_plan(parse_spec(f"{text}{more}\n", "small.yaml"), local_only=True)
    assert str(caught.value).startswith(f"small.yaml, {said}")


@pytest.mark.parametrize("field", ["refusal: {prompts", "multiple_choice: {questions"])
def test_more_than_a_plan_can_draw_is_refused_at_once(field):
    model = "{name: m, source: s, cells: [{precision: FP16}]}"
    text = f"name: n\nmodels: [{model}]\ntasks:\n  {field}"
    with pytest.raises(SpecError, match="less than or equal to 100000"):
        parse_spec(f"{text}: 10000000}}\n", "s.yaml")
