"""A finished factorial in a notebook: its rates, labels, interactions and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import RunDirectoryError
from mechprobe.experiments.integrity import PAGE, require_recorded
from mechprobe.experiments.reporting import FACTORIAL
from mechprobe.experiments.rundir import read_json
from mechprobe.report.factorial import factorial_report, verdict
from mechprobe.report.factorial_sections import factorial_sections

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class OpenedFactorial:
    """What `mechprobe factorial` left; see docs/factorial.md."""

    path: Path

    @cached_property
    def document(self) -> dict[str, Any]:
        """factorial.json."""
        require_recorded(self.path, FACTORIAL)
        return read_json(self.path / FACTORIAL)

    @property
    def name(self) -> str:
        """Of the spec."""
        return str(self.document["name"])

    @cached_property
    def rates(self) -> pd.DataFrame:
        """One row per cell, temperature and kind of request: ASR, over-refusal, SSI, DFR."""
        import pandas as pd

        return pd.DataFrame(self.document["rates"])

    @cached_property
    def interactions(self) -> pd.DataFrame:
        """One row per quantized cell: the GEE, and CDI at each temperature as `cdi_T`."""
        import pandas as pd

        rows = []
        for row in self.document["interactions"]:
            cdi = {f"cdi_{point['temperature']:g}": point["value"] for point in row["cdi"]}
            who = {name: row[name] for name in ("model", "cell", "baseline")}
            rows.append({**who, **row["gee"], **cdi})
        return pd.DataFrame(rows)

    @cached_property
    def labels(self) -> pd.DataFrame:
        """One row per answer and judge; prompts go by their ids.

        Raises:
            RunDirectoryError: labels.parquet cannot be read.
        """
        import pandas as pd

        file = self.path / "labels.parquet"
        require_recorded(self.path, file.name)
        try:
            return pd.read_parquet(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            reason = (str(error).splitlines() or [""])[0]
            raise RunDirectoryError(f"{file}: cannot be read as Parquet: {reason}") from error

    def figures(self) -> Mapping[str, Figure]:
        """The figures of the report by name, to show or to change."""
        parts = factorial_sections(self.document)
        return {drawn.name: drawn.figure for part in parts for drawn in part.figures}

    def report(self) -> str:
        """The report as one HTML page, made anew."""
        return factorial_report(self.document).html

    def __repr__(self) -> str:
        """The verdict in a line."""
        return f"<mechprobe factorial {self.name!r}: {verdict(self.document)} ({self.path})>"

    def _repr_html_(self) -> str:
        """For Jupyter: the verdict, the rates of harmful prompts, where the whole report is."""
        shown = self.rates
        if len(shown):
            mine = shown["request"] == "harmful"
            shown = shown.loc[mine, ["model", "cell", "temperature", "asr", "ssi", "dfr", "k"]]
        table = shown.to_html(escape=True, index=False, na_rep="", float_format="{:.3f}".format)
        page = escape(str(self.path / PAGE))
        return (
            f"<h3>{escape(self.name)}: {escape(verdict(self.document))}</h3>{table}"
            f"<p>Whole report: <code>{page}</code></p>"
        )
