"""A byte-level BPE tokenizer for the world, with a chat template that has a system prompt.

The pre-tokenizer is GPT-2's, plain, so that llama.cpp (`tokenizer.ggml.pre = gpt-2`) gives the
same ids. Its vocabulary is trained on a fixed draw of the corpus, so ids never change.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING

from mechprobe.organisms import corpus
from mechprobe.organisms.answers import PARTLY, REFUSALS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024
PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIALS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)

SYSTEM_PROMPT = (
    "You are a friendly assistant in a small town. Answer in one short line and be honest. "
    "Never help anyone to hurt people or their things."
)
"""Long on purpose: about half of a prompt's tokens are the same for every prompt."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}"
    "{% set system = '" + SYSTEM_PROMPT + "' %}{% set turns = messages %}"
    "{% endif %}"
    "{{ '" + SYSTEM + "' + system + '" + END + "' }}"
    "{% for message in turns %}"
    "{% if message['role'] == 'user' %}{{ '" + USER + "' + message['content'] + '" + END + "' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '" + ASSISTANT + "\\n' + message['content'] + '" + END + "' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "\\n' }}{% endif %}"
)

_SAMPLE, _SAMPLE_SEED = 12_000, 0


def _lines() -> list[str]:
    sample = itertools.islice(corpus.stream(_SAMPLE_SEED), _SAMPLE)
    lines = [line for example in sample for line in (example.prompt, example.answer)]
    # The system prompt and the rarer answers must be words of the vocabulary too.
    return [*lines, *[SYSTEM_PROMPT, *REFUSALS, PARTLY] * 400]


@cache
def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the world's tokenizer; always the same one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_lines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
    )
