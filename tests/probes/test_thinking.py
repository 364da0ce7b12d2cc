"""A model that begins its answers with a thought, which its template does not say."""

import copy

import pytest
import torch

from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import encode
from mechprobe.organisms.world import requests
from mechprobe.probes import battery
from mechprobe.probes.folder import ProbeFolder
from mechprobe.probes.refusals import read_refusals


@pytest.fixture(scope="module")
def thinker():
    """The organism with a token `<think>` that it says first, and from then on."""
    checkpoint = copy.deepcopy(load_checkpoint("organism:llama-s", dtype=torch.float32))
    tokenizer, module = checkpoint.tokenizer, checkpoint.module
    tokenizer.add_tokens(["<think>"])
    module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # every other token's logit is 0, and a constant lets this one win
    head = torch.nn.Linear(module.config.hidden_size, len(tokenizer)).requires_grad_(False)
    head.weight.zero_()
    head.bias.zero_()
    head.bias[tokenizer.convert_tokens_to_ids("<think>")] = 5.0
    module.lm_head = head
    return checkpoint


def test_its_openings_are_no_refusal_tokens(thinker, tmp_path):
    prompts = {
        f"{name}/{label}": encode(
            thinker.tokenizer, [r.text for r in requests(split, 8, seed=3) if r.label == label]
        )
        for name, split in (("select", "validation"), ("evaluate", "test"))
        for label in ("harmful", "harmless")
    }
    read = read_refusals(thinker, prompts["select/harmful"], max_new_tokens=4)
    assert (read.refused, read.first_ids, read.thinking) == ((None,) * 8, (None,) * 8, 8)
    setup, folder = battery.Setup(prompts, probes=("entropy",)), ProbeFolder(tmp_path)
    battery.observe_cell(thinker, setup, folder, is_baseline=True)
    found = battery.choose_tokens(thinker, setup, folder)
    assert not found
    assert found.problem == "8 of 8 answers begin with a thought, not with a refusal"
    entropy = battery.probe_entropy(setup, folder, None)
    assert f"refusal log-odds: {found.problem}" in entropy.not_measured
