import dataclasses
import json
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from mechprobe.activations.plan import CapturePlan
from mechprobe.activations.store import MANIFEST, ActivationStore
from mechprobe.errors import HookNameError, NumericsError, StoreError

NAMES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post")
ORDER = (4, 2, 0, 6, 1, 3, 5)


def make_plan(**changes):
    plan = CapturePlan(
        model="m" * 64,
        kernel="dense",
        compute="float32",
        prompts="p" * 64,
        points=NAMES,
        positions=(-2, -1),
        dtype="float32",
        order=ORDER,
        batch_size=2,
        shard_rows=3,
        prefix=0,
        interventions="",
    )
    return dataclasses.replace(plan, **changes)


def values(name: str) -> np.ndarray:
    """Prompt i is all i + 100 times point, plus its place in the row."""
    base = np.arange(7, dtype=np.float32)[:, None, None] + 100 * NAMES.index(name)
    return base + np.arange(10, dtype=np.float32).reshape(2, 5) / 16


def fill(path, plan=None, shards=None):
    store = ActivationStore.create(path, plan or make_plan())
    for shard in range(store.plan.n_shards) if shards is None else shards:
        rows = list(store.plan.shard_prompts(shard))
        store.write(shard, {name: values(name)[rows] for name in NAMES}, batch_size=2)
    return store


def test_reads_in_the_prompts_own_order(tmp_path):
    fill(tmp_path / "s")
    store = ActivationStore.open(tmp_path / "s")
    assert (store.names, store.positions, store.n_prompts) == (NAMES, (-2, -1), 7)
    assert store.complete and len(store.finished_shards()) == 3
    for name in NAMES:
        assert name in store
        np.testing.assert_array_equal(store[name], values(name))
        assert store[name].dtype == np.float32
        np.testing.assert_array_equal(store.read(name, [5, 0, 5, -1]), values(name)[[5, 0, 5, 6]])
    assert store.read(NAMES[0], []).shape == (0, 2, 5)
    with pytest.raises(IndexError):
        store.read(NAMES[0], [7])
    store.verify()


def test_a_shard_says_what_it_holds(tmp_path):
    store = fill(tmp_path / "s")
    with h5py.File(store.shard_path(1)) as file:
        assert file.attrs["model"].decode() == "m" * 64
        assert file.attrs["prompts"].decode() == "p" * 64
        assert file.attrs["schema"] == 1
        assert file.attrs["rows"].tolist() == [6, 1, 3]
        for name in NAMES:
            assert file[name].fletcher32
            assert file[name].attrs["hook"].decode() == name
            assert file[name].attrs["positions"].tolist() == [-2, -1]
            assert file[name].attrs["dtype"].decode() == "float32"


def test_same_numbers_give_the_same_bytes_at_another_time(tmp_path):
    fill(tmp_path / "a")
    time.sleep(1.1)  # HDF5 times count in seconds
    fill(tmp_path / "b")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_unknown_name_has_near_matches(tmp_path):
    store = fill(tmp_path / "s")
    with pytest.raises(HookNameError, match=r"did you mean blocks\.1\.hook_resid_post"):
        store["blocks.1.hook_resid_pots"]


def test_another_capture_in_the_folder_is_refused_by_name(tmp_path):
    fill(tmp_path / "s")
    with pytest.raises(StoreError, match=r"another capture \(its model differ\)"):
        ActivationStore.create(tmp_path / "s", make_plan(model="x" * 64))
    with pytest.raises(StoreError, match=r"its points, positions differ"):
        ActivationStore.create(tmp_path / "s", make_plan(points=(NAMES[0],), positions=(-1,)))
    np.testing.assert_array_equal(ActivationStore.open(tmp_path / "s")[NAMES[0]], values(NAMES[0]))


def test_a_shard_of_another_capture_is_refused(tmp_path):
    store = fill(tmp_path / "s", shards=[0, 1])
    other = fill(tmp_path / "t", make_plan(prompts="q" * 64))
    store.shard_path(2).write_bytes(other.shard_path(2).read_bytes())
    with pytest.raises(StoreError, match=r"shard-00002\.h5: belongs to another capture"):
        ActivationStore.create(tmp_path / "s", make_plan())
    store.shard_path(2).write_bytes(store.shard_path(1).read_bytes())
    with pytest.raises(StoreError, match=r"shard-00002\.h5: belongs to another capture"):
        store.verify()


def test_an_unfinished_store_reads_what_it_has(tmp_path):
    store = fill(tmp_path / "s", shards=[0])
    assert not store.complete
    np.testing.assert_array_equal(store.read(NAMES[1], [0, 4]), values(NAMES[1])[[0, 4]])
    with pytest.raises(StoreError, match=r"shard-00001\.h5: this shard is missing"):
        store[NAMES[1]]


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_truncated_shard_is_named(tmp_path, keep):
    store = fill(tmp_path / "s")
    whole = store.shard_path(1).read_bytes()
    cut = int(keep * len(whole)) if isinstance(keep, float) else keep
    store.shard_path(1).write_bytes(whole[:cut])
    with pytest.raises(StoreError, match=r"shard-00001\.h5: truncated or corrupt"):
        store.verify()
    with pytest.raises(StoreError, match=r"shard-00001\.h5"):
        ActivationStore.create(tmp_path / "s", make_plan())


