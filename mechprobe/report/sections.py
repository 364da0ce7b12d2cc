"""Which sections a report has, in their order."""

from __future__ import annotations

from mechprobe.report.agreement import agreement_section
from mechprobe.report.gaps import gaps_section
from mechprobe.report.probes import separators_section
from mechprobe.report.quality import quality_section
from mechprobe.report.screening import rtsi_section
from mechprobe.report.section import Material, Section
from mechprobe.report.signs import pairings_section

_ALWAYS = (
    quality_section,
    agreement_section,
    pairings_section,
    rtsi_section,
    separators_section,
    gaps_section,
)


def sections(material: Material) -> list[Section]:
    """Every section of the material; what was not measured says so in its place."""
    from mechprobe.report.factorial_sections import factorial_sections

    found = [make(material) for make in _ALWAYS]
    return [*found, *(factorial_sections(material.factorial) if material.factorial else [])]
