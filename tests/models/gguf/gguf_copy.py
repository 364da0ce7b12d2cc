"""Copies of GGUF files, with other keys or tensors, by the `gguf` package."""

import gguf
import numpy as np

from mechprobe.models.gguf_file import read_gguf


def copy_gguf(path, out, *, keys=None, tensors=None, architecture=None):
    """Copy a file.

    Args:
        path: The file.
        out: The copy.
        keys: Other values by key; None drops one.
        tensors: Name, data and type of each tensor, in place of the file's. The type may be None
            where the data's says it.
        architecture: Another, whose name replaces the file's own in the keys too.
    """
    keys, reader, own = keys or {}, gguf.GGUFReader(path), read_gguf(path).architecture
    name = architecture or own
    writer = gguf.GGUFWriter(out, name)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", *keys):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        key = field.name.replace(f"{own}.", f"{name}.", 1)
        writer.add_key_value(key, field.contents(), field.types[0], inner)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add |= {str: writer.add_string, list: writer.add_array, type(None): lambda *_: None}
        add[type(value)](key, value)
    own_tensors = ((t.name, t.data, t.tensor_type) for t in reader.tensors)
    for tensor, data, kind in own_tensors if tensors is None else tensors:
        writer.add_tensor(tensor, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
