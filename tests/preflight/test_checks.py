"""Each check of docs/checks.md: the line and exit code 2, before a weight is loaded."""

import json
import re
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from mechprobe.preflight import CHECKS

MODEL = "organism:llama-s"
ROOT = Path(__file__).parents[2]
TOKENS = ("<s>", "</s>", *"abcdef")
TABLE = (ROOT / "docs" / "checks.md").read_text()
SPEC = """
name: s
models:
  - name: m
    source: "organism:llama-s"
    cells: [{{precision: FP16}}, {{{cell}}}]
prompts: {{source: organism}}
tasks: {{refusal: {{prompts: 2}}}}
probes: {{run: [entropy], fit: 2, select: 2, evaluate: 2}}
"""


def spec(tmp_path, cell):
    path = tmp_path / "s.yaml"
    path.write_text(SPEC.format(cell=cell))
    return path


def problems(command, path, *options):
    """What `run --plan --json` finds, as (check, where, said), and the same by `run`."""
    code, lines, out = command("run", path, "--plan", "--json", *options)
    found = json.loads(out)["problems"]
    assert code == 2
    assert len(lines) == len(found)
    assert command("run", path, *options)[:2] == (2, lines)
    return [(one["check"], one["where"], one["said"]) for one in found]


def test_the_table_of_the_docs_is_the_registry():
    rows = re.findall(r"^\| `([a-z ]+)` \| (.+?) \| (.+?) \| `(.+?)::(.+?)` \|$", TABLE, re.M)
    assert {name: said for name, said, *_ in rows} == dict(CHECKS)
    for _, _, _, file, test in rows:
        assert f"\ndef {test}(" in (ROOT / file).read_text()


def test_fields_and_names_beside_files(command, tmp_path):
    """What is wrong with a spec does not hide what is wrong with the files it names."""
    path = spec(tmp_path, "precision: Q8_0, quantise: Q8_0")
    path.write_text(
        path.read_text() + "  # and a model whose file is missing\n" + "threads: none\n"
    )
    text = path.read_text().replace(
        "prompts:", "  - {name: n, source: runs/typo.gguf, cells: [{precision: F16}]}\nprompts:", 1
    )
    path.write_text(text)
    found = problems(command, path)
    assert [(check, where) for check, where, _ in found] == [
        ("spec", ""), ("spec", ""), ("source", "prompts/n, n/F16@llama.cpp"),
    ]  # fmt: skip
    for (_, _, said), part in zip(
        found, ("cells[1].quantise: unknown field", "threads: ", "no such file"), strict=True
    ):
        assert part in said
    # the other cells of a model are looked at, and one model alone too
    path.write_text(SPEC.format(cell="precision: Q8_0, fuu: 1}, {precision: F16, source: no.gguf"))
    assert [check for check, _, _ in problems(command, path)] == ["spec", "source"]
    path.write_text("name: s")
    assert [(check, said) for check, _, said in problems(command, path)] == [
        ("spec", f"{path}, line 1: models: this field is missing")
    ]
    factorial = tmp_path / "f.yaml"
    factorial.write_text(
        "name: f\nharmful: {source: nowhere.csv}\njudges: [{judge: rulez}]\nsamples: 1\n"
        "models: [{name: n, source: runs/typo.gguf, cells: [{precision: F16}]}]\n"
    )
    code, lines, out = command("factorial", factorial, "--json")
    assert (code, len(lines)) == (2, 4)
    assert [one["check"] for one in json.loads(out)["problems"]] == [
        "spec", "prompts", "scorer", "source",
    ]  # fmt: skip
    factorial.write_text(factorial.read_text().replace("judges: [{judge: rulez}]\n", ""))
    lines = command("factorial", factorial)[1]
    assert "judges: this field is missing" in lines[0]
    assert sum("typo.gguf" in line for line in lines) == 1


