"""In Python: prompts or a baseline of another model are named before a pass is made."""

import json
from dataclasses import asdict, replace

import pytest

import mechprobe as mp
from mechprobe.errors import ArchitectureError, ParityError, VocabularyError
from mechprobe.models.rendering import EncodedPrompts
from mechprobe.probes.folder import ProbeFolder

STRANGERS = EncodedPrompts(((1, 2, 3), (4, 5, 49_151)), ("a", "b"), ((), ()), 1, "raw")


@pytest.fixture(scope="module")
def model():
    return mp.load("organism:llama-s")


@pytest.fixture
def passes(model):
    """Grows by one with each forward pass."""
    seen = []
    handle = model.module.register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    "use",
    [
        lambda model, out: model.run_with_cache(STRANGERS, "blocks.0.hook_resid_post"),
        lambda model, out: model.generate(STRANGERS, max_new_tokens=1),
        lambda model, out: model.logprobs(STRANGERS),
        lambda model, out: mp.capture(model, STRANGERS, "blocks.0.hook_resid_post", "last", out),
    ],
    ids=["run_with_cache", "generate", "logprobs", "capture"],
)
def test_ids_of_another_tokenizer(model, passes, tmp_path, use):
    said = "prompt 1 holds the token id 49151 and organism:llama-s has 1024 tokens"
    with pytest.raises(VocabularyError, match=said):
        use(model, tmp_path / "store")
    assert passes == []
    assert not (tmp_path / "store").exists()


def test_a_baseline_of_another_model_or_of_other_prompts(model, passes, tmp_path):
    def setup(harmful):
        sets = {"evaluate/harmful": harmful, "evaluate/harmless": ["Say hello.", "Name a tree."]}
        prompts = {name: model.encode(texts) for name, texts in sets.items()}
        return mp.probes.Setup(prompts, probes=("entropy",), study=True)

    mp.probes.run(model, setup(["Do harm.", "Do it."]), tmp_path / "base")
    measured = len(passes)
    with pytest.raises(ParityError, match="probes, evaluate/harmful: prompt digests differ"):
        mp.probes.run(model, setup(["Other.", "Do it."]), tmp_path / "cell", tmp_path / "base")
    facts = ProbeFolder(tmp_path / "base").observation.facts
    assert (facts.architecture, facts.n_layers, facts.width, facts.rows) == ("llama", 8, 256, 1024)
    other = replace(facts, source="smol", n_layers=30, width=576, rows=49_152)
    path = tmp_path / "base" / "observation" / "observation.json"
    path.write_text(json.dumps({"schema": 1, **asdict(other)}))
    said = r"organism:llama-s is llama \(8 layers of width 256\) and its baseline smol llama \(30 l"
    with pytest.raises(ArchitectureError, match=said):
        mp.probes.run(model, setup(["Do harm.", "Do it."]), tmp_path / "cell", tmp_path / "base")
    assert len(passes) == measured
