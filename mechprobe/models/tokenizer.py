"""A checkpoint's tokenizer and its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.errors import CheckpointError
from mechprobe.models.foreign import foreign_errors
from mechprobe.textfiles import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(
    source: Path,
    *,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """A folder's tokenizer. One without a chat template is no error before it must render.

    Args:
        source: The folder.
        chat_template: A template in place of the tokenizer's own: a file, or its text.
        trust_remote_code: Allow a tokenizer that is code in the repository.

    Raises:
        CheckpointError: There is none, or it is broken.
    """
    from transformers import AutoTokenizer

    def refuse(said: str) -> CheckpointError:
        return CheckpointError(
            f"{source}: no usable tokenizer ({said}); pass tokenizer=FOLDER (--tokenizer)"
        )

    with foreign_errors(refuse):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        require_usable(tokenizer)
    set_chat_template(tokenizer, chat_template)
    return tokenizer


def require_usable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Use every part of a tokenizer once: damage in a file shows only then.

    Raises:
        Exception: Whatever the part raises.
    """
    special = tokenizer.special_tokens_map
    if wrong := [name for name, value in special.items() if not isinstance(value, str | list)]:
        raise TypeError(f"{wrong[0]} is no text")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        if not isinstance(getattr(tokenizer, name), int | None):
            raise TypeError(f"{name} is no whole number")
    ids = tokenizer("A b.", add_special_tokens=True)["input_ids"]
    tokenizer.decode(ids, skip_special_tokens=True)
    len(tokenizer), tokenizer.convert_ids_to_tokens(ids)


def set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Replace a tokenizer's chat template by a file's text, or by the text itself.

    The name of one of its own templates chooses that one.

    Raises:
        CheckpointError: It reads like a path, and no such file exists.
    """
    if template is None:
        return
    own = tokenizer.chat_template
    if isinstance(own, dict) and template in own:
        tokenizer.chat_template = own[template]
        return
    if "{" not in template:
        path = Path(template).expanduser()
        if not path.is_file():
            raise CheckpointError(f"{template}: no such chat template file")
        template = read_text(path, CheckpointError)
    tokenizer.chat_template = template