def test_no_flipped_byte_goes_unnoticed(tmp_path):
    """Anywhere in the file: an error that names the shard, or bytes that nobody reads."""
    store = fill(tmp_path / "s")
    path = store.shard_path(0)
    whole = path.read_bytes()
    rows = list(store.plan.shard_prompts(0))
    draw = np.random.default_rng(0)
    noticed = 0
    for offset in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[offset] ^= int(draw.integers(1, 256))
        path.write_bytes(broken)
        try:
            store.check_shard(0)
            for name in NAMES:
                np.testing.assert_array_equal(store.read(name, rows), values(name)[rows])
        except StoreError as error:
            assert "shard-00000.h5" in str(error)
            noticed += 1
    assert noticed > 50


def test_a_flipped_byte_in_the_numbers_is_always_noticed(tmp_path):
    store = fill(tmp_path / "s")
    path = store.shard_path(0)
    needle = values(NAMES[1])[list(store.plan.shard_prompts(0))].tobytes()
    whole = path.read_bytes()
    start = whole.index(needle)
    for offset in range(start, start + len(needle)):
        broken = bytearray(whole)
        broken[offset] ^= 1 << (offset % 8)
        path.write_bytes(broken)
        with pytest.raises(StoreError, match=r"shard-00000\.h5: truncated or corrupt"):
            store.read(NAMES[1], [ORDER[0]])


def test_float16_rounds_or_refuses(tmp_path):
    store = ActivationStore.create(tmp_path / "s", make_plan(dtype="float16", points=NAMES[:1]))
    block = np.full((3, 2, 5), 1.0 + 2**-12, dtype=np.float32)
    store.write(0, {NAMES[0]: block}, batch_size=2)
    found = store.read(NAMES[0], [ORDER[0]])
    assert found.dtype == np.float16 and (found == np.float16(1.0)).all()
    block[1, 0, 3] = -7e4
    with pytest.raises(NumericsError, match=r"blocks\.0\.hook_resid_pre: 7e\+04 does not fit"):
        store.write(1, {NAMES[0]: block}, batch_size=2)
    assert store.finished_shards() == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_not_stored(tmp_path, bad):
    store = ActivationStore.create(tmp_path / "s", make_plan())
    arrays = {name: values(name)[:3].copy() for name in NAMES}
    arrays[NAMES[1]][2, 1, 0] = bad
    with pytest.raises(NumericsError, match=r"blocks\.1\.hook_resid_post: NaN or infinity"):
        store.write(0, arrays, batch_size=2)


def test_smaller_batches_are_noted(tmp_path):
    store = fill(tmp_path / "s", shards=[0, 1])
    assert store.notes == ()
    rows = list(store.plan.shard_prompts(2))
    store.write(2, {name: values(name)[rows] for name in NAMES}, batch_size=1)
    assert store.notes == ("out of memory: 1 of 3 shards ran with batches of 1",)


def test_folders_that_are_no_store(tmp_path):
    with pytest.raises(StoreError, match="no activation store here"):
        ActivationStore.open(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(StoreError, match="unreadable plan"):
        ActivationStore.open(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"schema": 99}))
    with pytest.raises(StoreError, match="schema 1"):
        ActivationStore.open(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "shard-00000.h5").write_bytes(b"x")
    with pytest.raises(StoreError, match="shards and no"):
        ActivationStore.create(tmp_path, make_plan())


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "s").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        ActivationStore.create(tmp_path / "s", make_plan())


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    pytest.importorskip("resource")
    code = f"""
import resource, signal
import numpy as np
from mechprobe.activations.store import ActivationStore
from mechprobe.errors import StoreError
store = ActivationStore.open({str(tmp_path / "s")!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
try:
    store.write(0, {{n: np.ones((3, 2, 5000), np.float32) for n in store.names}}, batch_size=2)
except StoreError as error:
    print(error)
"""
    ActivationStore.create(tmp_path / "s", make_plan())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "shard-00000.h5: cannot be written" in done.stdout
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [MANIFEST]


