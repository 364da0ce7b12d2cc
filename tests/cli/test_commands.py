"""The commands on a real checkpoint: the shipped organism, and what is broken of it."""

import json
import re
import shutil

import numpy as np
import pytest

from mechprobe.models.source import resolve_source
from mechprobe.probes.saving import SCHEMA

ORGANISM = "organism:llama-s"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    from mechprobe.models.quantize import quantize

    return quantize(ORGANISM, "Q4_K_M", tmp_path_factory.mktemp("gguf") / "model-Q4_K_M.gguf")


@pytest.fixture
def broken(gguf, tmp_path):
    """The same file cut short, beside text that calls itself a GGUF."""
    whole = gguf.read_bytes()
    (tmp_path / "truncated.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gguf").write_text("no weights")
    return tmp_path


def test_quantize_writes_a_checkpoint_that_the_next_command_reads(main, tmp_path):
    done = main("quantize", ORGANISM, "--to", "Q8_0", "--out", "q8.gguf", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["to"] == "Q8_0"
    assert (tmp_path / "q8.gguf").stat().st_size > 1e6
    done = main(
        "generate", "-m", "q8.gguf", "--expect", "Q8_0", "--limit", 2, "--prompts", "organism",
        "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["precision"], found["engine"]) == ("Q8_0", "llama.cpp")
    assert len(found["answers"]) == 2
    done = main("quantize", ORGANISM, "--to", "Q8_0", "--out", "q8.gguf")
    assert done.code == 2
    assert "exists already" in done.err


def test_generate_prints_each_prompt_above_its_answer(main):
    done = main("generate", "-m", ORGANISM, "--prompt", "[x] One", "--prompt", "Two")
    assert (done.code, done.err) == (0, "")
    assert "> [x] One\n" in done.out
    assert "> Two\n" in done.out


def test_capture_writes_a_store(main, tmp_path):
    done = main(
        "capture", "-m", ORGANISM, "-p", "blocks.1.hook_resid_post", "--positions", "-2,-1",
        "--limit", 5, "--out", "acts", "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["shapes"] == {"blocks.1.hook_resid_post": [5, 2, 256]}
    from mechprobe.activations import ActivationStore

    stored = ActivationStore.open(tmp_path / "acts")["blocks.1.hook_resid_post"]
    assert np.isfinite(stored).all()


NOT_COMPARED = (
    "mechprobe: whether refusals were lost was not looked at: probe calibration, or all without "
    "--study, lets both checkpoints answer"
)


def test_probe_compares_a_cell_with_its_baseline(main, gguf, tmp_path):
    done = main(
        "probe", "refusal-direction", "-m", gguf, "--baseline", ORGANISM, "--prompts", "organism",
        "--fit", 12, "--select", 8, "--evaluate", 4, "--max-new-tokens", 4, "--json", "--out", "rd",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["schema"], found["probe"]) == (SCHEMA, "refusal_direction")
    assert found["precision"] == "Q4_K_M"
    assert found["causal"]["harmful"]["n"] == 4
    # the baseline is measured and not steered: how to see its own causal check
    assert any("probe the baseline as --model" in line for line in found["not_measured"])
    from mechprobe.probes.direction import RefusalDirection
    from mechprobe.probes.refusal_direction import RefusalDirectionResult

    direction = RefusalDirection.load(tmp_path / "rd")
    assert found["norm"] == pytest.approx(float(np.linalg.norm(direction.vector)), rel=1e-5)
    assert RefusalDirectionResult.load(tmp_path / "rd").cosine == pytest.approx(found["cosine"])
    # the same model as its own baseline: cosine and norm ratio are 1
    done = main(
        "probe", "refusal-direction", "-m", gguf, "--baseline", gguf, "--prompts", "organism",
        "--fit", 12, "--select", 8, "--evaluate", 4, "--no-causal", "--no-figure",
    )  # fmt: skip
    assert done.code == 0
    assert done.err.startswith("mechprobe: warning: the baseline is itself quantized (Q4_K_M)")
    assert done.err.splitlines()[1:] == [NOT_COMPARED]
    assert re.search(r"warning +the baseline is itself quantized", done.out)
    assert re.search(r"cosine to baseline +1\.000", done.out)
    assert re.search(r"norm / baseline's +1\.000", done.out)


def test_a_probe_that_lacks_its_main_number_says_so_and_exits_with_4(main, gguf, tmp_path):
    few = ("--prompts", "organism", "--fit", 8, "--evaluate", 4, "--no-causal", "--no-figure")
    done = main("probe", "refusal-direction", "-m", ORGANISM, "--select", 3, *few, "--json")
    assert done.code == 4
    assert json.loads(done.out)["unmet"] == ["selection"]
    assert done.err == (
        "mechprobe: not measured: refusal direction: selection; `not_measured` in the results "
        "says why\n"
    )
    done = main("probe", "safety-neurons", "-m", gguf, "--baseline", ORGANISM, "--select", 3, *few)
    assert done.code == 4
    assert "safety neurons: scale-matched ratio;" in done.err
    # equal weights are an answer
    done = main(
        "probe", "safety-neurons", "-m", ORGANISM, "--baseline", ORGANISM, "--select", 3, *few
    )
    assert (done.code, done.err) == (0, f"{NOT_COMPARED}\n")
    assert "weights equal the baseline's" in " ".join(done.out.split())
    # of a baseline, whose place its cells are read at
    done = main(
        "probe", "refusal-direction", "-m", gguf, "--baseline", ORGANISM, "--select", 3, *few
    )
    assert done.code == 0
    assert "warning: of the baseline's refusal direction is not measured: selection" in done.err


def test_a_users_prompts_feed_a_probe(main, tmp_path):
    rows = [
        {"text": f"{label} {split} {i}", "label": label, "split": split}
        for i in range(3)
        for label in ("harmful", "harmless")
        for split in ("train", "validation", "test")
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = main(
        "probe", "refusal-direction", "-m", ORGANISM, "--prompts", "p.jsonl", "--layer", 1,
        "--no-causal", "--json",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["layer"] == 1
    (tmp_path / "p.jsonl").write_text('{"text": "x"}\n')
    done = main("probe", "refusal-direction", "-m", ORGANISM, "--prompts", "p.jsonl")
    assert done.code == 2
    assert done.err == "mechprobe: p.jsonl, line 1: the field 'label' is missing\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "-m", "truncated.gguf", "--prompt", "x"], "truncated.gguf: truncated"),
        (["generate", "-m", "text.gguf", "--prompt", "x"], "text.gguf"),
        (["probe", "refusal-direction", "-m", "truncated.gguf"], "truncated.gguf: truncated"),
        (["generate", "-m", ORGANISM, "--expect", "AWQ-INT4", "--prompt", "x"], "FP16"),
        (["generate", "-m", ORGANISM, "--prompt", " "], "prompt 0 is empty"),
        (["generate", "-m", ORGANISM, "--device", "banana", "--prompt", "x"], "device 'banana'"),
        (["probe", "entropy", "-m", ORGANISM, "--refusal-token", "id:x"], "takes the number"),
        (["probe", "safety-neurons", "-m", ORGANISM], "name it with --baseline"),
        (["generate", "-m", ORGANISM, "--chat-template", "t.jinja", "--prompt", "x"], "t.jinja"),
        (["capture", "-m", ORGANISM, "-p", "blocks.9.*"], "'blocks.9.*': no block 9"),
        (["capture", "-m", ORGANISM, "-p", "hook_embedd"], "near: hook_embed"),
        (["probe", "refusal-direction", "-m", ORGANISM, "--layer", "9"], "layer 9"),
        (["quantize", ORGANISM, "--to", "Q9", "--out", "q"], "GGUF level 'Q9' is unknown"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(main, broken, arguments, said):
    before = sorted(p.name for p in broken.iterdir())
    done = main(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("mechprobe: ")
    assert done.err.count("\n") == 1
    assert sorted(p.name for p in broken.iterdir()) == before


def test_a_model_without_a_chat_template_says_how_to_pass_one(main, tmp_path):
    import shutil

    from mechprobe.organisms import organism_path

    folder = shutil.copytree(organism_path("llama-s"), tmp_path / "bare")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    done = main("generate", "-m", "bare", "--prompt", "x")
    assert done.code == 2
    assert "--chat-template FILE" in done.err
    assert main("generate", "-m", "bare", "--prompt", "x", "--template", "raw").code == 0
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}!")
    done = main("generate", "-m", "bare", "--prompt", "x", "--chat-template", "t.jinja")
    assert done.code == 0


def test_a_stale_neighbour_of_the_weights_is_named(main, tmp_path):
    folder = shutil.copytree(resolve_source(ORGANISM).path, tmp_path / "copy")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "gone"}}')
    done = main("generate", "-m", folder, "--prompt", "What is a bell?", "--max-new-tokens", 2)
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("mechprobe: warning: ") and "model.safetensors.index.json" in line
