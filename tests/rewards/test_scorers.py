"""Scorers that are not ours: what a model wrote is evaluated away from the training process, and rewrites no score."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward
from counterpoint.rewards._foreign import check_expression, evaluate_literal
from counterpoint.rewards.sandbox._scorers import Scorers
from hostile_texts import hostile_texts
from sandbox_helpers import descendants, wait_until

HAS_GYM = importlib.util.find_spec("reasoning_gym") is not None
needs_gym = pytest.mark.skipif(not HAS_GYM, reason="the extra 'reasoning-gym' is not installed")


@pytest.fixture(scope="module")
def probes():
    pool = Scorers("probe_scorers:probe_scorer")
    yield pool
    pool.close()


def ask(pool, what, argument=None, seconds=20.0):
    return pool.run([(what, argument)], seconds)[0]


def test_a_scorer_reaches_no_file_of_the_user_and_no_network(probes, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("sesame")
    assert ask(probes, "read", str(secret)) is False
    assert ask(probes, "read", f"/proc/{os.getpid()}/environ") is False
    assert ask(probes, "read", "/etc/passwd") is False
    for folder in (tmp_path, Path("/tmp"), Path("/dev/shm"), Path.home(), Path(__file__).parent):
        assert ask(probes, "write", str(folder / "planted")) is False
        assert not (folder / "planted").exists()
    assert ask(probes, "socket") is False
    assert ask(probes, "fork") is False
    assert ask(probes, "kill", os.getpid()) is False
    assert ask(probes, "environment") == 0
    assert ask(probes, "descriptors") <= 4
    assert ask(probes, "limit") == 2048 << 20
    # The control: what a scorer is made of can be read.
    assert ask(probes, "read", importlib.util.find_spec("json").origin) is True


def test_no_request_is_seen_by_the_next(probes):
    assert [ask(probes, "remember") for _ in range(3)] == [1, 1, 1]


@pytest.fixture
def lasting():
    """A scorer of which one child answers five requests; one worker, so that requests meet in a child."""
    pool = Scorers("probe_scorers:lasting_scorer", size=1)
    yield pool
    pool.close()


def test_a_child_answers_as_many_requests_as_its_scorer_allows(lasting):
    assert [ask(lasting, "remember") for _ in range(7)] == [1, 2, 3, 4, 5, 1, 2]


@pytest.mark.parametrize("what", [("sleep", 60.0), ("raise", "value"), ("abort", None), ("answer", "no score")])
def test_no_child_answers_after_a_request_that_failed(lasting, what):
    assert ask(lasting, "remember", seconds=1.0) == 1
    assert ask(lasting, *what, seconds=1.0) is False
    assert ask(lasting, "remember", seconds=1.0) == 1


def test_a_child_that_speaks_unasked_answers_no_other_request(lasting):
    assert ask(lasting, "forge", 7) == 7
    assert ask(lasting, "answer", 1) == 1


@pytest.mark.parametrize("what", [("raise", "exit"), ("raise", "interrupt"), ("raise", "value"), ("abort", None)])
def test_a_scorer_that_fails_on_a_text_gives_nothing(probes, what):
    assert ask(probes, *what) is False
    assert ask(probes, "answer", 1) == 1


NO_SCORES = {
    **{"text": "1", "nothing": None, "mapping": {"value": 1}, "list": [1]},
    **{"nan": float("nan"), "inf": float("inf"), "huge": 10**400, "huger": 10**5000},
}


@pytest.mark.parametrize("name", NO_SCORES)
def test_answers_that_are_no_scores_count_nothing(probes, name):
    assert ask(probes, "answer", NO_SCORES[name]) is False


def test_time_and_memory_are_limited(probes):
    start = time.monotonic()
    assert ask(probes, "sleep", 60.0, seconds=0.5) is False
    assert ask(probes, "burn", seconds=0.5) is False
    assert ask(probes, "memory", 6 << 30) is False
    assert time.monotonic() - start < 20


def test_what_has_no_turn_in_the_batchs_time_has_no_reward(probes):
    with pytest.warns(RuntimeWarning, match="have no reward"):
        answers = probes.run([("sleep", 0.4)] * (6 * probes.size), 5.0, batch_seconds=0.6)
    assert answers[0] == 1
    assert answers[-1] is None


def test_workers_stay_from_batch_to_batch(probes):
    assert len({ask(probes, "pid") for _ in range(4 * probes.size)}) <= probes.size


def test_a_worker_killed_from_outside_is_replaced_and_its_request_asked_again(probes):
    first = ask(probes, "pid")
    os.kill(int(first), signal.SIGKILL)
    assert [ask(probes, "answer", 1) for _ in range(2 * probes.size)] == [1] * (2 * probes.size)


def test_what_a_scorer_needs_and_does_not_find_is_an_error(probes):
    with pytest.raises(RewardError, match="ImportError"):
        ask(probes, "raise", "import")
    with pytest.raises(RewardError, match="no such package"):
        Scorers("probe_scorers:missing_scorer").run([1], 5.0)


def test_workers_end_with_a_training_process_that_is_killed():
    code = (
        "import sys; sys.path[:0] = PATHS\nfrom counterpoint.rewards.sandbox._scorers import Scorers\n"
        "pool = Scorers('probe_scorers:probe_scorer')\npool.run([('answer', 1)], 20.0)\nprint('ready', flush=True)\n"
        "pool.run([('burn', None)] * 2, 600.0)\n"
    ).replace("PATHS", repr([path for path in sys.path if path]))
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "ready\n"
    assert wait_until(lambda: len(descendants(trainer.pid)) >= 2)
    workers = descendants(trainer.pid)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert wait_until(lambda: not any(_runs(pid) for pid in workers))


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- What is evaluated ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2, 3]", [1, 2, 3]),
        ("['A', \"B\"]", ["A", "B"]),
        ("[[0, 1], [1, 0]]", [[0, 1], [1, 0]]),
        ("((0x3a24 - 0x24b8) + 0x1741) << 1", ((0x3A24 - 0x24B8) + 0x1741) << 1),
        ("-3 ** 2 / 4", -9 / 4),
        ("{1: 'a'}", {1: "a"}),
    ],
)
def test_literals_are_evaluated(text, value):
    assert evaluate_literal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os').system('id')", "exit()", "open('x')", "x", "[x for x in (1,)]", "lambda: 1", "f'{1}'"),
        *("().__class__", "(1).real", "[1][0]", "print", "1 if 1 else 2", "(y := 1)", "'a'.upper()", "not 1 or 2"),
    ],
)
def test_anything_but_literals_is_not_evaluated(text):
    with pytest.raises((ValueError, SyntaxError)):
        evaluate_literal(text)


@pytest.mark.parametrize("text", ["x**2 + 2*x + C", "2*sin(x) - exp(-x)/3", "(1+2)*3", "sqrt(2)*x", "3 - 4.5e3"])
def test_expressions_are_read(text):
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os')", "open(0)", "eval(chr(49))", "().__class__", "(eval)(x)", "[eval][0](x)", "exec (x)"),
        *("Symbol('x')", "lambda: x", "x.subs(x, 1)", "\uff45\uff56\uff41\uff4c(x)", "print#\n(x)", "e\\\nval(x)"),
        *("x; y", "`x`", "getattr(x, y)", "x.__class__", "Function(x)(y)"),
    ],
)
def test_anything_but_expressions_is_not_read(text):
    with pytest.raises(ValueError, match="expression"):
        check_expression(text)


EVALUATING = {
    "string_insertion": ["[open('{p}','w').close()]", "__import__('os').system('touch {p}')"],
    "spiral_matrix": ["[__import__('os').system('touch {p}')]", "exit()"],
    "binary_matrix": ["[__import__('os').system('touch {p}')]", "().__class__.__base__.__subclasses__()"],
    "n_queens": ["[__import__('os').system('touch {p}')]", "exit()", "[print(1)]"],
    "countdown": ["__import__('os').system('touch {p}')", "9**9**9**9", "eval(chr(49))"],
    "puzzle24": ["__import__('os').system('touch {p}')", "exit()"],
    "polynomial_multiplication": ["__import__('os').system('touch {p}')", "open('{p}', 'w')"],
    "simple_integration": ["__import__('os').system('touch {p}')", "x.__class__"],
    "intermediate_integration": ["__import__('os').system('touch {p}')", "quit()"],
}
# What rewrites a task's scorer when it is evaluated, so that the answer would earn 1.
REWRITE = (
    "[setattr(c, 'score_answer', lambda *a, **k: 1.0) for c in object.__subclasses__() if hasattr(c, 'score_answer')]"
)


@needs_gym
def test_answers_that_some_tasks_evaluate_run_nothing(tmp_path):
    import reasoning_gym

    reward = build_reward("reasoning_gym")
    planted = tmp_path / "planted"
    cases = [
        (text.replace("{p}", str(planted)), reasoning_gym.create_dataset(task, size=1, seed=1)[0])
        for task, texts in EVALUATING.items()
        for text in [*texts, REWRITE]
    ]
    rewards = reward(completions=[text for text, _ in cases], entry=[entry for _, entry in cases])
    assert not planted.exists()
    assert max(rewards) <= 0.05, dict(zip(cases, rewards, strict=True))


@needs_gym
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that the package leaves open
def test_every_task_scores_as_in_the_open():
    """Right answers and damaged ones earn in a worker what the task's scorer gives them here."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    reward = build_reward("reasoning_gym")
    rng = random.Random(0)
    entries, answers, expected = [], [], []
    # These need files that the package does not bring, or minutes to make a row.
    for task in sorted(set(DATASETS) - {"composite"}):
        try:
            entry = reasoning_gym.create_dataset(task, size=1, seed=1)[0]
        except (OSError, ValueError, TypeError, AssertionError):
            continue
        right = str(entry["answer"])
        for answer in (right, right[: len(right) // 2], right + str(rng.randrange(9))):
            try:
                score = float(reasoning_gym.get_score_answer_fn(task)(answer.strip(), entry))
            except Exception:  # the packages' own failure on a damaged answer
                score = 0.0
            entries.append(entry)
            answers.append(answer)
            expected.append(score)
    assert len({entry["metadata"]["source_dataset"] for entry in entries}) > 80
    found = reward(completions=answers, entry=entries)
    different = [
        (entry["metadata"]["source_dataset"], answer[:60], value, wanted)
        for entry, answer, value, wanted in zip(entries, answers, found, expected, strict=True)
        if value != pytest.approx(min(1.0, max(0.0, wanted)))
    ]
    assert different == []


# --- Any text ---------------------------------------------------------------------------------------------------------


def rows_of(name):
    if name == "math":
        return [{"answer": answer} for answer in ("72", "x^2 + 1", "(0, 1]", r"\frac{\pi}{2}", "$5")]
    if name == "code":
        return [{"tests": ["assert double(2) == 4"]}]
    if name == "instructions":
        ids = ["punctuation:no_comma", "language:response_language", "detectable_format:json_format", "custom:csv_city"]
        return [{"instruction_id_list": [id], "kwargs": [{"language": "en"} if "language" in id else {}]} for id in ids]
    import reasoning_gym

    tasks = [*EVALUATING, "chain_sum", "leg_counting", "sudoku", "knight_swap", "family_relationships", "ab"]
    return [{"entry": reasoning_gym.create_dataset(task, size=1, seed=2)[0]} for task in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math", "instructions", "reasoning_gym", "code"])
def test_many_hostile_texts_make_no_reward_raise(name, monkeypatch):
    if name == "instructions":
        pytest.importorskip("if_verifiable", reason="the extra 'instructions' is not installed")
    if name == "reasoning_gym" and not HAS_GYM:
        pytest.skip("the extra 'reasoning-gym' is not installed")
    monkeypatch.setattr("counterpoint.rewards.reasoning_gym._SECONDS", 0.3)
    monkeypatch.setattr("counterpoint.rewards.instructions._SECONDS", 0.3)
    options = (
        {"cpu_seconds": 1, "wall_seconds": 1.0}
        if name == "code"
        else {"timeout": 0.3, "batch_timeout": 500}
        if name == "math"
        else {}
    )
    reward, rows, texts = build_reward(name, **options), rows_of(name), hostile_texts(200, seed=7)
    columns = {key: [rows[i % len(rows)][key] for i in range(len(texts))] for key in rows[0]}
    rewards = reward(completions=texts, **columns)
    assert all(isinstance(value, float) and 0.0 <= value <= 1.0 for value in rewards)