def test_a_probe_names_all_that_its_request_lacks(command, tmp_path):
    template = tmp_path / "none.jinja"
    code, lines, _ = command(
        "probe", "all", "-m", MODEL, "--prompts", "nowhere.jsonl", "--questions", "no.jsonl",
        "--refusal-token", "qqqq", "--refusal-token", "id:99999", "--layer", "77",
        "--expect", "Q4_0", "--out", tmp_path / "out",
    )  # fmt: skip
    said = "\n".join(lines)
    assert code == 2
    for part in ("nowhere.jsonl", "no.jsonl", "qqqq", "99999", "77", "Q4_0 was asked for"):
        assert part in said
    assert len(lines) == 6
    code, lines, _ = command(
        "probe", "all", "-m", MODEL, "--chat-template", template, "--prompts", "nowhere.jsonl"
    )
    assert (code, len(lines)) == (2, 2)


LACKING = (
    "-m", "organism:lama-s", "--prompts", "no.jsonl", "--chat-template", "no.jinja",
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ("generate", *LACKING),
            ("no organism is called", "no.jsonl", "no.jinja"),
        ),
        (
            ("capture", *LACKING),
            ("no organism is called", "no.jsonl", "no.jinja"),
        ),
        (
            ("quantize", "organism:lama-s", "--to", "Q9", "--calibration", "no.txt"),
            ("no organism is called", "GGUF level 'Q9' is unknown", "no.txt"),
        ),
    ],
)  # fmt: skip
def test_a_command_names_all_its_mistakes(command, arguments, parts):
    code, lines, _ = command(*arguments, "--device", "cudda", "--out", "/proc/none/out")
    assert (code, len(lines)) == (2, 5)
    for part in (*parts, "cudda", "/proc/none/out"):
        assert sum(part in line for line in lines) == 1, (part, lines)


def test_a_typo_in_a_path(command, tmp_path):
    said = "runs/typo.gguf: no such file or folder; a file on the hub is hf:org/repo/file.gguf"
    line = f"mechprobe: {said}"
    probe = ("probe", "all", "--model", "runs/typo.gguf", "--baseline", MODEL)
    assert command(*probe)[:2] == (2, [line])
    assert command("generate", "-m", "runs/typo.gguf", "--prompts", "builtin")[:2] == (2, [line])
    assert command("capture", "-m", "runs/typo.gguf")[:2] == (2, [line])
    assert command("quantize", "runs/typo.gguf", "--to", "Q4_1", "-o", "x")[:2] == (2, [line])
    # a name under a folder of this machine is a path, and is not asked of the hub
    (tmp_path / "models").mkdir()
    ((check, where, said),) = problems(command, spec(tmp_path, "precision: BF16, source: models/x"))
    assert (check, where) == ("source", "m/BF16@transformers")
    assert said.startswith("models/x: no such file or folder here")


def test_a_truncated_file(command, variant):
    path = variant("cut") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    code, lines, _ = command("probe", "entropy", "-m", path.parent, "--baseline", MODEL)
    assert code == 2
    assert re.match(r"mechprobe: .*cut/model\.safetensors: truncated: ", *lines)


def test_a_false_label(command, gguf_file, tmp_path):
    path = gguf_file("m-F16.gguf", level="Q4_1", stored="Q4_1")
    said = f"{path}: F16 was asked for, the tensors are Q4_1 (5.00 bits per weight)"
    probe = ("probe", "entropy", "-m", path, "--expect", "F16")
    assert command(*probe)[1][0] == f"mechprobe: {said}"
    found = problems(command, spec(tmp_path, f"precision: F16, source: {path}"))
    assert ("precision", "m/F16@llama.cpp", said) in found


