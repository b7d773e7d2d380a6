"""Rows that no friend wrote: refused with file and line, or read; the same of what ``counterpoint score`` is given."""

import csv
import datetime
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from counterpoint.cli.score import read_rows
from counterpoint.config import FileSource, parse_config
from counterpoint.domains import load_domains
from counterpoint.domains.prompts import prompt_lengths
from counterpoint.domains.sources import read_file
from counterpoint.errors import DomainError, RewardError
from counterpoint.models import load_tokenizer
from hostile import as_json, damaged, mutated, survey

ROWS = [
    {"prompt": f"{i}+{i}=", "answer": str(2 * i), "choices": ["a", "b"], "meta": {"a": [1, {"b": 2}]}} for i in range(8)
]
GOOD = b'{"prompt": "x", "answer": "1"}\n'


def message(path):
    with pytest.raises(DomainError) as caught:
        read_file(FileSource(type="file", path=str(path)), None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"z":' + b"[" * 900 + b"]" * 900 + b"}", "nested more than 64 deep"),
        (b'{"answer": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"prompt": "\\ud800"}', "not text in UTF-8"),
        (b'{"prompt": "\xff"}', "not text in UTF-8"),
        (b'{"prompt": ', "not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, reason):
    (tmp_path / "x.jsonl").write_bytes(GOOD * 400 + line + b"\n" + GOOD)
    assert f"x.jsonl:401: cannot be read ({reason}" in message(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(GOOD * 400 + line + b"\n" + GOOD))
    assert f"x.jsonl.gz:401: cannot be read ({reason}" in message(tmp_path / "x.jsonl.gz")


def test_pairs_of_surrogates_are_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\\ud83d\\ude00"}\n')
    assert read_file(FileSource(type="file", path=str(tmp_path / "x.jsonl")), None) == [{"prompt": "\U0001f600"}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_packed_files_that_are_torn_or_wrong_inside(tmp_path, kind):
    path = tmp_path / f"x.{kind}.gz"
    packed = gzip.compress(written(ROWS * 500, kind))
    for content in (packed[: len(packed) // 2], packed[:60] + b"\xff" * 40 + packed[100:], b"\x1f\x8b", b"no gzip"):
        path.write_bytes(content)
        assert f"{path}" in message(path)


def test_bad_csv_and_parquet(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,2\n3,\xff\n")
    assert "x.csv:3: cannot be read (not text in UTF-8" in message(tmp_path / "x.csv")
    late = pyarrow.array([2**62] * 3, type=pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"a": late}), tmp_path / "x.parquet")
    assert "x.parquet: cannot be read (" in message(tmp_path / "x.parquet")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/tmp"])
def test_only_files_are_read(path):
    assert path in message(path)


def test_a_template_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr("counterpoint.domains.prompts._LIMIT", 0.2)
    tokenizer = load_tokenizer(parse_config({"domains": {"math": {"source": "pocket"}}}).model)
    tokenizer.chat_template = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    with pytest.raises(DomainError, match=r"chat template refuses the prompt: it does not end within"):
        prompt_lengths([[{"role": "user", "content": "x"}]], tokenizer)


@pytest.mark.parametrize("template", ["{{ messages.x.y }}", "{{ 1 / 0 }}", "{{ 'x' + 1 }}", "{% if %}"])
def test_a_template_that_fails_is_told(template):
    tokenizer = load_tokenizer(parse_config({"domains": {"math": {"source": "pocket"}}}).model)
    tokenizer.chat_template = template
    with pytest.raises(DomainError, match="chat template refuses the prompt"):
        prompt_lengths([[{"role": "user", "content": "x"}]], tokenizer)


def written(rows, kind):
    """Rows, or what became of them, as a file of ``kind``."""
    if kind == "json":
        return as_json(rows)
    lines = rows if isinstance(rows, list) else [rows]
    if kind == "jsonl":
        return b"\n".join(as_json(row) for row in lines)
    dicts = [row for row in lines if isinstance(row, dict)] or ROWS
    if kind == "csv":
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerows([list(dicts[0]), *(list(row.values()) for row in dicts)])
        return file.getvalue().encode("utf-8", "surrogatepass")
    plain = [{key: _arrow(item) for key, item in row.items()} for row in dicts]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain or ROWS), file)
    return file.getvalue()


def _arrow(item):
    """What Parquet can hold of any value."""
    if isinstance(item, int) and not isinstance(item, bool) and abs(item) > 2**62:
        return str(item)
    if isinstance(item, float):
        return str(datetime.timedelta(0)) + str(item)
    return (
        json.dumps(item) if isinstance(item, dict | list | int) else item and item.encode("utf-8", "replace").decode()
    )


REWARDS = ["math", "text", "choice", {"name": "length", "options": {"maximum": 5}}, "code"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_any_file_of_rows_is_read_or_refused(tmp_path):
    tokenizer = load_tokenizer(parse_config({"domains": {"math": {"source": "pocket"}}}).model)

    def attack(rng):
        kind, packed = rng.choice(["jsonl", "json", "csv", "parquet"]), rng.random() < 0.3
        content = written(mutated(ROWS, rng) if rng.random() < 0.7 else ROWS, kind)
        content = damaged(content, rng) if rng.random() < 0.4 else content
        if packed:
            content = gzip.compress(content)
            content = damaged(content, rng) if rng.random() < 0.4 else content
        path = tmp_path / f"x.{kind}{'.gz' if packed else ''}"
        path.write_bytes(content)
        domain = {"source": str(path), "reward": rng.choice(REWARDS), "unusable_rows": rng.choice(["drop", "refuse"])}
        domain["prompt"] = rng.choice(
            ["{prompt}", "{prompt}", "{meta.a[1].b}", "{a[²]}", "{meta}", "{prompt.__class__}"]
        )
        domain["chat"] = rng.choice([None, False])
        load_domains(parse_config({"domains": {"d": domain}, "evaluation": {"prompts": 2}}), tokenizer)

    assert survey(attack) > 40


@pytest.mark.parametrize("line", ["[" * 5000, '{"completion": ' + "9" * 5000 + "}", "{", "\0"])
def test_score_names_the_line(tmp_path, line):
    path = tmp_path / "in.jsonl"
    path.write_text('{"completion": "1"}\n' + line + "\n")
    with pytest.raises(RewardError, match=r"in.jsonl line 2: cannot be read"):
        read_rows(str(path))


@pytest.mark.parametrize("source", ["/dev/zero", "x" * 300, "/tmp"])
def test_score_reads_only_files(source):
    with pytest.raises(RewardError, match="cannot be read"):
        read_rows(source)
