"""The header reader against the `gguf` package's own, and every way a file can be broken."""

import struct

import gguf
import pytest

from mechprobe.errors import CheckpointError
from mechprobe.models.gguf_file import read_gguf


def test_reads_what_the_gguf_package_reads(tiny_gguf):
    path = tiny_gguf("llama", "Q4_K_M")
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for key, field in fields.items():
        assert ours.metadata[key] == field.contents(), key
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert (found.type, found.nbytes) == (tensor.tensor_type.name, tensor.n_bytes)
        assert ours.raw(found).tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize("keep", [0, 3, 20, 500, 5000, -1])
def test_truncation_is_one_line(tiny_gguf, tmp_path, keep):
    whole = tiny_gguf().read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError) as raised:
        read_gguf(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    assert any(word in message for word in ("truncated", "empty", "not a GGUF"))


def test_every_cut_of_the_header_is_noticed(tiny_gguf, tmp_path):
    file = read_gguf(tiny_gguf())
    whole = tiny_gguf().read_bytes()
    end = min(t.offset for t in file.tensors.values())
    path = tmp_path / "m.gguf"
    for keep in range(1, end, 37):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError):
            read_gguf(path)


@pytest.mark.parametrize(
    ("at", "layout", "value", "message"),
    [
        (0, "4s", b"GGML", "not a GGUF file"),
        (4, "<I", 99, "version 99 is not supported"),
        (4, ">I", 3, "is not supported"),
        (8, "<Q", 1 << 40, "truncated or corrupt"),
        (16, "<Q", 1 << 20, "truncated or corrupt"),
        (24, "<Q", 1 << 60, "truncated or corrupt"),
    ],
)
def test_corrupt_headers(tiny_gguf, tmp_path, at, layout, value, message):
    content = bytearray(tiny_gguf().read_bytes())
    struct.pack_into(layout, content, at, value)
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def test_missing_file_and_split_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_gguf(tmp_path / "none.gguf")
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="one of 3 parts; join them first"):
        read_gguf(tmp_path / "part.gguf")
