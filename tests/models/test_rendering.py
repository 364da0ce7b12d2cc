"""Prompts become ids the way transformers' own chat template renders them."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.decoders import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mechprobe.errors import ParityError, PromptFileError, TemplateError
from mechprobe.models.rendering import encode, require_parity

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<end><bot>{% endif %}"
)


def _tokenizer(template=CHAT):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<system>", "<end>", "<bot>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def test_ids_equal_transformers_own_rendering():
    tokenizer = _tokenizer()
    prompts = ["open the door", "a longer request, with punctuation!"]
    batch = encode(tokenizer, prompts, system="be kind")
    for text, ids in zip(prompts, batch, strict=True):
        messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": text}]
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert list(ids) == expected
    assert batch.post_instruction == 2  # <end><bot>
    assert "".join(batch.pieces[0]) == "<s><system>be kind<user>open the door<end><bot>"


def _merging(normalizer=None):
    """A tokenizer over whole characters that joins a full stop or a question mark to a newline."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyzNW", *" .?!\n:[]/", "\u2581"})
    vocabulary = {c: i for i, c in enumerate([*letters, ".\n", "?\n", "<s>"])}
    core = Tokenizer(models.BPE(vocabulary, [(".", "\n"), ("?", "\n")]))
    if normalizer is not None:
        core.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def test_a_token_that_the_instruction_may_take_is_not_after_it():
    """Of "\\nbot:" the newline belongs to the question mark; alone it would be a fifth token."""
    tokenizer = _merging()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}\nbot:"
    batch = encode(tokenizer, ["so it is.", "a name"])
    assert batch.pieces[0][-5:] == (".\n", "b", "o", "t", ":")
    assert batch.pieces[1][-5:] == ("\n", "b", "o", "t", ":")
    assert batch.post_instruction == 4


def test_a_space_that_a_text_gets_at_its_beginning_is_not_counted():
    """SentencePiece puts a space before " [/in]" when it stands alone: seven tokens, not six."""
    prepend = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer = _merging(prepend)
    tokenizer.chat_template = "{{ bos_token }}[in] {{ messages[0]['content'] }} [/in]"
    assert len(tokenizer(" [/in]", add_special_tokens=False)["input_ids"]) == 7
    for prompts in (["a name"], ["why is it so?", "do it!"]):
        assert encode(tokenizer, prompts).post_instruction == 6


def test_every_prompt_ends_in_the_tokens_after_the_instruction():
    """Also where a prompt's end takes more of the template than others do."""
    tokenizer = _merging()
    tokenizer.chat_template = "{{ messages[0]['content'] }}.\n"
    assert encode(tokenizer, ["a name", "why"]).post_instruction == 1  # ".\n"
    raw = encode(tokenizer, ["a name", "why"], template="raw")
    assert raw.post_instruction == 1  # nothing follows; the last token stands in


def test_common_prefix_leaves_each_prompt_a_token_of_its_own():
    tokenizer = _tokenizer()
    batch = encode(tokenizer, ["abc", "abd"], system="hi")
    head = encode(tokenizer, ["ab"], system="hi")
    assert batch.common_prefix() == len(head.ids[0]) - 2  # up to "ab", not the template's end
    same = encode(tokenizer, ["abc", "abc"])
    assert same.common_prefix() == len(same.ids[0]) - 1
    raw = encode(tokenizer, ["a", "abc"], template="raw")
    assert raw.common_prefix() == 0  # "a" must keep its only token


def test_digest_names_the_ids_and_parity_refuses_others():
    tokenizer = _tokenizer()
    a, b = encode(tokenizer, ["one"]), encode(tokenizer, ["two"])
    assert a.digest == encode(tokenizer, ["one"]).digest
    require_parity(a.digest, a.digest, "same")
    with pytest.raises(ParityError, match="digests differ"):
        require_parity(a.digest, b.digest, "refusal")


def test_a_beginning_that_has_no_name_is_not_doubled_either():
    """As of a GGUF file that names no BOS, before which llama.cpp puts its default one."""
    tokenizer = _tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    unnamed = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert unnamed.bos_token_id is None
    assert encode(unnamed, ["x"], template="raw").pieces[0] == ("<s>", "x")
    with pytest.raises(TemplateError, match="two BOS"):
        encode(unnamed, ["<s>x"], template="raw")


def test_thinking_is_switched_off_where_the_template_can():
    tokenizer = _tokenizer(CHAT + "{% if not enable_thinking %}<think></think>{% endif %}")
    off, on = (encode(tokenizer, ["x"], thinking=flag) for flag in (False, True))
    assert len(off.ids[0]) > len(on.ids[0])
    assert off.notes == ("thinking=off through the template",)


def test_bad_input_is_one_clear_line():
    with pytest.raises(TemplateError, match=r"no chat template; pass one \(--chat-template FILE\)"):
        encode(_tokenizer(None), ["x"])
    with pytest.raises(TemplateError, match="two BOS"):
        encode(_tokenizer("{{ bos_token }}" + CHAT), ["x"])
    refusing = _tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TemplateError, match="roles must alternate"):
        encode(refusing, ["x"])
    with pytest.raises(PromptFileError, match="no prompts"):
        encode(_tokenizer(), [])
    with pytest.raises(PromptFileError, match="prompt 1 is empty"):
        encode(_tokenizer(), ["x", "  "])
    for wrong, kind in ((3, "int"), (None, "NoneType"), (b"x", "bytes"), (["x"], "list")):
        with pytest.raises(PromptFileError, match=f"^prompt 1 is of type {kind}; "):
            encode(_tokenizer(), ["x", wrong])
    with pytest.raises(TemplateError, match="system prompt"):
        encode(_tokenizer(), ["x"], template="raw", system="s")


def test_select_and_repr_show_the_tokens():
    batch = encode(_tokenizer(), ["one", "two"])
    assert batch.select([1]).texts == ("two",)
    assert "<user> | o | n | e" in repr(batch)
