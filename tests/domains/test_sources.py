"""Every file format, and what is said of a file that is wrong."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from counterpoint.config import FileSource
from counterpoint.domains.sources import read_file
from counterpoint.errors import DomainError

ROWS = [{"q": "één, \u2028 two", "a": "1"}, {"q": 'say "hi"\nnow', "a": "2"}, {"q": "", "a": "3"}]


def source(path, **settings):
    return FileSource(type="file", path=str(path), **settings)


def as_jsonl(path):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")


def as_json(path):
    path.write_text(json.dumps(ROWS), encoding="utf-8")


def as_csv(path):
    import csv

    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["q", "a"])
        writer.writeheader()
        writer.writerows(ROWS)


def as_parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS = {"jsonl": as_jsonl, "json": as_json, "csv": as_csv, "parquet": as_parquet}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("packed", [False, True])
def test_formats(tmp_path, kind, packed):
    path = tmp_path / f"rows.{kind}"
    WRITERS[kind](path)
    if packed:
        (path := tmp_path / f"rows.{kind}.gz").write_bytes(gzip.compress((tmp_path / f"rows.{kind}").read_bytes()))
    assert read_file(source(path), None) == ROWS
    assert read_file(source(path), 2) == ROWS[:2]
    assert read_file(source(path, format=kind), 1) == ROWS[:1]


def test_json_rows_inside_a_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"meta": 1, "data": {"rows": ROWS}, "other": []}))
    assert read_file(source(path, field="data.rows"), None) == ROWS
    with pytest.raises(DomainError, match=r"expected a list of rows, found dict. Set source.field to one of: other\."):
        read_file(source(path), None)
    with pytest.raises(DomainError, match=r"source.field: no 'rws' in 'data'; the keys are: rows"):
        read_file(source(path, field="data.rws"), None)


def wrong(path, **settings):
    with pytest.raises(DomainError) as caught:
        read_file(source(path, **settings), None)
    return str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").touch()
    assert "train.json: there is no such file; did you mean 'train.jsonl'?" in wrong(tmp_path / "train.json")
    assert "and no folder" in wrong(tmp_path / "nowhere" / "x.csv")
    assert "is a folder. Give one file." in wrong(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "x.jsonl:2: cannot be read (not valid JSON: Expecting value, "),
        ("x.jsonl", b'{"a": 1}\n\n[1]\n', "x.jsonl:3: a row must be a JSON object, found list."),
        (
            "x.json",
            b'[{"a": 1},\n {"a" 2}]',
            "x.json: cannot be read (not valid JSON: Expecting ':' delimiter, line 2, column 7).",
        ),
        ("x.json", b"[1]", "x.json: row 1: a row must be a JSON object, found int."),
        ("x.json", b"3", "x.json: expected a list of rows, found int."),
        ("x.csv", b"a,b\n1,2\n3\n", "x.csv:3: the row has not the 2 values of the first line."),
        ("x.csv", b"a,b\n1,2,3\n", "x.csv:2: the row has not the 2 values of the first line."),
        ("x.csv", b'a,b\n"1"x,2\n', "x.csv:2: cannot be read (not valid CSV: "),
        ("x.parquet", b"nothing of the kind", "x.parquet: cannot be read (Parquet magic bytes not found"),
        ("x.jsonl.gz", b"not packed", "x.jsonl.gz:1: cannot be read (Not a gzipped file"),
        ("x.jsonl", b'{"a": "\xff"}', "x.jsonl:1: cannot be read (not text in UTF-8"),
        ("x.txt", b"", "the suffix '.txt' tells no format (known: .jsonl, .ndjson, .json, .csv, .parquet)."),
    ],
)
def test_malformed_files_name_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in wrong(tmp_path / name)


def test_a_truncated_gzip(tmp_path):
    data = gzip.compress(json.dumps(ROWS[0]).encode() * 1000)
    (tmp_path / "x.jsonl.gz").write_bytes(data[: len(data) // 2])
    assert "cannot be read (Compressed file ended" in wrong(tmp_path / "x.jsonl.gz")