def test_reading_needs_no_torch(tmp_path):
    fill(tmp_path / "s")
    code = (
        "import sys; from mechprobe.activations import ActivationStore; "
        f"print(ActivationStore.open({str(tmp_path / 's')!r})[{NAMES[1]!r}].sum()); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(values(NAMES[1]).sum())


def _elsewhere(store, name):
    """A whole copy of the shard, from which to link."""
    other = fill(store.path / "other").shard_path(0)
    with h5py.File(other, "r+") as file:
        file[name][...] = 7
    return other


def external_link(file, name, store):
    other = _elsewhere(store, name)
    del file[name]
    file[name] = h5py.ExternalLink(str(other), name)


def soft_link(file, name, store):
    del file[name]
    file[name] = h5py.SoftLink("/" + next(each for each in NAMES if each != name))


def hard_link(file, name, store):
    del file[name]
    file[name] = file[next(each for each in NAMES if each != name)]


def group(file, name, store):
    del file[name]
    file.create_group(name)


def _again(file, name, data=None, **how):
    """The array written anew, with its labels."""
    old, labels = file[name][...], dict(file[name].attrs)
    del file[name]
    dataset = file.create_dataset(name, data=old if data is None else data, **how)
    for key, value in labels.items():
        dataset.attrs[key] = value


def unchecksummed(file, name, store):
    _again(file, name)


def unchecksummed_chunks(file, name, store):
    _again(file, name, chunks=True)


def compressed(file, name, store):
    _again(file, name, chunks=True, fletcher32=True, compression="gzip")


def other_type(file, name, store):
    _again(file, name, file[name][...].astype(np.float64), chunks=True, fletcher32=True)


def other_shape(file, name, store):
    _again(file, name, file[name][...][:, :1], chunks=True, fletcher32=True)


def lost_label(file, name, store):
    del file[name].attrs["hook"]


def virtual(file, name, store):
    other, old = _elsewhere(store, name), file[name]
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    layout[...] = h5py.VirtualSource(str(other), name, old.shape)
    labels = dict(old.attrs)
    del file[name]
    dataset = file.create_virtual_dataset(name, layout)
    for key, value in labels.items():
        dataset.attrs[key] = value


def external_storage(file, name, store):
    old = file[name][...]
    (store.path / "raw").write_bytes(old.tobytes())
    labels = dict(file[name].attrs)
    del file[name]
    dataset = file.create_dataset(
        name, old.shape, old.dtype, external=[(str(store.path / "raw"), 0, old.nbytes)]
    )
    for key, value in labels.items():
        dataset.attrs[key] = value


def masked_chunk(file, name, store):
    """The checksum is there, and this chunk's mask says not to look at it."""
    data = (file[name][...] + 1).tobytes()
    file[name].id.write_direct_chunk((0, 0, 0), data, filter_mask=1)


def unwritten_chunk(file, name, store):
    old = file[name]
    shape, dtype, labels = old.shape, old.dtype, dict(old.attrs)
    del file[name]
    dataset = file.create_dataset(name, shape, dtype, chunks=shape, fletcher32=True)
    for key, value in labels.items():
        dataset.attrs[key] = value


@pytest.mark.parametrize(
    "forge",
    [
        external_link, soft_link, hard_link, group, unchecksummed, unchecksummed_chunks, compressed,
        other_type, other_shape, lost_label, virtual, external_storage, masked_chunk,
        unwritten_chunk,
    ],
)  # fmt: skip
def test_numbers_that_no_checksum_of_the_shard_has_seen_are_refused(tmp_path, forge):
    store = fill(tmp_path / "s")
    store.verify()
    with h5py.File(store.shard_path(0), "r+") as file:
        forge(file, NAMES[1], store)
    for read in (store.verify, lambda: store[NAMES[1]], lambda: store.read(NAMES[1], [0])):
        with pytest.raises(
            StoreError, match=r"shard-00000\.h5: truncated or corrupt shard \("
        ) as e:
            read()
        assert "\n" not in str(e.value)
    np.testing.assert_array_equal(store[NAMES[0]], values(NAMES[0]))  # the other one is whole


def test_a_copy_by_another_program_is_refused(tmp_path):
    """In the old format nothing checks the metadata; before a user block anything may stand."""
    for how in ({"libver": "earliest"}, {"libver": ("v110", "v110"), "userblock_size": 512}):
        store = fill(tmp_path / str(how["libver"][0]))
        whole, copy = store.shard_path(0), store.path / "copy.h5"
        with h5py.File(whole) as old, h5py.File(copy, "w", **how) as new:
            for key, value in old.attrs.items():
                new.attrs[key] = value
            for name in NAMES:
                old.copy(name, new)
        copy.replace(whole)
        with pytest.raises(StoreError, match="rewritten by another program"):
            store.verify()


def test_a_shard_of_another_capture_is_not_read(tmp_path):
    store = fill(tmp_path / "s")
    other = fill(tmp_path / "t", make_plan(model="n" * 64))
    store.shard_path(1).write_bytes(other.shard_path(1).read_bytes())
    with pytest.raises(StoreError, match="belongs to another capture"):
        _ = store[NAMES[0]]


@pytest.mark.parametrize("value", [None, "x", [1, 2], h5py.Empty("f")])
def test_a_shard_that_does_not_say_how_it_was_made_is_refused(tmp_path, value):
    store = fill(tmp_path / "s")
    with h5py.File(store.shard_path(0), "r+") as file:
        del file.attrs["batch_size"]
        if value is not None:
            file.attrs["batch_size"] = value
    for read in (lambda: store.notes, store.verify):
        with pytest.raises(StoreError, match=r"shard-00000\.h5: does not say how it was made"):
            read()
