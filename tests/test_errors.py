"""Errors say what to do."""

import pytest

from mechprobe.errors import MechprobeError, MissingExtraError, require


def test_a_missing_extra_ends_with_the_line_that_installs_it():
    with pytest.raises(MissingExtraError, match=r"pip install 'mechprobe\[quant\]'$"):
        require("surely_not_installed_anywhere", "quant")


def test_require_returns_the_module_and_hides_no_other_failure(tmp_path, monkeypatch):
    assert require("json", "dev").loads("1") == 1
    (tmp_path / "half_broken.py").write_text("import surely_not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        require("half_broken", "quant")
    assert not isinstance(caught.value, MechprobeError)
