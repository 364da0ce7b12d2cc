"""Arrays of an `.npz` come back whole, or the file is refused in one line."""

import io
import zipfile

import numpy as np
import pytest

from mechprobe.activations.npz import read_npz
from mechprobe.errors import StoreError


def header(text: str) -> bytes:
    """An array's file with this header and no data."""
    raw = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


def zipped(**members: bytes) -> bytes:
    image = io.BytesIO()
    with zipfile.ZipFile(image, "w") as parts:
        for name, content in members.items():
            parts.writestr(f"{name}.npy", content)
    return image.getvalue()


def test_arrays_come_back(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.eye(3), y=np.array("text"))
    found = read_npz(tmp_path / "a.npz", StoreError)
    np.testing.assert_array_equal(found["x"], np.eye(3))
    assert str(found["y"]) == "text"


def pickled() -> bytes:
    image = io.BytesIO()
    np.savez(image, x=np.array([{}], dtype=object))
    return image.getvalue()


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1024), }"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04", b"no zip", pickled(), zipped(x=b""), zipped(x=header(HUGE)),
        zipped(x=header("{'descr': (")), zipped(x=header("[]")), zipped(x=header("\x00")),
        np.lib.format.magic(1, 0) + b"\x00",
    ],
)  # fmt: skip
def test_damage_is_one_line_and_allocates_nothing(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.npz: damaged \(") as caught:
        read_npz(tmp_path / "a.npz", StoreError)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(StoreError, match="No such file"):
        read_npz(tmp_path / "a.npz", StoreError)
