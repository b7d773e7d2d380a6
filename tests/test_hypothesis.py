"""Any data at all, grown by hypothesis: read, or refused with an error of ours. Mutations of good files are beside each
reader's other tests; here nothing need resemble a good file.
"""

import json
import struct
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterpoint.checkpoints import open_checkpoint
from counterpoint.config import FileSource, load_config
from counterpoint.domains.sources import read_file
from counterpoint.errors import CounterpointError
from counterpoint.rewards import build_reward
from counterpoint.rewards.sandbox._values import MalformedError, decode, read, write
from counterpoint.study.load import load_study
from counterpoint.training.values import setting_findings, setting_names

pytestmark = pytest.mark.slow
fuzz = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

CONFIG = {"domains": {"math": {"source": "pocket", "reward": "math"}}, "training": {"max_steps": 2}, "run": {"seed": 1}}
STUDY = {"name": "s", "config": CONFIG, "rows": {"mixed": "mixed", "mgs": "mgs"}, "reference": "mixed", "seeds": 2}
words = st.sampled_from(
    ["mgs", "math", "pocket", "type", "name", "file", "path", "${X}", "null", "", "a.b", "~x/y", "/dev/zero"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | words | st.integers(10**300)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=8), inner, max_size=4)
)
any_text = st.text(st.characters(codec=None), max_size=60)


def changed(tree, data):
    """``tree`` with the value at one place, or the whole, replaced."""
    if isinstance(tree, dict) and tree and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(tree)))
        return {**tree, key: changed(tree[key], data)}
    if isinstance(tree, dict) and data.draw(st.booleans()):
        return {**tree, data.draw(words): data.draw(trees)}
    return data.draw(trees)


def read_or_refused(action):
    try:
        return action()
    except CounterpointError as error:
        str(error).encode()
    return None


@pytest.mark.parametrize(("tree", "load"), [(CONFIG, load_config), (STUDY, load_study)], ids=["configuration", "study"])
@fuzz
@given(data=st.data())
def test_configurations_and_studies(tmp_path, tree, load, data):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(changed(tree, data)))
    found = read_or_refused(lambda: load(path))
    if found is not None:
        found.to_yaml().encode()


@fuzz
@given(st.binary(max_size=200) | any_text.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_as_configurations(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    read_or_refused(lambda: load_config(path))


@fuzz
@given(st.lists(st.text(max_size=30) | st.tuples(words, words).map("=".join), min_size=1, max_size=3))
def test_overrides(tmp_path, overrides):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(CONFIG))
    read_or_refused(lambda: load_config(path, overrides))


@fuzz
@given(st.data())
def test_values_under_training(data):
    keys = st.sampled_from(sorted(setting_names()))
    training = data.draw(st.dictionaries(keys, trees, min_size=1, max_size=3))
    assert all(isinstance(message, str) for _, message in setting_findings(training))


@fuzz
@given(st.data())
def test_files_of_rows(tmp_path, data):
    kind = data.draw(st.sampled_from(["jsonl", "json", "csv", "parquet", "jsonl.gz"]))
    rows = st.lists(st.dictionaries(st.text(max_size=6), trees, max_size=3) | trees, max_size=4)
    content = data.draw(st.binary(max_size=200) | rows.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()))
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content)
    read_or_refused(lambda: read_file(FileSource(type="file", path=str(path)), None))


@fuzz
@given(st.data())
def test_headers_of_checkpoints(tmp_path, data):
    entry = st.fixed_dictionaries({}, optional={"dtype": st.just("F32") | trees, "shape": trees, "data_offsets": trees})
    header = json.dumps(data.draw(st.dictionaries(st.text(max_size=12), entry | trees, max_size=4) | trees)).encode()
    length = data.draw(st.just(len(header)) | st.integers(0, 2**64 - 1))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + header + data.draw(st.binary(max_size=64)))

    def use():
        checkpoint = open_checkpoint(tmp_path)
        return [checkpoint.shape(name) for name in getattr(checkpoint, "names", lambda: [])()] if checkpoint else []

    read_or_refused(use)


PLAIN = (type(None), bool, int, float, str, bytes, bytearray, complex, Decimal, Fraction, range)


def is_plain(value):
    if type(value) in (list, tuple, set, frozenset):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    return type(value) in PLAIN


KINDS = "tuple dict set frozenset int bytes bytearray complex decimal fraction range mine yours builtin class eval"
kinds = st.sampled_from(KINDS.split(" "))
nodes = st.recursive(
    scalars | st.sampled_from(["0x10", "ff", "eval", "NaN", "1e5"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(kinds | st.text(max_size=5), inner, max_size=2),
)


def no_reference(kind, body):
    raise ValueError(f"a reference {kind}")


@fuzz
@given(nodes)
def test_the_judge_builds_builtin_values_or_nothing(node):
    try:
        value = read(decode(json.dumps(node).encode()), no_reference)
    except MalformedError:
        return
    assert is_plain(value)


@fuzz
@given(st.binary(max_size=100))
def test_the_judge_reads_any_bytes(payload):
    try:
        assert is_plain(read(decode(payload), no_reference))
    except MalformedError:
        return


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | any_text
    | st.binary(max_size=9)
    | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
)


@fuzz
@given(values)
def test_values_come_back_as_they_went(value):
    back = read(decode(json.dumps(write(value, lambda _: 1 / 0)).encode()), no_reference)
    assert back == value
    assert is_plain(back)


ROWS = {
    "choice": {"answer": "A", "choices": ["bank", "library"]},
    "text": {"answer": ["Hamlet", "the prince"]},
    "format": {},
    "length": {},
    "pocket": {"task": "math", "answer": "19", "prompt": "12+7="},
}


@pytest.mark.parametrize("name", ROWS)
def test_rewards_of_any_text(name):
    reward = build_reward(name, **({"maximum": 5} if name == "length" else {}))
    columns = {key: [value] for key, value in ROWS[name].items()}

    @fuzz
    @given(any_text)
    def score(text):
        (value,) = reward(completions=[text], **columns)
        assert 0.0 <= value <= 1.0

    score()