def test_an_architecture_without_a_graph(command, gguf_file):
    path = gguf_file("m.gguf", arch="mamba")
    code, lines, _ = command("probe", "entropy", "-m", path)
    assert code == 2
    assert lines[0].startswith(f"mechprobe: {path}: architecture 'mamba' cannot be read densely")
    code, lines, _ = command("probe", "entropy", "-m", path, "--kernel", "native")
    assert (code, "the native kernel of a GGUF is llama.cpp" in lines[0]) == (2, True)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"model_type": "qwen2"}, "qwen2 (8 layers of width 256)"),
        ({"hidden_size": 512}, "llama (8 layers of width 512)"),
        ({"num_hidden_layers": 4}, "llama (4 layers of width 256)"),
    ],
)
def test_a_baseline_of_another_model(command, variant, config, shape):
    other = variant("other", **config)
    own = "llama (8 layers of width 256)"
    rest = "another model; name a checkpoint of the same model"
    code, lines, _ = command("probe", "all", "-m", MODEL, "--baseline", other)
    assert (code, lines) == (
        2, [f"mechprobe: {MODEL} is {own} and its baseline {other} {shape}: {rest}"],
    )  # fmt: skip


def test_a_baseline_of_another_architecture_in_a_gguf(command, gguf_file, tmp_path):
    path = gguf_file("m.gguf", arch="qwen2", level="Q8_0", stored="Q8_0", tokens=TOKENS)
    found = problems(command, spec(tmp_path, f"precision: Q8_0, source: {path}"))
    said = f"{path} is qwen2 (8 layers of width 256) and its baseline {MODEL} llama (8 layers of "
    assert [(check, where) for check, where, _ in found] == [("same model", "m/Q8_0@llama.cpp")]
    assert found[0][2].startswith(said)


def test_a_vocabulary_of_another_model(command, variant, gguf_file, tmp_path):
    """The same shape; only what the ids mean differs."""
    other = variant("other")
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    names = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)[-2:]
    first, second = (content["model"]["vocab"][name] for name in names)
    content["model"]["vocab"] |= {names[0]: second, names[1]: first}
    path.write_text(json.dumps(content))
    code, lines, _ = command("probe", "entropy", "-m", other, "--baseline", MODEL)
    assert code == 2
    assert re.fullmatch(
        rf"mechprobe: .*other: id {first} is .* and .* to the tokenizer of {MODEL}, which renders "
        "the prompts; it belongs to another model",
        *lines,
    )
    file = gguf_file("m.gguf", level="Q8_0", stored="Q8_0", tokens=TOKENS)
    path = spec(tmp_path, f"precision: Q8_0, source: {file}")
    path.write_text(path.read_text().replace("[entropy]", "[]"))
    ((check, where, said),) = problems(command, path)
    assert (check, where) == ("vocabulary", "m/Q8_0@llama.cpp")
    assert said.startswith(f"{file}: holds 8 tokens and the tokenizer 1024")


def test_refusal_tokens_that_the_vocabulary_lacks(command, tmp_path):
    path = spec(tmp_path, "precision: F16, quantize: F16")
    named = "[entropy], refusal_tokens: [I, 'id:1024', 'id:x']"
    path.write_text(path.read_text().replace("[entropy]", named))
    assert problems(command, path) == [
        ("vocabulary", "m", "refusal token 1024: this vocabulary has 1024 tokens"),
        ("vocabulary", "m", "refusal token 'id:x': id:N takes the number of a token"),
    ]


@pytest.mark.parametrize("to", ["awq", "gptq", "Q4_0"])
def test_a_cell_that_cannot_be_made(command, gguf_file, tmp_path, to):
    """From a GGUF that cannot be dequantized, as from a folder that is quantized."""
    path = gguf_file("m.gguf", arch="mamba", level="Q8_0", stored="Q8_0")
    label = {"awq": "AWQ-INT4", "gptq": "GPTQ-INT4"}.get(to, to)
    code, (said,), _ = command("quantize", path, "--to", to, "-o", "x")
    assert (code, said.startswith(f"mechprobe: {path}: ")) == (2, True)
    cell = f"precision: {label}, source: {path}, quantize: {to}"
    assert said.removeprefix("mechprobe: ") in [
        one for check, _, one in problems(command, spec(tmp_path, cell)) if check == "quantizer"
    ]


