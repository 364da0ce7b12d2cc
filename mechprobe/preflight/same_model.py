"""Whether two checkpoints can be forms of one model, by their headers or graphs."""

from __future__ import annotations

from dataclasses import dataclass

from mechprobe.errors import ArchitectureError, VocabularyError
from mechprobe.models.gguf_names import ARCHITECTURES


@dataclass(frozen=True, slots=True)
class Shape:
    """What every form of a model has in common; empty or None where it is unknown."""

    source: str
    architecture: str
    """transformers' `model_type`, or llama.cpp's name."""
    layers: int | None
    width: int | None
    """Of the residual stream."""
    rows: int | None
    """Of the embedding: the vocabulary and its padding."""
    gguf: bool = False
    """Whether the architecture is llama.cpp's name."""

    @property
    def family(self) -> str | None:
        """One name for both formats, None where a `model_type` has no known counterpart.

        llama and mistral are one graph, and one architecture of llama.cpp.
        """
        if self.gguf:
            return self.architecture
        rows = (row for row in ARCHITECTURES if self.architecture in row.model_types)
        return next((row.name for row in rows), None)

    def __str__(self) -> str:
        """Architecture, depth and width."""
        if self.layers is None or self.width is None:
            return self.architecture
        return f"{self.architecture} ({self.layers} layers of width {self.width})"


def require_same_model(cell: Shape, baseline: Shape, *, logits: bool = False) -> None:
    """Refuse a baseline that is another model than what is compared with it.

    Args:
        cell: The checkpoint.
        baseline: What it is compared with.
        logits: Whether whole rows of logits are compared, which must then be equally long.

    Raises:
        ArchitectureError: Another architecture, depth or width.
        VocabularyError: Rows of logits of another length.
    """
    families: tuple[str | None, str | None] = (cell.family, baseline.family)
    if None in families and cell.gguf == baseline.gguf:
        families = (cell.architecture or None, baseline.architecture or None)
    pairs = (families, (cell.layers, baseline.layers), (cell.width, baseline.width))
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        raise ArchitectureError(
            f"{cell.source} is {cell} and its baseline {baseline.source} {baseline}: another "
            "model; name a checkpoint of the same model"
        )
    if logits and None not in (cell.rows, baseline.rows) and cell.rows != baseline.rows:
        raise VocabularyError(
            f"{cell.source} has {cell.rows} rows of logits and its baseline {baseline.source} "
            f"{baseline.rows}; name a baseline of the same vocabulary"
        )
