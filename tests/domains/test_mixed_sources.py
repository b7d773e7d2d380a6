"""Several sources in one domain: their shares, every row in the end, held-out prompts, columns, and what is refused."""

import json
from collections import Counter

import pytest

from counterpoint.config import parse_config
from counterpoint.domains import QuotaSampler, load_domains
from counterpoint.domains.sampler import MixedRows, MixedStream
from counterpoint.domains.shares import normalise
from counterpoint.errors import ConfigError, DomainError


def mixed(sizes, shares):
    return MixedRows([{"domain_source": name} for name, size in sizes.items() for _ in range(size)], shares)


CASES = [
    ({"a": 5, "b": 400}, {"a": 3, "b": 1}),
    ({"a": 40, "b": 3}, {"a": 1, "b": 1}),
    ({"a": 7, "b": 50, "c": 11}, {"a": 0.5, "b": 0.2, "c": 0.123}),
    ({f"s{i}": 3 + i for i in range(6)}, {f"s{i}": 1 + i % 3 for i in range(6)}),
]


@pytest.mark.parametrize(("sizes", "shares"), CASES)
class TestOrder:
    def test_every_source_has_had_its_share_to_within_one_row_at_any_time(self, sizes, shares):
        rows, exact = mixed(sizes, shares), normalise(shares)
        stream, had = MixedStream(rows, 0, "x"), Counter()
        for position in range(3 * len(rows)):
            had[rows[stream[position]]["domain_source"]] += 1
            assert all(abs(had[name] - share * (position + 1)) < 1 for name, share in exact.items())

    def test_every_pass_of_a_source_holds_each_of_its_rows_once_and_all_are_seen(self, sizes, shares):
        rows = mixed(sizes, shares)
        stream = MixedStream(rows, 0, "x")
        drawn = {name: [] for name in sizes}
        position = 0
        while any(len(drawn[name]) < 2 * size for name, size in sizes.items()):
            row = stream[position]
            drawn[rows[row]["domain_source"]].append(row)
            position += 1
        for name, size in sizes.items():
            first, second = drawn[name][:size], drawn[name][size : 2 * size]
            assert sorted(first) == sorted(second) == [i for i, row in enumerate(rows) if row["domain_source"] == name]
            assert size < 5 or first != second

    def test_any_position_can_be_asked_for_first(self, sizes, shares):
        rows = mixed(sizes, shares)
        in_order = [MixedStream(rows, 3, "x")[position] for position in range(300)]
        for position in (299, 3, 157):
            assert MixedStream(rows, 3, "x")[position] == in_order[position]
        assert MixedStream(rows, 3, "x").draw(100, 140) == MixedStream(rows, 3, "x").draw(100, 140)
        assert sorted(MixedStream(rows, 3, "x").draw(100, 140)) == sorted(in_order[100:140])
        assert [MixedStream(rows, 4, "x")[position] for position in range(300)] != in_order


BATCH = {"num_generations": 2, "rows_per_device": 2, "accumulation": 8, "shares": {"m": 1, "n": 1}, "world": 2}


def sampler(**changes):
    rows = mixed({"a": 6, "b": 50}, {"a": 3, "b": 1})
    return rows, QuotaSampler({"m": 56, "n": 20}, mixed={"m": rows}, **(BATCH | changes))


def steps_of(order, rows):
    """For every step, the sources of the prompts of ``m`` on each rank."""
    drawn = list(order)
    size = 2 * 8 * 2  # ranks, micro-batches, rows
    for start in range(0, len(drawn), size * 8):
        step = drawn[start : start + size : 2]
        yield [[rows[row]["domain_source"] for row in step[rank * 8 : rank * 8 + 8] if row < 56] for rank in range(2)]


