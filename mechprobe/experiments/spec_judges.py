"""Who judges the answers of a run: the part `tasks.judges` and `tasks.second` of a spec."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class JudgeSpec(BaseModel):
    """A judge that reads every answer to a request; a name alone is enough. See docs/judges.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    judge: str
    """`rules`, `rules:INSTRUMENT`, `oracle`, `openai:MODEL@URL` or `hf:CLASSIFIER`."""
    max_tokens: int = Field(default=256, ge=1)
    """Of a reply."""
    temperature: float | None = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Null leaves it to the server."""
    concurrency: int = Field(default=8, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    timeout: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds for one attempt."""
    attempts: int = Field(default=5, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"judge": given} if isinstance(given, str) else given


class SecondJudge(JudgeSpec):
    """A judge that reads a sample, drawn before anybody is asked."""

    per_stratum: int = Field(default=50, ge=1)
    """Items of each task and kind of request, the same ones in every cell."""
    seed: int = 0
