"""The step that renders and tokenizes a model's prompts, the first of its steps in every run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from mechprobe.errors import MechprobeError
from mechprobe.experiments.rendered import template_digest
from mechprobe.experiments.sources import find_source
from mechprobe.experiments.spec import ModelSpec
from mechprobe.experiments.steps import Step
from mechprobe.models.gguf_tokenizer import READING


def prompts_step(
    model: ModelSpec, action: str, drawn: Mapping[str, Any], *, local_only: bool = False
) -> Step:
    """The step `prompts/<model>`; without a digest where the tokenizer cannot be had.

    Args:
        model: Whose tokenizer and chat template render them.
        action: What draws and writes them, as `module:function` of this package.
        drawn: What the prompts of every model are drawn from, and `rows`, the digest of all.
        local_only: Download no tokenizer.

    Raises:
        TemplateError: The file with the chat template cannot be read.
    """
    params: dict[str, Any] = {
        "model": model.name,
        "tokenizer": model.tokenizer or model.source,
        "revision": model.revision,
        "chat_template": model.chat_template,
        "chat_template_digest": template_digest(model.chat_template),
        **drawn,
    }
    with contextlib.suppress(MechprobeError):  # `spec_problems` says so, before anything starts
        source, params["digest"] = find_source(
            params["tokenizer"], model.revision, local_only=local_only
        )
        if source.kind == "gguf":
            params["reading"] = READING
    return Step(
        name=f"prompts/{model.name}",
        action=f"mechprobe.experiments.{action}",
        params=params,
        outputs=(f"prompts/{model.name}.jsonl",),
        label="prompts",
        version=3,
    )
