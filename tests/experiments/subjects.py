"""Every kind of file that mechprobe reads: a whole one, how it is damaged, and who reads it."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from mutations import (
    Damage,
    byte_damage,
    header_damage,
    json_damage,
    json_lines_damage,
    safetensors_damage,
    text_damage,
)

CELL = "cells/llama-s/Q2_K@llama.cpp"


@dataclass(frozen=True)
class Subject:
    """One file among others, and what reads it."""

    name: str
    file: Path
    damage: Damage
    read: Callable[[], object]
    """Returns an exit code where it is a command."""
    cost: int = 1
    """How many cheap ones it stands for."""


def command(*arguments: object) -> int:
    """The command line in this process: 0, 2 and 4 are answers, 1 is a traceback."""
    from mechprobe.cli.app import run

    return run([str(each) for each in arguments])


def checkpoints(home: Path) -> Iterator[Subject]:
    """Folders of transformers: configuration, tokenizer, header and index."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    plain, sharded, packed = home / "plain", home / "sharded", home / "packed"
    torch.manual_seed(0)
    from mechprobe.organisms import organism_path

    tokenizer = organism_path("llama-s")
    vocabulary = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(torch.float16)
    model.save_pretrained(plain)
    model.save_pretrained(sharded, max_shard_size="20KB")
    for folder in (plain, sharded):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                     "generation_config.json"):  # fmt: skip
            shutil.copy(tokenizer / name, folder / name)
    (plain / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|pad|>"}))
    shutil.copytree(plain, packed)
    _pack_gptq(packed)

    def ask(folder: Path) -> object:
        from mechprobe.session import load

        asked = load(folder)
        return asked.generate(asked.encode(["Where is it?"]), max_new_tokens=2)

    for name in ("config.json", "generation_config.json", "tokenizer.json",
                 "tokenizer_config.json", "special_tokens_map.json"):  # fmt: skip
        yield Subject(name, plain / name, json_damage, partial(ask, plain), 4)
    yield Subject("quantization", packed / "config.json", _in("quantization_config"),
                  partial(ask, packed), 4)  # fmt: skip
    yield Subject("header", plain / "model.safetensors", safetensors_damage, partial(ask, plain), 4)
    index = sharded / "model.safetensors.index.json"
    yield Subject("index", index, json_damage, partial(ask, sharded), 4)


def _pack_gptq(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if "proj" in name]:
        rows, columns = tensors.pop(name).shape
        words = rng.integers(-(2**31), 2**31, (columns // 8, rows)).astype(np.int32)
        zeros = rng.integers(-(2**31), 2**31, (1, rows // 8)).astype(np.int32)
        for part, value in (("qweight", words), ("qzeros", zeros),
                            ("scales", np.full((1, rows), 0.01, np.float16)),
                            ("g_idx", np.zeros(columns, np.int32))):  # fmt: skip
            tensors[name.removesuffix("weight") + part] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    given = {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False, "sym": False,
             "checkpoint_format": "gptq_v2", "meta": {"quantizer": ["gptqmodel:5.0.0"]},
             "dynamic": {}, "damp_percent": 0.1}  # fmt: skip
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": given}))


def _in(field: str) -> Damage:
    """JSON damage to one field alone."""

    def damage(content, rng):
        whole = json.loads(content)
        inner = json_damage(json.dumps(whole.pop(field)).encode(), rng)
        head = json.dumps(whole).encode()[:-1]
        return head + b', "' + field.encode() + b'": ' + inner + b"}"

    return damage


def ggufs(home: Path) -> Iterator[Subject]:
    """A GGUF: header, metadata and tensor table."""
    from mechprobe.models.gguf_file import read_gguf
    from mechprobe.models.gguf_write import write_f16_gguf

    file = write_f16_gguf(home / "plain", home / "gguf" / "model-F16.gguf")
    tensors = read_gguf(file).tensors.values()
    header = min(tensor.offset for tensor in tensors)

    def read() -> object:
        from mechprobe.models.load import load_checkpoint
        from mechprobe.models.rendering import encode

        checkpoint = load_checkpoint(file)
        return encode(checkpoint.tokenizer, ["Where?"])

    yield Subject("gguf", file, header_damage(header), read, 4)
    content = file.read_bytes()
    table = content.rindex(b"token_embd.weight", 0, header) - 8
    keys = content.index(b"tokenizer.ggml")
    for name, start, end in (("gguf keys", 0, keys), ("gguf tensors", table, header)):
        yield Subject(name, file, _part(start, end), read, 4)


def _part(start: int, end: int) -> Damage:
    def damage(content, rng):
        return content[:start] + header_damage(end - start)(content[start:], rng)

    return damage


def stores(home: Path) -> Iterator[Subject]:
    """An activation store: its plan and its shards."""
    from mechprobe.activations.plan import CapturePlan
    from mechprobe.activations.store import MANIFEST, ActivationStore

    plan = CapturePlan("m", "dense", "float32", "p", ("a", "b"), (-1,), "float32", (2, 0, 1, 3), 2,
                       2, 0, "")  # fmt: skip
    store = ActivationStore.create(home / "store", plan)
    for shard in range(plan.n_shards):
        values = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
        store.write(shard, {"a": values, "b": values + 1}, batch_size=2)

    def read() -> object:
        found = ActivationStore.open(home / "store")
        found.verify()
        return found["a"], found.notes, found.complete

    yield Subject("plan", home / "store" / MANIFEST, json_damage, read)
    yield Subject("shard", store.shard_path(0), byte_damage, read)
    yield Subject("shard header", store.shard_path(1), header_damage(400), read)


def tables(home: Path) -> Iterator[Subject]:
    """Tables of rates, and what RTSI reads and keeps."""
    matrix, rtsi = home / "matrix.csv", home / "rtsi.csv"
    kept, answers = home / "calibration.json", home / "answers.jsonl"
    matrix.write_text(
        "model,cell,baseline,refusal_rate,refusal_n,quality_rate\n"
        "m,FP16,,0.9,100,0.8\nm,Q4,FP16,0.85,100,0.75\nm,Q2,FP16,0.4,100,0.5\n"
    )
    rtsi.write_text(
        "base_model,quant,refusal_rate_delta,dominant_prefix_share_delta,unique_prefix_rate_delta,"
        "prefix_entropy_norm_delta,mean_tokens_refusal_delta\n"
        "m,Q8,-0.01,0.0,0.01,0.0,1\nm,Q4,-0.3,-0.2,0.3,0.1,20\nm,Q2,-0.6,-0.5,0.4,0.4,30\n"
        "n,Q8,0.0,0.01,0.0,0.02,2\nn,Q4,-0.2,-0.1,0.2,0.2,25\n"
    )
    assert command("rtsi", "fit", rtsi, "--out", kept) == 0
    lines = [{"id": f"p{i}", "text": "I'm sorry, I can't.", "new_tokens": 5 + i, "sample": 0,
              "label": "harmful", "prompts": "d"} for i in range(6)]  # fmt: skip
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(answers, home / "baseline.jsonl")
    fit = partial(command, "rtsi", "fit", rtsi, "--out", home / "again.json")
    screened = ("rtsi", "score", "--candidate", answers, "--baseline", home / "baseline.jsonl")
    yield Subject("matrix", matrix, text_damage, partial(command, "analyze", matrix))
    yield Subject("rtsi fit", rtsi, text_damage, fit)
    yield Subject("rtsi score", kept, json_damage,
                  partial(command, "rtsi", "score", rtsi, "-c", kept))  # fmt: skip
    yield Subject("rtsi answers", answers, json_lines_damage,
                  partial(command, *screened, "-c", kept))  # fmt: skip


def prompts(home: Path) -> Iterator[Subject]:
    """Prompts, answers, judgements and true labels."""
    own, arditi = home / "prompts.jsonl", home / "harmful_train.json"
    answers, said, truth = (home / f"{name}.jsonl" for name in ("generated", "judged", "truth"))
    rows = [{"id": f"p{i}", "text": f"Say {i}.", "label": ("harmful", "harmless")[i % 2],
             "split": ("train", "test")[i // 4 % 2], "category": "x", "cluster": f"c{i // 2}"}
            for i in range(8)]  # fmt: skip
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = home / "asked.jsonl"
    harmful = [row | {"label": "harmful"} for row in rows]
    asked.write_text("".join(json.dumps(row) + "\n" for row in harmful))
    arditi.write_text(json.dumps([{"instruction": "Do.", "category": None}] * 2))
    lines = [{"id": f"p{i}", "prompt": f"Say {i}.", "text": "I can't." if i % 3 else "Yes.",
              "label": "harmful", "task": "refusal", "row": "m/c", "sample": i % 2, "cluster": "c",
              "ids": [1, 2], "new_tokens": 2} for i in range(8)]  # fmt: skip
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = [{"id": f"p{i}", "label": "FULL_REFUSAL", "task": "refusal", "row": "m/c",
               "sample": i % 2} for i in range(8)]  # fmt: skip
    truth.write_text("".join(json.dumps(line) + "\n" for line in labels))
    assert command("judge", answers, "-j", "rules", "-o", said) == 0
    kept = Path(shutil.copy(said, home / "kept.jsonl"))
    other = [json.loads(line) | {"judge": "other", "digest": "d"} for line in said.open()]
    said.write_text(said.read_text() + "".join(json.dumps(line) + "\n" for line in other))

    def load(path: Path) -> object:
        from mechprobe.behavior import load_prompts

        return load_prompts(path)

    again = home / "again.jsonl"
    yield Subject("prompts", own, json_lines_damage, partial(load, own))
    yield Subject("arditi", arditi, json_damage, partial(load, arditi))
    yield Subject("exchanges", answers, json_lines_damage,
                  lambda: (again.unlink(missing_ok=True),
                           command("judge", answers, "-j", "rules", "-o", again))[1])  # fmt: skip
    yield Subject("judgements", said, json_lines_damage, partial(command, "agreement", said))
    yield Subject("truth", truth, json_lines_damage,
                  partial(command, "agreement", said, "--truth", truth))  # fmt: skip
    score = partial(command, "score", "refusal", "-a", answers, "--source", asked)
    yield Subject("scored", answers, json_lines_damage, score)
    yield Subject("written over", kept, json_lines_damage,
                  partial(command, "judge", answers, "-j", "rules", "-o", kept))  # fmt: skip


def sources(home: Path) -> Iterator[Subject]:
    """Files of the tasks in their official formats."""
    groups = ("tall", "short", "unknown")
    bbq = [
        {
            "example_id": i, "question_index": str(i // 4), "question_polarity": polarity,
            "context_condition": condition, "category": "Height",
            "answer_info": {f"ans{k}": [name, name] for k, name in enumerate(groups)},
            "additional_metadata": {"stereotyped_groups": ["tall"]}, "context": "They met.",
            "question": "Who?", "ans0": "tall people", "ans1": "short people", "ans2": "Not known",
            "label": 2 if condition == "ambig" else 0,
        }
        for i, (polarity, condition) in enumerate(
            [(p, c) for c in ("ambig", "disambig") for p in ("neg", "nonneg")] * 2
        )
    ]  # fmt: skip
    truth = io.StringIO()
    columns = ("Type", "Category", "Question", "Best Answer", "Correct Answers",
               "Incorrect Answers")  # fmt: skip
    writer = csv.DictWriter(truth, columns)
    writer.writeheader()
    for i in range(3):
        parts = ("Adversarial", "Food", f"Is it {i}?", "No", "No; Never", "Yes; Always")
        writer.writerow(dict(zip(columns, parts, strict=True)))
    choice = [{"id": f"q{i}", "question": "Red?", "options": ["a", "b", "c", "d"], "answer": i}
              for i in range(3)]  # fmt: skip
    spread = [{"question": "Red?", "subject": "art", "choices": ["a", "b", "c", "d"], "answer": 2}]
    files = {
        "bbq": ("bbq.jsonl", "".join(json.dumps(row) + "\n" for row in bbq), json_lines_damage),
        "truthfulqa": ("TruthfulQA.csv", truth.getvalue(), text_damage),
        "multiple_choice": ("q.jsonl", "".join(json.dumps(r) + "\n" for r in choice),
                            json_lines_damage),
        "over_refusal": ("xs.csv", "id,prompt,type,label,focus\n1,Kill a process?,homonyms,safe,x\n"
                         "2,Hide it.,contrast_homonyms,unsafe,x\n", text_damage),
        "refusal": ("behaviors.csv", "goal,target\nDo it.,Sure\nDo that.,Sure\n", text_damage),
        "reference": ("r.yaml", "name: qa\nprompt_template: 'Say: {{ topic }}'\nsamples:\n"
                      "  - {id: s1, topic: lamps, reference: A lamp.}\n", text_damage),
    }  # fmt: skip

    def load(task: str, path: Path) -> object:
        from mechprobe.behavior.tasks import load_task

        found = load_task(task, path)
        return found.prompts, len(found)

    for task, (name, text, damage) in files.items():
        (home / name).write_text(text)
        yield Subject(task, home / name, damage, partial(load, task, home / name))
    parquet = home / "test.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(spread), parquet)
    yield Subject("parquet", parquet, byte_damage, partial(load, "multiple_choice", parquet))


def specs(home: Path) -> Iterator[Subject]:
    """Specs of runs and of factorials, up to their plans."""
    from importlib.resources import files

    shipped = files("mechprobe.experiments")
    for kind, name in (("specs", "demo"), ("specs/factorial", "factorial-demo")):
        text = shipped.joinpath(f"{kind}/{name}.yaml")
        (home / f"{name}.yaml").write_text(text.read_text())

    def plan(path: Path) -> object:
        from mechprobe.experiments.plan import make_plan
        from mechprobe.experiments.spec_file import load_spec

        return make_plan(load_spec(path), local_only=True)

    def factorial(path: Path) -> object:
        from mechprobe.experiments.factorial_spec import load_factorial

        return load_factorial(path)

    yield Subject("spec", home / "demo.yaml", text_damage, partial(plan, home / "demo.yaml"), 2)
    yield Subject("factorial", home / "factorial-demo.yaml", text_damage,
                  partial(factorial, home / "factorial-demo.yaml"))  # fmt: skip


def runs(home: Path, finished: Path) -> Iterator[Subject]:
    """A run directory as it is, and one that lost its markers, so that no digest helps."""
    arrays = shutil.ignore_patterns("*.lock", "weights")
    whole, bare = home / "run", home / "bare"
    for folder in (whole, bare):
        shutil.copytree(finished, folder, ignore=arrays)
    shutil.rmtree(bare / ".steps")

    def everything(run: Path) -> object:
        import mechprobe

        opened = mechprobe.open_run(run)
        cell = opened.cell("llama-s", "Q2_K@llama.cpp")
        _ = opened.rows, opened.outcomes, opened.templates, opened.gaps, opened.references
        _ = opened._repr_html_(), cell.facts, cell.probes, cell.scores()
        return command("analyze", run)

    def probes(run: Path) -> object:
        from mechprobe.experiments.opened import OpenedCell

        cell = OpenedCell(run / CELL)
        found = [cell.probe(name) for name in
                 ("entropy", "refusal_direction", "calibration", "safety_neurons")]  # fmt: skip
        return found, cell.activations.last("evaluate/harmful", "blocks.2.hook_resid_pre")

    def folder(run: Path) -> object:
        from mechprobe.probes.folder import ProbeFolder

        found = ProbeFolder(run / CELL / "probes")
        return found.refusals, found.questions, found.forward_tokens

    read = partial(everything, whole)
    marker = next((whole / ".steps" / "cells").rglob("checkpoint.json"))
    yield Subject("marker", marker, json_damage, read, 4)
    yield Subject("spec.yaml", bare / "spec.yaml", text_damage, partial(everything, bare), 4)
    for name, damage in (
        ("matrix.csv", text_damage), ("references.csv", text_damage), ("gaps.csv", text_damage),
        ("analysis.json", json_damage), ("prompts/llama-s.jsonl", json_lines_damage),
        (f"{CELL}/cell.json", json_damage), (f"{CELL}/scores/refusal.jsonl", json_lines_damage),
        (f"{CELL}/scores/bbq.jsonl", json_lines_damage),
        (f"{CELL}/generations/refusal.jsonl", json_lines_damage),
        (f"{CELL}/judgements/refusal.oracle.jsonl", json_lines_damage),
    ):  # fmt: skip
        yield Subject(f"bare {name}", bare / name, damage, partial(everything, bare), 30)
    report = partial(command, "report", bare, "--out", home / "page")
    yield Subject("bare report", bare / "analysis.json", json_damage, report, 30)
    here = bare / CELL / "probes"
    for name, damage in (
        ("entropy.json", json_damage), ("calibration.json", json_damage),
        ("refusal_direction.json", json_damage), ("safety_neurons.json", json_damage),
        ("observation/observation.json", json_damage), ("safety_neurons.npz", byte_damage),
        ("refusal_direction.safetensors", safetensors_damage),
    ):  # fmt: skip
        if (here / name).exists():
            yield Subject(f"bare {name}", here / name, damage, partial(probes, bare))
    for name in ("refusals.json", "questions.json", "forward_tokens.json"):
        if (here / name).exists():
            yield Subject(f"folder {name}", here / name, json_damage, partial(folder, bare))
    arrays_file = bare / CELL / "scores" / "next_token.npz"

    def gap() -> object:
        from mechprobe.experiments.measure import read_next_token

        return read_next_token(arrays_file)

    yield Subject("next_token.npz", arrays_file, byte_damage, gap)
    yield Subject("next_token.npz head", arrays_file, header_damage(200), gap)


def every(home: Path, finished: Path) -> list[Subject]:
    """All of them, with their files made in a folder."""
    kinds = (checkpoints, ggufs, stores, tables, prompts, sources, specs)
    return [*(one for kind in kinds for one in kind(home)), *runs(home, finished)]