def test_every_step_holds_the_shares_of_the_sources():
    rows, order = sampler()
    places = []
    for epoch in range(3):
        order.set_epoch(epoch)
        for ranks in steps_of(order, rows):
            assert [len(sources) for sources in ranks] == [4, 4]
            assert Counter(ranks[0] + ranks[1]) == {"a": 6, "b": 2}
            places += [index for index, source in enumerate(ranks[0] + ranks[1]) if source == "b"]
    assert len(set(places)) == 8, "no rank and no half of a step belongs to a source"
    pool = QuotaSampler({"m": 56, "n": 20}, **BATCH)
    assert any(Counter(ranks[0] + ranks[1]) != {"a": 6, "b": 2} for ranks in steps_of(pool, rows)), "a pool does not"


def test_a_resumed_run_draws_what_the_uninterrupted_one_would_have():
    _, order = sampler()
    whole = []
    for epoch in range(4):
        order.set_epoch(epoch)
        whole.append(list(order))
    _, later = sampler()
    later.set_epoch(3)
    assert list(later) == whole[3]
    assert len({tuple(rows) for rows in whole}) == 4
    assert list(sampler(seed=1)[1]) != whole[0]


def test_other_domains_keep_their_order():
    _, order = sampler()
    plain = QuotaSampler({"m": 56, "n": 20}, **BATCH)
    assert [row for row in order if row >= 56] == [row for row in plain if row >= 56]
    assert list(order) != list(plain)


def test_without_shuffling_sources_keep_their_order():
    _, order = sampler(shuffle=False, world=1)
    assert list(dict.fromkeys(row for row in order if row < 6)) == [0, 1, 2, 3, 4, 5]


# From a configuration


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"type": "file", "path": str(tmp_path / name)}

    return write


def rows(prefix, number, **more):
    return [{"prompt": f"{prefix}{i}", "answer": f"{prefix}{i}", **more} for i in range(number)]


def load(source, tokenizer, prompts=8, **domain):
    config = {"domains": {"m": {"source": source, "reward": "text", **domain}}, "evaluation": {"prompts": prompts}}
    return load_domains(parse_config(config), tokenizer)[0]


