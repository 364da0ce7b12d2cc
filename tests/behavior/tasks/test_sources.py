import pytest

from mechprobe.behavior.tasks import load_task
from mechprobe.behavior.tasks.sources import local_file, read_table
from mechprobe.errors import PromptFileError

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    "source",
    [
        "hf-dataset:org/name/file.csv",
        "hf-dataset:org/name@main/file.csv",
        "hf-dataset:org/name@0123abc/file.csv",
        f"hf-dataset:org/name@{COMMIT}",
    ],
)
def test_a_data_set_without_a_pinned_commit_is_refused(source):
    with pytest.raises(PromptFileError, match="needs hf-dataset:ORG/NAME@COMMIT/FILE with a full"):
        load_task("bbq", source)


@pytest.mark.parametrize("name", ["refusal", "over_refusal", "bbq", "multiple_choice", "reference"])
def test_offline_and_not_in_the_cache_is_one_clear_line(name, monkeypatch, tmp_path):
    source = f"hf-dataset:org/name@{COMMIT}/data/rows.jsonl"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PromptFileError, match="not in the cache, and the hub is out of") as caught:
        load_task(name, source)
    assert "\n" not in str(caught.value)
    assert source in str(caught.value)


def test_a_file_in_the_hubs_cache_is_read_there(monkeypatch, tmp_path):
    folder = tmp_path / "datasets--org--name" / "snapshots" / COMMIT / "data"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text('{"text": "Howl.", "label": "harmful"}')
    (folder / "rows.csv").write_text("goal,target\nHowl.,x\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for ending in ("jsonl", "csv"):
        source = f"hf-dataset:org/name@{COMMIT}/data/rows.{ending}"
        task = load_task("refusal", source)
        assert (task.prompts, task.source) == (["Howl."], source)
    assert local_file(source) == folder / "rows.csv"


def test_faults_of_files(tmp_path):
    for name, body, message in (
        ("a.txt", b"x", r"not a table; .* \.jsonl, \.ndjson, \.parquet, \.yaml or \.yml$"),
        ("a.jsonl", b'{"a": 1}\n[2]', r"a\.jsonl, line 2: needs an object"),
        ("a.jsonl", b'{}\n{"a": ' + b"9" * 5000 + b"}", "line 2: not JSON: a number has too many"),
        ("a.jsonl", b"{}\n" + b"[" * 200_000, "line 2: not JSON: nested too deep"),
        ("a.json", b'[\n{"a": -' + b"9" * 5000 + b"}]", "line 2: not JSON: a number has too many"),
        ("a.json", b"[\n1,\n" + b'{"a":' * 200_000, "line 3: not JSON: nested too deep"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.json", b"[1]", r"a\.json, item 0: needs an object"),
        ("a.json", b"{\n", r"a\.json, line 2: not JSON"),
        (
            "a.yml",
            b"samples: [{id: 2024-13-45}]",
            r"a\.yml, line 1: .*reads as timestamp",
        ),
        ("a.yaml", b"samples: [!!bool x]", r"a\.yaml, line 1: x: reads as bool and is none"),
        ("a.yaml", b"samples: " + b"[" * 3000, r"a\.yaml: fields lie in each other too deep"),
        ("a.json", b"{}", "needs a JSON array"),
        ("a.csv", b"goal\ncaf\xe9\n", r"not UTF-8 text \(byte 8\)"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(PromptFileError, match=message) as caught:
            read_table(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(PromptFileError, match="cannot be read: no such file"):
        read_table(tmp_path / "none.csv")


def test_quoted_line_breaks_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfgoal,target\n"two\nlines","a ""b"""\nlast,x\n')
    records = read_table(path).records
    assert [r.fields["goal"] for r in records] == ["two\nlines", "last"]
    assert records[0].fields["target"] == 'a "b"'
    assert records[1].where.endswith("a.csv, line 4")