def test_a_layer_beyond_the_last(command, tmp_path):
    said = f"layer 8: {MODEL} has layers 0 to 7"
    probe = ("probe", "refusal-direction", "-m", MODEL, "--layer", 8)
    assert command(*probe)[:2] == (2, [f"mechprobe: {said}"])
    path = spec(tmp_path, "precision: F16, quantize: F16")
    path.write_text(path.read_text().replace("[entropy]", "[refusal_direction], layer: 8"))
    cells = "m/FP16@transformers, m/F16@llama.cpp"
    assert [one for one in problems(command, path) if one[0] == "layer"] == [("layer", cells, said)]


def test_a_device_that_is_not_there(command):
    code, lines, _ = command("probe", "entropy", "-m", MODEL, "--device", "tpu9")
    assert (code, lines) == (
        2, ["mechprobe: device 'tpu9': torch knows cpu, cuda, cuda:0, …"],
    )  # fmt: skip


def test_prompt_files_that_are_not_there(command, tmp_path):
    path = spec(tmp_path, "precision: BF16, source: nowhere")
    text = path.read_text().replace("prompts: {source: organism}", "prompts: {source: gone.jsonl}")
    more = "more: [{task: reference, source: lost.jsonl, instrument: rouge_l}]"
    path.write_text(text.replace("{refusal: {prompts: 2}}", f"{{refusal: {{prompts: 2}}, {more}}}"))
    found = problems(command, path)
    assert [(check, where) for check, where, _ in found] == [
        ("prompts", ""), ("prompts", ""), ("source", "m/BF16@transformers"),
    ]  # fmt: skip
    assert "gone.jsonl" in found[0][2]
    assert "lost.jsonl" in found[1][2]
    code, lines, _ = command("probe", "entropy", "-m", MODEL, "--prompts", "gone.jsonl")
    assert (code, "gone.jsonl: cannot be read" in lines[0]) == (2, True)


def test_judges_and_scorers_that_are_not_there(command, tmp_path):
    path = spec(tmp_path, "precision: F16, quantize: F16")
    judges = 'judges: ["rules:eye", "hf:./classifier"]'
    path.write_text(path.read_text().replace("{prompts: 2}", f"{{prompts: 2}}, {judges}"))
    found = problems(command, path)
    assert [check for check, *_ in found] == ["scorer", "scorer"]
    assert "tasks.judges[0]" in found[0][2]
    assert "./classifier: no such file or folder" in found[1][2]
    code, lines, _ = command("probe", "entropy", "-m", MODEL, "--instrument", "eye")
    assert (code, "unknown refusal instrument 'eye'" in lines[0]) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("probe", "entropy", "-m", MODEL),
        ("generate", "-m", MODEL, "--prompt", "a"),
        ("capture", "-m", MODEL, "--prompt", "a"),
        ("quantize", MODEL, "--to", "Q4_1"),
        ("run", "demo"),
        ("factorial", "factorial-demo"),
    ],
)
def test_an_output_that_cannot_be_written(command, tmp_path, arguments):
    (tmp_path / "file").touch()
    code, lines, _ = command(*arguments, "--out", "file/out")
    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith("mechprobe: file/out: cannot be used (not a directory); mend that")


def test_every_mistake_of_a_probe_is_named(command):
    arguments = ("-m", MODEL, "--layer", 9, "--instrument", "eye", "--baseline", "./none")
    code, lines, _ = command("probe", "refusal-direction", *arguments)
    assert (code, len(lines)) == (2, 3)


def test_headers_are_those_of_the_loaded_models(organism):
    """Against the tensors themselves."""
    from mechprobe.models.source import resolve_source
    from mechprobe.preflight import read_header

    shape = read_header(resolve_source(MODEL)).shape
    weights = load_file(organism / "model.safetensors")
    assert (shape.rows, shape.width) == weights["model.embed_tokens.weight"].shape
    assert sum(name.endswith("input_layernorm.weight") for name in weights) == shape.layers
