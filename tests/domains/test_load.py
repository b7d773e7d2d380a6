"""From a configuration to rows: prompts, columns, held-out rows, and what is said when that cannot be done."""

from pathlib import Path

import pytest

from counterpoint.config import load_config, parse_config
from counterpoint.config.domain import OWN_REWARDS
from counterpoint.domains import WeightedReward, load_domains
from counterpoint.domains.prompts import prompt_key
from counterpoint.errors import DomainError
from counterpoint.rewards import REWARDS

GYM = "counterpoint.rewards.reasoning_gym:ReasoningGymReward"


class StandIn:
    """A reward that needs ``answer`` and may use ``hint``."""

    __name__ = "stand_in"
    columns = ("answer",)
    optional_columns = ("hint",)

    def __init__(self):
        self.checked = []

    def check_rows(self, rows):
        self.checked += rows
        return [f"row {i}: the answer is unusable." for i, row in enumerate(rows) if row["answer"] == "unusable"]

    def __call__(self, completions, **_):
        return [0.0 for _ in completions]


@pytest.fixture
def reward(monkeypatch):
    function = StandIn()
    found = (WeightedReward("x", 1.0, function),)
    monkeypatch.setattr("counterpoint.domains.build.build_rewards", lambda written: found if written else ())
    return function


def rows(number, **more):
    return [{"prompt": f"p{i}", "answer": i, **more} for i in range(number)]


def load(source, tokenizer, prompts=2, **domain):
    config = parse_config(
        {
            "domains": {"a": {"source": source, "reward": "text", **domain}},
            "evaluation": {"prompts": prompts},
            "max_prompt_tokens": 100,
        }
    )
    return load_domains(config, tokenizer)[0]


