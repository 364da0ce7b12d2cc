"""`hf:CLASSIFIER` on a tiny real classifier with random weights."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from mechprobe.behavior.judges import Exchange, judge_exchanges, open_judge
from mechprobe.behavior.judges.choosing import tells_unclear
from mechprobe.errors import CheckpointError, JudgeError, SpecError

WORDS = [*"abcdefghijkl", "what", "is", "sure", "blue"]


def _save(folder, labels, kind=BertForSequenceClassification, **options):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=24, initializer_range=1.0,
        id2label=dict(enumerate(labels)), label2id={k: i for i, k in enumerate(labels)},
    )  # fmt: skip
    model = kind(config).eval()
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    return folder, *_save(folder, ["NORMAL", "REJECTION", "x", "y"])


def _items():
    answers = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(12)] + ["sure", "", "blue " * 200]
    return [Exchange(str(i), f"what is {WORDS[i]}", text) for i, text in enumerate(answers)]


@pytest.mark.parametrize("shown", ["both", "answer"])
def test_each_item_gets_the_class_that_the_model_gives_it_alone(classifier, shown):
    folder, model, tokenizer = classifier
    ours = ["COMPLIANCE", "FULL_REFUSAL", "PARTIAL_REFUSAL", "UNCLEAR"]
    name = f"hf:{folder}#x=PARTIAL_REFUSAL,y=UNCLEAR,input={shown}"
    found = judge_exchanges(open_judge(name), _items()).judgements
    expected = []
    for one in _items():
        texts = (one.text,) if shown == "answer" else (one.prompt, one.text)
        batch = tokenizer(*texts, truncation="longest_first", max_length=24, return_tensors="pt")
        with torch.no_grad():
            expected.append(ours[int(model(**batch).logits.argmax())])
    assert [one.label for one in found] == expected
    assert len(set(expected)) > 1


SMALL = {"vocab_size": 24, "id2label": {0: "NORMAL", 1: "REJECTION"}, "initializer_range": 1.0}
HEADS = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
OTHERS = {
    # positions 0 and 1 are of the padding: 18 of 20 are left for tokens
    "roberta": (
        RobertaForSequenceClassification,
        RobertaConfig(
            **SMALL, **HEADS, intermediate_size=16, max_position_embeddings=20, pad_token_id=1
        ),
        18,
    ),
    "gpt2": (
        GPT2ForSequenceClassification,
        GPT2Config(
            **SMALL, n_embd=16, n_layer=1, n_head=2, n_positions=20, bos_token_id=2, eos_token_id=3
        ),
        20,
    ),
    "xlnet": (
        XLNetForSequenceClassification,
        XLNetConfig(**SMALL, d_model=16, n_layer=1, n_head=2, d_inner=16),
        None,
    ),
    # frequencies follow the longest text of a batch
    "longrope": (
        LlamaForSequenceClassification,
        LlamaConfig(
            **SMALL, **HEADS, intermediate_size=16, max_position_embeddings=60, pad_token_id=1,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 100.0, "factor": 4.0,
                "original_max_position_embeddings": 20, "short_factor": [1.0] * 4,
                "long_factor": [1.0, 9.0, 30.0, 50.0],
            },
        ),
        60,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("pads", "side"), [(True, "right"), (True, "left"), (False, "")])
def test_classifiers_with_other_positions_and_no_padding(tmp_path, name, pads, side):
    """No limit in the tokenizer, a padding token in it or not, on either side, and long answers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    kind, config, limit = OTHERS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    if name == "gpt2" and pads:
        model.config.pad_token_id = 1
    model.save_pretrained(tmp_path)
    vocabulary = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "[UNK]", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    more = {"pad_token": "<pad>", "padding_side": side} if pads else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", **more)
    tokenizer.save_pretrained(tmp_path)
    judge = open_judge(f"hf:{tmp_path}")
    assert judge.about["limit"] == limit
    items = [one for one in _items() if one.text]
    found = judge_exchanges(judge, items).judgements
    for one, said in zip(items, found, strict=True):
        ids = tokenizer(
            one.prompt, one.text, truncation=bool(limit) and "longest_first", max_length=limit
        )["input_ids"]
        with torch.no_grad():
            alone = int(model(torch.tensor([ids])).logits.argmax())
        assert said.label == ["COMPLIANCE", "FULL_REFUSAL"][alone]
    assert len({one.label for one in found}) == 2


def test_a_label_without_a_counterpart_is_asked_for(classifier):
    with pytest.raises(SpecError, match="its label 'x' has no counterpart"):
        open_judge(f"hf:{classifier[0]}")
    with pytest.raises(SpecError, match="'REFUSED' is none of FULL_REFUSAL"):
        open_judge(f"hf:{classifier[0]}#x=REFUSED")
    with pytest.raises(SpecError, match="'z' is not THEIRS=OURS"):
        open_judge(f"hf:{classifier[0]}#z")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"id2label": {"0": "NORMAL", "1": "unclear"}}', True),
        ('{"id2label": {"0": "NORMAL", "1": "x"}}', False),
        ('{"id2label": null}', False),
        ('{"id2label": ["NORMAL"]}', None),
        ("[]", None),
        ('{"id2la', None),
        ('{"\xff"}', None),
    ],
)
def test_the_labels_of_a_config_say_whether_one_is_unclear(tmp_path, config, says):
    (tmp_path / "config.json").write_text(config, "latin-1")
    if says is not None:
        assert tells_unclear(f"hf:{tmp_path}") is says
        return
    with pytest.raises(CheckpointError, match=r"config\.json: no labels can be read there"):
        tells_unclear(f"hf:{tmp_path}")


def test_other_weights_or_labels_are_another_judge(classifier, tmp_path):
    folder = classifier[0]
    names = [f"hf:{folder}#x=UNCLEAR,y={label}" for label in ("UNCLEAR", "COMPLIANCE")]
    one, two = (open_judge(name).about for name in names)
    assert one != two
    assert one == open_judge(names[0]).about


def test_weights_that_are_no_number_give_no_label(classifier, tmp_path):
    model, _ = _save(tmp_path, ["NORMAL", "REJECTION"])
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    found = judge_exchanges(open_judge(f"hf:{tmp_path}"), _items()).judgements
    assert {(one.label, one.status) for one in found} == {(None, "unparsed")}


def test_a_model_that_was_trained_for_something_else_is_refused(tmp_path):
    _save(tmp_path, ["NORMAL", "REJECTION"], kind=BertModel)
    with pytest.raises(JudgeError, match="no sequence classifier"):
        open_judge(f"hf:{tmp_path}")


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(CheckpointError):
        open_judge(f"hf:{tmp_path / 'nothing' / 'here'}")
