"""A checkpoint's tokenizer and its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.errors import CheckpointError
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

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{source}: no usable tokenizer ({line}); pass tokenizer=FOLDER (--tokenizer)"
        ) from error
    set_chat_template(tokenizer, chat_template)
    return tokenizer


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