def refused(*args, **kwargs):
    with pytest.raises(DomainError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def counted(rows):
    return Counter(row["domain_source"] for row in rows)


def test_sources_with_shares(write, tokenizer):
    small, large = write("small.jsonl", rows("s", 40)), write("large.jsonl", rows("l", 400))
    domain = load([small | {"share": 3}, large | {"share": 1}], tokenizer)
    assert isinstance(domain.train, MixedRows)
    assert domain.train.shares == {"small.jsonl": 3, "large.jsonl": 1}
    assert counted(domain.train) == {"small.jsonl": 34, "large.jsonl": 398}
    assert counted(domain.evaluation) == {"small.jsonl": 6, "large.jsonl": 2}, "held out by the shares"
    for end in (domain.train[:20], domain.train[-20:]):  # what analyses take
        assert 14 <= counted(end)["small.jsonl"] <= 16
    again = load([small | {"share": 3}, large | {"share": 1}], tokenizer)
    assert (again.train, again.evaluation, again.summary) == (domain.train, domain.evaluation, domain.summary)


def test_sources_without_shares_are_one_pool(write, tokenizer):
    domain = load([write("a.jsonl", rows("a", 90)), write("b.jsonl", rows("b", 30))], tokenizer)
    assert not isinstance(domain.train, MixedRows)
    assert counted(domain.train) == {"a.jsonl": 84, "b.jsonl": 28}
    assert counted(domain.evaluation) == {"a.jsonl": 6, "b.jsonl": 2}


def test_a_list_of_one_is_that_source(write, tokenizer):
    source = write("a.jsonl", rows("a", 20))
    alone, listed = load(source, tokenizer), load([source], tokenizer)
    assert [row["prompt"] for row in listed.train] == [row["prompt"] for row in alone.train]
    assert [row["prompt"] for row in listed.evaluation] == [row["prompt"] for row in alone.evaluation]


def test_counts_are_kept_by_source(write, tokenizer):
    long = [{"prompt": "x" * 600, "answer": "x"}]
    sources = [write("a.jsonl", rows("a", 30) + long), write("b.jsonl", rows("b", 90))]
    summary = load(sources, tokenizer).summary
    assert summary.sources["a.jsonl"] == {
        "rows_read": 31,
        "dropped_filtered": 0,
        "dropped_too_long": 1,
        "dropped_unusable": 0,
        "dropped_held_out": 2,
        "train_rows": 28,
        "evaluation_rows": 2,
    }
    whole = {key: value for key, value in vars(summary).items() if key != "sources"}
    assert whole == {key: sum(counts[key] for counts in summary.sources.values()) for key in whole}
    assert "a.jsonl: 28 rows to train on, 2 held out; dropped of 31 read: 1 too long" in str(summary)


def test_no_held_out_prompt_of_one_source_is_trained_on_through_another(write, tokenizer):
    both = rows("x", 30)
    sources = [write("a.jsonl", both) | {"share": 1}, write("b.jsonl", both + rows("b", 60)) | {"share": 1}]
    domain = load(sources, tokenizer, prompts=20)
    held_out = [row["prompt"] for row in domain.evaluation]
    assert len(set(held_out)) == len(held_out) == 20
    assert not {*held_out} & {row["prompt"] for row in domain.train}
    lost = domain.summary.sources["b.jsonl"]["dropped_held_out"]
    assert lost > domain.summary.sources["b.jsonl"]["evaluation_rows"], "prompts of a.jsonl went from b.jsonl too"


def test_own_evaluation_sources(write, tokenizer):
    train = [write("a.jsonl", rows("a", 30)) | {"share": 1}, write("b.jsonl", rows("b", 30)) | {"share": 1}]
    tests = [write("at.jsonl", rows("a", 10)) | {"share": 3}, write("bt.jsonl", rows("b", 90)) | {"share": 1}]
    domain = load(train, tokenizer, evaluation={"source": tests})
    assert counted(domain.evaluation) == {"at.jsonl": 6, "bt.jsonl": 2}
    assert not {row["prompt"] for row in domain.evaluation} & {row["prompt"] for row in domain.train}
    assert len(load(train, tokenizer, evaluation={"source": tests[0] | {"share": None}}).evaluation) == 8


def test_pocket_sources_hold_out_test_rows_of_their_own(write, tokenizer):
    pocket = {"type": "pocket", "task": "math", "size": 50, "share": 1}
    domain = load([pocket, write("a.jsonl", rows("a", 30)) | {"share": 1}], tokenizer)
    assert counted(domain.evaluation) == {"math": 4, "a.jsonl": 4}
    assert counted(domain.train)["a.jsonl"] == 26


def test_columns_that_a_source_lacks_are_none(write, tokenizer):
    sources = [
        write("a.jsonl", rows("a", 20, deep={"hint": "h"})),
        write("b.jsonl", rows("b", 20)),
    ]
    domain = load(sources, tokenizer, columns={"hint": "deep.hint"}, filter={"deep": [None, {"hint": "h"}]})
    for row in domain.train + domain.evaluation:
        assert row.keys() == {"prompt", "domain", "domain_source", "answer", "hint"}
        assert row["hint"] == ("h" if row["domain_source"] == "a.jsonl" else None)
    hinted = rows("b", 19, deep={}) + rows("c", 1)
    assert refused([sources[0], write("c.jsonl", hinted)], tokenizer, columns={"hint": "deep.hint"}) == (
        "domains.m: c.jsonl: columns.hint; row 1: no 'hint' in 'deep'; the keys are: none."
    )
    assert "no 'hnt' in 'deep'" in refused(sources, tokenizer, columns={"hint": "deep.hnt"})


def test_a_prompt_needs_its_column_in_every_source(write, tokenizer):
    other = [{"problem": f"q{i}", "answer": "1"} for i in range(20)]
    assert refused([write("a.jsonl", rows("a", 20)), write("b.jsonl", other)], tokenizer) == (
        "domains.m: b.jsonl: prompt; row 1: no 'prompt'; the columns are: problem, answer."
    )


def test_chat_messages_and_text_are_not_mixed_where_prompts_are_text(write, tokenizer, chat_tokenizer):
    messages = [{"prompt": [{"role": "user", "content": f"c{i}"}], "answer": "1"} for i in range(20)]
    sources = [write("text.jsonl", rows("a", 20)), write("chat.jsonl", messages)]
    assert "m: chat.jsonl: prompt; row 1: 'prompt' holds chat messages, but prompts are plain text here" in refused(
        sources, tokenizer
    )
    domain = load(sources, chat_tokenizer)
    assert all(row["prompt"][0]["role"] == "user" for row in domain.train)


def test_sources_of_one_name_are_told_apart(write, tmp_path, tokenizer):
    (tmp_path / "more").mkdir()
    sources = [write("a.jsonl", rows("a", 20)), write("more/a.jsonl", rows("b", 20))]
    assert counted(load(sources, tokenizer).train) == {"a.jsonl": 16, "a.jsonl (2)": 16}


def test_only_sources_that_bring_the_same_reward_need_none():
    pocket = {"type": "pocket", "task": "math"}
    assert parse_config({"domains": {"m": {"source": [pocket, pocket]}}}).domains["m"].reward[0].name == "pocket"
    for other in ("a.jsonl", {"type": "reasoning_gym", "task": "chain_sum"}, {"type": ["pocket"]}):
        with pytest.raises(ConfigError):
            parse_config({"domains": {"m": {"source": [pocket, other]}}})
    with pytest.raises(ConfigError, match=r"domains.m.reward: is missing"):
        parse_config({"domains": {"m": {"source": [pocket, "a.jsonl"]}}})


def test_a_source_that_is_too_small_is_named(write, tokenizer):
    sources = [write("tiny.jsonl", rows("t", 3)) | {"share": 1}, write("b.jsonl", rows("b", 40)) | {"share": 1}]
    assert refused(sources, tokenizer).startswith("domains.m: tiny.jsonl: 4 prompts are to be held out, but there are")
    same = [write("a.jsonl", rows("a", 40)) | {"share": 1}, write("c.jsonl", rows("a", 3)) | {"share": 0.01}]
    test = write("t.jsonl", rows("a", 8))
    assert refused(same, tokenizer, evaluation={"source": test}) == (
        "domains.m: c.jsonl: all 3 training prompts are among the held-out ones. Use other rows."
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"type": "pocket", "share": 1}, "domains.math.source.share: is the share of one source among several, and"),
        ([{"type": "pocket", "share": 1}], "domains.math.source.0.share: is the share of one source among several"),
        ([{"type": "pocket", "share": 1}, "pocket"], "domains.math.source.1.share: is missing, and other sources"),
        ([{"type": "pocket", "share": 0}, "pocket"], "domains.math.source.0.share: should be greater than 0, found 0"),
        ([{"type": "pocket", "share": -1}, "pocket"], "source.0.share: should be greater than 0, found -1"),
        (
            [{"type": "pocket", "share": float("inf")}, "pocket"],
            "domains.math.source.0.share: should be a finite number",
        ),
        ([{"type": "pocket", "shar": 1}, "pocket"], "domains.math.source.0.shar: unknown key. did you mean 'share'?"),
        ([{"type": "fil"}, "pocket"], "domains.math.source.0: unknown type 'fil': did you mean 'file'?"),
        (["pocket", {"type": "file"}], "domains.math.source.1.path: is missing. The file, looked for beside"),
        ([{"type": ["pocket"]}, {"type": {}}], "domains.math.source.1: unknown type {}: "),
        (["pocket", 3], "domains.math.source.1: expected a source, found 3."),
        ([["pocket"]], "domains.math.source.0: expected a source, found ['pocket']."),
        ([], "domains.math.source: is an empty list. Write one source, or several with their shares."),
    ],
)
def test_what_is_no_list_of_sources_is_refused_with_its_place(source, message):
    for domain in ({"source": source}, {"source": "pocket", "evaluation": {"source": source}}):
        with pytest.raises(ConfigError) as caught:
            parse_config({"domains": {"math": {"reward": "math", **domain}}})
        expected = message.replace("math.source", "math.evaluation.source") if len(domain) > 1 else message
        assert expected in str(caught.value)
