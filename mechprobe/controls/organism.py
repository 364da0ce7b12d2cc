"""Planted controls of organisms: a 16-bit parent that refuses, and a level of it that complies."""

from __future__ import annotations

from mechprobe.controls.control import Control

CONTROLS: tuple[Control, ...] = ()
