"""How tests/models/data/autoawq-llama was made: a random Llama, quantized by AutoAWQ itself.

Run in an environment with `pip install -c constraints.txt 'mechprobe[autoawq]'`:

    python tests/models/data/make_autoawq.py tests/models/data/autoawq-llama
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mechprobe.models.provenance import QUANTIZED
from mechprobe.models.quantize import quantize


def main(out: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).to(torch.float16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:  # off-centre rows, so that zero points differ
                weight.add_(0.03 * torch.randn(weight.shape[0], 1))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    draw = random.Random(0)
    lines = ["a" + "".join(draw.choices("bcdefghij klmnop", k=60)) for _ in range(32)]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        quantize(
            folder,
            "awq",
            out,
            calibration=lines,
            calibration_name="random letters",
            writer="autoawq",
            group_size=32,
        )
    record = json.loads((out / QUANTIZED).read_text())
    record["source"] = "random Llama (make_autoawq.py)"
    (out / QUANTIZED).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
