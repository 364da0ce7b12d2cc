"""One reader of JSON, YAML and CSV: what is refused, at which line, and what is not."""

import ast
import json
from pathlib import Path

import pytest

from mechprobe import textfiles
from mechprobe.errors import CheckpointError
from mechprobe.textfiles import MAX_DEPTH, MalformedError, parse_csv, parse_json, parse_yaml

PACKAGE = Path(textfiles.__file__).parent


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('{"a": 1,\n]', 2, "not JSON"),
        ('{"a":\n' + "9" * 20 + "}", 2, "too many digits"),
        ('{"a":\n-' + "9" * 5000 + "}", 2, "too many digits"),
        ("\n" + "[" * 200_000, 2, "nested too deep"),
        ("[" * (MAX_DEPTH + 1) + "\n" + "]" * (MAX_DEPTH + 1), 1, "nested too deep"),
        ('{"a": 1}\n{', 2, "not JSON"),
        ('["a",\n"\\ud83d"]', 2, "half a surrogate pair"),
        ("", 1, "not JSON"),
    ],
)
def test_json_that_does_not_fit_is_one_error_with_its_line(text, line, said):
    with pytest.raises(MalformedError, match=said) as caught:
        parse_json(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "value",
    [2**64 - 1, -(2**63), 1.5, [[[]]], "\U0001f600", {"a": {"b": None}}, "[" * 500],
)
def test_json_that_fits_is_what_was_written(value):
    assert parse_json(json.dumps(value)) == value


def test_json_may_be_just_as_deep_as_the_limit():
    assert json.dumps(parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)).count("[") == MAX_DEPTH


def test_a_field_twice_is_refused_where_rows_are_read():
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(MalformedError, match="'a' is there twice"):
        parse_json('{"a": 1, "a": 2}', unique=True)


def test_half_a_pair_passes_where_its_reader_mends_it():
    assert parse_json('"\\ud83d"', unpaired=True) == "\ud83d"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "line 1: not YAML"),
        ("a: &x [*x]", "an alias"),
        ("a: " + "[" * 3000, "too deep"),
        ("a: 2020-99-99", "line 1: .*reads as timestamp and is none"),
        ("a: " + "9" * 4000, "line 1: .*reads as int and is none"),
        ('a: "\\UFFFFFFFF"', "out of range"),
        ("a: \x07", r"line 1: not YAML \(the character U\+0007"),
        ("? [a]\n: 1", "line 1: not YAML"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
                for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "stand for over 1,000,000 values",
        ),
    ],
)
def test_yaml_that_does_not_fit_is_one_error(text, said):
    with pytest.raises(MalformedError) as caught:
        parse_yaml(text)
    assert __import__("re").search(said, caught.value.at("f.yaml"))


def test_yaml_keeps_aliases_and_merges():
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
    assert parse_yaml("") is None


def test_csv_with_commas_behind_its_lines_has_no_more_columns():
    table = parse_csv("a,rate,,,\n1,2,,,\n")
    assert (table.columns, table.rows) == (("a", "rate"), ({"a": "1", "rate": "2"},))
    assert parse_csv(",a\n0,1\n").columns == ("", "a")  # an index
    for text, place in (("a,,b\n1,,2\n", 2), ("a,,\n1,,2\n", 2), (",,a\n1,2,3\n", 2)):
        with pytest.raises(MalformedError, match=f"column {place} has no name") as caught:
            parse_csv(text)
        assert caught.value.line == 1


def test_csv_with_a_column_named_twice_names_it():
    with pytest.raises(MalformedError, match="line 1: the column 'rate' is named twice"):
        raise MalformedError(_refusal("rate,n,rate\n1,2,3\n"))


def test_csv_rows_have_as_many_fields_as_the_header():
    assert _refusal("a,b\n1,2\n3\n").startswith("t.csv, line 3: as many fields")
    assert _refusal("a,b\n1,2,3\n").startswith("t.csv, line 2: more fields than")
    assert parse_csv("a,b\n3\n", short=True).rows == ({"a": "3", "b": ""},)


def test_csv_lines_are_those_of_the_file():
    table = parse_csv('a,b\n"x\ny",2\n\n3,4\n')
    assert table.lines == (3, 5)
    assert table.rows == ({"a": "x\ny", "b": "2"}, {"a": "3", "b": "4"})


def _refusal(text):
    with pytest.raises(MalformedError) as caught:
        parse_csv(text)
    return caught.value.at("t.csv")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b"nul", b"", b"\x00"])
def test_a_file_that_is_no_object_is_the_callers_error(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"f\.json") as caught:
        textfiles.read_object(tmp_path / "f.json", CheckpointError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_nothing_else_in_the_package_parses_json_or_yaml(path):
    """Text that the package made itself, or got over a pipe from itself, is no file."""
    if path.name == "textfiles.py":
        return
    calls = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    own = {
        "gguf_write.py", "quantize_worker.py", "publish.py", "prompt.py", "suite.py", "summary.py",
        "llamacpp.py", "template_process.py", "template_worker.py",
    }  # fmt: skip
    parsers = {"json.load", "json.loads", "yaml.load", "yaml.safe_load", "csv.DictReader"}
    assert not calls & parsers or path.name in own