def refused(*args, **kwargs):
    with pytest.raises(DomainError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


@pytest.mark.usefixtures("reward")
class TestRows:
    def test_rows_have_prompt_domain_and_the_columns_of_the_reward(self, jsonl, tokenizer):
        domain = load(jsonl(rows(6, hint="h", unused=1)), tokenizer)
        assert domain.train[0].keys() == {"prompt", "domain", "answer", "hint"}
        assert {row["domain"] for row in domain.train + domain.evaluation} == {"a"}
        assert vars(domain.summary) == {
            "rows_read": 6,
            "dropped_filtered": 0,
            "dropped_too_long": 0,
            "dropped_unusable": 0,
            "dropped_held_out": 2,
            "train_rows": 4,
            "evaluation_rows": 2,
            "sources": {},
        }

    def test_columns_by_path_and_by_template(self, jsonl, tokenizer):
        data = [{"q": f"q{i}", "s": {"v": [i]}, "unit": "kg"} for i in range(4)]
        domain = load(
            jsonl(data), tokenizer, prompt="{q}?", columns={"answer": "s.v[0]", "hint": "{s.v[0]} {unit}", "extra": "q"}
        )
        number = int(domain.train[0]["prompt"][1])
        assert domain.train[0] == {
            "prompt": f"q{number}?",
            "domain": "a",
            "answer": number,
            "hint": f"{number} kg",
            "extra": f"q{number}",
        }

    def test_a_reward_that_declares_nothing_gets_every_column(self, jsonl, tokenizer, monkeypatch):
        plain = WeightedReward("own", 1.0, lambda completions, **_: [0.0] * len(completions))
        monkeypatch.setattr("counterpoint.domains.build.build_rewards", lambda _: (plain,))
        assert load(jsonl(rows(6, z=1)), tokenizer).train[0].keys() == {"prompt", "domain", "answer", "z"}

    def test_plain_text_and_chat(self, jsonl, tokenizer, chat_tokenizer):
        path = jsonl(rows(6))
        assert load(path, tokenizer, system="S").train[0]["prompt"].startswith("S\n\np")
        messages = load(path, chat_tokenizer, system="S").train[0]["prompt"]
        assert [m["role"] for m in messages] == ["system", "user"]
        assert load(path, chat_tokenizer, chat=False).train[0]["prompt"].startswith("p")
        assert isinstance(load(path, chat_tokenizer, chat=True).train[0]["prompt"], list)

    def test_a_column_of_messages_is_taken_as_it_is(self, jsonl, tokenizer, chat_tokenizer):
        data = [{"prompt": [{"role": "user", "content": f"p{i}"}], "answer": i} for i in range(5)]
        prompt = load(jsonl(data), chat_tokenizer, system="S").train[0]["prompt"]
        assert [m["role"] for m in prompt] == ["system", "user"]
        assert "holds chat messages, but prompts are plain text here" in refused(jsonl(data), tokenizer)

    def test_limit_and_filter(self, jsonl, tokenizer):
        data = [{"prompt": f"p{i}", "answer": i, "level": {"n": i % 3}, "ok": i % 2 == 0} for i in range(30)]
        domain = load(jsonl(data), tokenizer, limit=20, filter={"level.n": [0, "1"], "ok": True})
        assert domain.summary.rows_read == 20
        assert domain.summary.dropped_filtered == 13
        assert all(row["answer"] % 3 < 2 and row["answer"] % 2 == 0 for row in domain.train + domain.evaluation)

    def test_long_prompts_are_dropped_and_counted_never_cut(self, jsonl, tokenizer):
        data = [*rows(6), {"prompt": "x" * 99, "answer": 1}, {"prompt": "x" * 100, "answer": 1}]
        domain = load(jsonl(data), tokenizer, prompts=3)
        assert domain.summary.dropped_too_long == 1  # one token more stands in front of plain text
        assert {len(row["prompt"]) for row in domain.train + domain.evaluation} <= {2, 99}
        assert load(jsonl(data), tokenizer, max_prompt_tokens=3).summary.dropped_too_long == 2

    def test_the_chat_template_counts_towards_the_length(self, jsonl, chat_tokenizer):
        data = [*rows(6), {"prompt": "x" * 83, "answer": 1}, {"prompt": "x" * 84, "answer": 1}]
        assert load(jsonl(data), chat_tokenizer).summary.dropped_too_long == 1  # <user> and <assistant> have 17


@pytest.mark.usefixtures("reward")
class TestHeldOut:
    def test_no_prompt_is_in_both(self, jsonl, tokenizer):
        data = [{"prompt": f"p{i % 7}", "answer": i} for i in range(40)]
        domain = load(jsonl(data), tokenizer, prompts=3)
        train, held_out = ({row["prompt"] for row in part} for part in (domain.train, domain.evaluation))
        assert len(held_out) == len(domain.evaluation) == 3
        assert not train & held_out
        assert train | held_out == {f"p{i}" for i in range(7)}
        assert domain.summary.dropped_held_out + len(domain.train) == 40

    def test_the_same_every_time_and_another_seed_is_another_choice(self, jsonl, tokenizer):
        path = jsonl(rows(50))
        assert load(path, tokenizer, prompts=20) == load(path, tokenizer, prompts=20)

        def chosen(seed):
            document = {
                "domains": {"a": {"source": path, "reward": "text"}},
                "evaluation": {"prompts": 20, "seed": seed},
                "run": {"seed": 5},
            }
            return [row["prompt"] for row in load_domains(parse_config(document), tokenizer)[0].evaluation]

        assert chosen(0) == [row["prompt"] for row in load(path, tokenizer, prompts=20).evaluation]
        assert chosen(1) != chosen(0)

    def test_an_own_evaluation_source(self, jsonl, tokenizer):
        train, test = jsonl(rows(10)), jsonl([*rows(3), {"prompt": "new", "answer": 1}], "test.jsonl")
        domain = load(train, tokenizer, prompts=4, evaluation={"source": test})
        assert [row["prompt"] for row in domain.evaluation] == ["p0", "p1", "p2", "new"]
        assert [row["prompt"] for row in domain.train] == [f"p{i}" for i in range(3, 10)]
        assert domain.summary.dropped_held_out == 3

    def test_too_few(self, jsonl, tokenizer):
        path = jsonl(rows(3) + rows(3))
        assert refused(path, tokenizer, prompts=3) == (
            "domains.a: 3 prompts are to be held out, but there are only 3 different ones and at least one must be "
            "left to train on. Set evaluation.size lower, or give evaluation.source."
        )
        assert "3 different ones. Set evaluation.size lower" in refused(
            path, tokenizer, prompts=4, evaluation={"source": path}
        )
        assert "all 6 training prompts are among the held-out ones" in refused(
            path, tokenizer, prompts=3, evaluation={"source": path}
        )
        assert len(load(path, tokenizer, prompts=9, evaluation={"size": 1}).evaluation) == 1

    def test_messages_are_told_apart_by_their_text(self):
        first, second = ([{"role": "user", "content": text}] for text in "ab")
        assert prompt_key(first) != prompt_key(second)
        assert prompt_key(first) == prompt_key([{"content": "a", "role": "user"}])


@pytest.mark.usefixtures("reward")
class TestErrors:
    def test_a_template_that_names_a_missing_column_lists_the_columns(self, jsonl, tokenizer):
        found = refused(jsonl(rows(5)), tokenizer, prompt="{question}")
        assert found == "domains.a: prompt; row 1: no 'question'; the columns are: prompt, answer."

    def test_a_column_missing_from_one_row_names_the_row(self, jsonl, tokenizer):
        assert "row 6: no 'answer'; the columns are: prompt." in refused(jsonl([*rows(5), {"prompt": "x"}]), tokenizer)

    def test_a_reward_column_that_is_missing(self, jsonl, tokenizer):
        data = [{"prompt": f"p{i}", "gold": 1} for i in range(5)]
        assert refused(jsonl(data), tokenizer) == (
            "domains.a: the reward needs the column 'answer' (columns maps it); row 1: no 'answer'; the columns are: "
            "prompt, gold."
        )
        assert "columns.answer; row 1: no 'glod'" in refused(jsonl(data), tokenizer, columns={"answer": "glod"})

    def test_a_filter_on_a_missing_column(self, jsonl, tokenizer):
        assert "filter.level; row 1: no 'level'" in refused(jsonl(rows(5)), tokenizer, filter={"level": 1})

    def test_no_rows_left_says_what_dropped_them(self, jsonl, tokenizer):
        data = rows(5) + [{"prompt": "x" * 200, "answer": 9}] * 2
        assert refused(jsonl(data), tokenizer, filter={"answer": 9}) == (
            "domains.a: no rows are left: 7 read, 5 dropped by filter, 2 longer than max_prompt_tokens=100 (the "
            "shortest has 201), 0 of no use to the reward. Relax what dropped them."
        )
        assert "no rows are left: 0 read" in refused(jsonl([]), tokenizer)

    def test_chat_without_a_chat_template(self, jsonl, tokenizer):
        assert "chat is true, but the model's tokenizer has no chat template. Set chat: false" in refused(
            jsonl(rows(5)), tokenizer, chat=True
        )

    def test_a_chat_template_that_refuses(self, jsonl, chat_tokenizer):
        chat_tokenizer.chat_template = "{{ raise_exception('no system role') }}"
        assert "the model's chat template refuses the prompt: no system role." in refused(
            jsonl(rows(5)), chat_tokenizer
        )

    def test_malformed_templates(self, jsonl, tokenizer):
        assert "prompt: a single '{' at character 1" in refused(jsonl(rows(5)), tokenizer, prompt="{")
        assert "columns.answer: a single '{'" in refused(jsonl(rows(5)), tokenizer, columns={"answer": "{"})

    def test_the_reward_checks_the_rows_as_it_will_see_them(self, jsonl, tokenizer, reward):
        load(jsonl(rows(5)), tokenizer)
        assert reward.checked == [{"answer": i} for i in range(5)]
        bad = {"prompt": "x", "answer": "unusable"}
        assert refused(jsonl([*rows(5), bad]), tokenizer) == (
            "domains.a: 1 row cannot be used. Row 6: the reward 'x' cannot use it: the answer is unusable. Mend or "
            "filter them, or set unusable_rows: drop."
        )
        mixed = jsonl([*rows(5), *[bad] * 9])
        found = refused(mixed, tokenizer, filter={"answer": [1, "unusable"]})
        assert "Row 6: " in found
        assert "Row 8: " in found
        assert "Row 9: " not in found
        assert "And 6 more rows." in found
        domain = load(mixed, tokenizer, unusable_rows="drop")
        assert (domain.summary.dropped_unusable, domain.summary.train_rows) == (9, 3)
        assert "9 of no use to the reward" in refused(
            mixed, tokenizer, unusable_rows="drop", filter={"answer": "unusable"}
        )

    def test_the_problems_of_all_domains_come_at_once(self, jsonl, tokenizer, tmp_path):
        good, bad = jsonl(rows(80)), str(tmp_path / "rws.jsonl")
        domains = {
            "good": {"source": good, "reward": "text"},
            "gone": {"source": bad, "reward": "text"},
            "toy": {"source": {"type": "pocket", "task": "mth"}},
        }
        with pytest.raises(DomainError) as caught:
            load_domains(parse_config({"domains": domains}), tokenizer)
        gone, toy = str(caught.value).splitlines()
        assert gone.startswith("domains.gone: ")
        assert gone.endswith("there is no such file; did you mean 'rows.jsonl'?")
        assert toy.startswith("domains.toy: unknown pocket task 'mth': did you mean 'math'?")


class TestSources:
    def test_pocket(self, tokenizer, monkeypatch):
        function = StandIn()
        found = (WeightedReward("x", 1.0, function),)
        monkeypatch.setattr("counterpoint.domains.build.build_rewards", lambda written: found if written else ())
        domain = load({"type": "pocket", "task": "math", "size": 50}, tokenizer, prompts=20)
        assert domain.summary.rows_read == 50
        assert len({row["prompt"] for row in domain.evaluation}) == 20
        assert not {row["prompt"] for row in domain.train} & {row["prompt"] for row in domain.evaluation}
        assert "held-out prompts are asked for, but the evaluation source has only" in refused(
            {"type": "pocket", "task": "math", "size": 50}, tokenizer, prompts=400
        )

    def test_hub(self, tokenizer, monkeypatch, reward):
        import datasets

        called = []

        def load_dataset(*args, **kwargs):
            called.append((args, kwargs))
            return datasets.Dataset.from_list(rows(9))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        source = {"type": "hub", "path": "owner/name", "config": "main", "revision": "v1"}
        assert load(source, tokenizer, limit=7).summary.rows_read == 7
        assert called == [(("owner/name", "main"), {"split": "train", "revision": "v1"})]

    def test_hub_offline(self, tokenizer, monkeypatch, reward):
        import datasets

        def load_dataset(*args, **kwargs):
            raise ConnectionError("no network")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert refused("owner/name", tokenizer) == (
            "domains.a: the hub dataset owner/name (config None, split train) cannot be loaded: no network. Check its "
            "id, config and split, and the network; a local copy is read with type: file."
        )

    def test_reasoning_gym(self, tokenizer):
        pytest.importorskip("reasoning_gym")
        source = {"type": "reasoning_gym", "task": "prime_factorization", "size": 20, "seed": 3}
        config = parse_config({"domains": {"a": {"source": source, "reward": GYM}}, "evaluation": {"prompts": 5}})
        domain = load_domains(config, tokenizer)[0]
        row = domain.train[0]
        score = domain.rewards[0].function
        answer = row["entry"]["answer"]
        completions = [answer, f"so <answer> {answer} </answer>", "zzz", [{"role": "assistant", "content": answer}]]
        assert score(completions=completions, entry=[row["entry"]] * 4) == [1.0, 1.0, 0.0, 1.0]

    def test_reasoning_gym_rows_only(self, jsonl, tokenizer):
        pytest.importorskip("reasoning_gym")
        path = jsonl([{"prompt": f"p{i}", "entry": {"answer": "1"}} for i in range(4)])
        found = refused(path, tokenizer, reward={"name": GYM, "label": "gym"})
        assert found.startswith(
            "domains.a: 4 rows cannot be used. Row 1: the reward 'gym' cannot use it: 'entry' has no "
        )

    def test_reasoning_gym_refuses(self, tokenizer):
        pytest.importorskip("reasoning_gym")
        for task, options, message in (
            ("chain_sm", {}, "unknown reasoning_gym task 'chain_sm': did you mean 'chain_sum'?"),
            ("chain_sum", {"colour": 1}, "reasoning_gym task 'chain_sum' refuses its options: "),
            ("chain_sum", {"min_terms": -3}, "refuses its options: min_terms must be positive"),
        ):
            source = {"type": "reasoning_gym", "task": task, "options": options}
            config = parse_config({"domains": {"a": {"source": source, "reward": GYM}}})
            with pytest.raises(DomainError) as caught:
                load_domains(config, tokenizer)
            assert message in str(caught.value)


def test_sources_that_bring_a_reward_bring_one_that_exists():
    assert set(OWN_REWARDS) <= set(REWARDS)


def test_the_example_with_local_files_loads(chat_tokenizer):
    domains = load_domains(load_config(Path(__file__).parents[2] / "examples" / "local-files.yaml"), chat_tokenizer)
    sums, quiz = domains
    assert (sums.summary.train_rows, quiz.summary.train_rows) == (24, 16)
    first = sums.train[0]
    assert first["prompt"] == [{"role": "user", "content": first["prompt"][0]["content"]}]
    assert sums.rewards[0].function(completions=[first["answer"], "none"], answer=[first["answer"]] * 2) == [1.0, 0.0]
    row = quiz.train[0]
    columns = {"answer": [row["answer"]] * 2, "choices": [row["choices"]] * 2}
    right = row["choices"]["ABC".index(row["answer"])]
    assert quiz.rewards[0].function(completions=[row["answer"], right], **columns) == [1.0, 1.0]


def test_metrics_are_built_and_their_columns_kept(jsonl, tokenizer):
    domain = load(jsonl(rows(6)), tokenizer, reward="repetition", metrics=["text", "copying"])
    assert [metric.name for metric in domain.metrics] == ["text", "copying"]
    assert [reward.name for reward in domain.rewards] == ["repetition"]
    assert domain.train[0].keys() == {"prompt", "domain", "answer"}
    plain = [{"prompt": f"p{i}"} for i in range(6)]
    assert "needs the column 'answer'" in refused(jsonl(plain), tokenizer, reward="repetition", metrics="text")
