"""What the math reward costs, beside math-verify called directly and, where given, beside an older copy of the package.

    python benchmarks/rewards.py [--rows 2000] [--expressions 120] [--rounds 3] [--old SOURCE_FOLDER]

Plain numbers: replies with ``\\boxed{}``, GSM8K's form and prose. Expressions: pairs that go to math-verify. Processor
seconds of the process and its children, the median of the rounds, in turns. ``--old`` names the ``src`` folder of
another version, which is measured in a process of its own, in the same rounds. Target: plain numbers no slower than the
old version, expressions at most 1.1 times math-verify's processor time.
"""

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

NUMBERS = [
    "\\boxed{%d}",
    "12 + 30 = 42, so it is %d.\n#### %d",
    "The answer is $%d.",
    "So she has %d apples left.",
    "%d",
]
EXPRESSIONS = ["\\frac{\\sqrt{%d}}{3}", "x^2+%dx+1", "(%d,\\infty)", "\\frac{%d\\pi}{7}", "%d\\sqrt{2}+1", "\\{1,%d\\}"]


def number_rows(count: int) -> tuple[list[str], list[str]]:
    """Replies and references that are plain numbers, one in four of them wrong."""
    rng = random.Random(0)
    values = [rng.randint(100, 10_000) for _ in range(count)]
    forms = [rng.choice(NUMBERS) for _ in range(count)]
    replies = [form.replace("%d", str(value)) for form, value in zip(forms, values, strict=True)]
    return replies, [str(value + (number % 4 == 0)) for number, value in enumerate(values)]


def expression_rows(count: int) -> tuple[list[str], list[str]]:
    """Boxed expressions and references, all different texts."""
    rng = random.Random(1)
    pairs = [
        (rng.choice(EXPRESSIONS) % (number + 2), rng.choice(EXPRESSIONS) % (number + 3)) for number in range(count)
    ]
    return [f"\\boxed{{{answer}}}" for answer, _ in pairs], [gold for _, gold in pairs]


def ours(replies: list[str], answers: list[str]) -> float:
    """Processor seconds of the reward for a batch, its workers' start left out."""
    from counterpoint.rewards import build_reward

    reward = build_reward("math")
    reward(completions=["\\boxed{y}"] * 8, answer=["x", "z"] * 4)  # starts workers
    started = _processor_seconds()
    reward(completions=replies, answer=answers)
    return _processor_seconds() - started


def _processor_seconds() -> float:
    """Of this process, of all that it started and of those of them that have ended."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            stats[path.parent.name] = path.read_text().rpartition(")")[2].split()
    family = {str(os.getpid())}
    while grown := {pid for pid, fields in stats.items() if fields[1] in family} - family:
        family |= grown
    ticks = sum(sum(map(int, stats[pid][11:15])) for pid in family)
    return ticks / os.sysconf("SC_CLK_TCK")


def theirs(replies: list[str], answers: list[str]) -> float:
    """Processor seconds of math-verify for the same texts."""
    from math_verify import parse, verify

    start = time.process_time()
    for reply, answer in zip(replies, answers, strict=True):
        verify(parse(f"${answer}$", parsing_timeout=None), parse(reply, parsing_timeout=None), timeout_seconds=None)
    return time.process_time() - start


ROWS = {"numbers": number_rows, "expressions": expression_rows}


def main() -> None:
    """Measures in turns and prints the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--expressions", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--old", help="the src folder of another version")
    parser.add_argument("--only", choices=list(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    counts = {"numbers": arguments.rows, "expressions": arguments.expressions}
    if arguments.only:
        print(ours(*ROWS[arguments.only](counts[arguments.only])))
        return
    sources = {"this version": str(Path(__file__).parent.parent / "src")}
    if arguments.old:
        sources["old version"] = arguments.old
    for kind, count in counts.items():
        costs: dict[str, list[float]] = {name: [] for name in [*sources, "math-verify"]}
        theirs(*ROWS[kind](30))
        for _ in range(arguments.rounds):
            for name, source in sources.items():
                costs[name].append(_elsewhere(source, kind, arguments))
            costs["math-verify"].append(theirs(*ROWS[kind](count)))
        for name, values in costs.items():
            print(f"{kind}, {name}: {statistics.median(values) / count * 1e3:.3f} ms a row (processor)")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")


def _elsewhere(source: str, kind: str, arguments: argparse.Namespace) -> float:
    flags = ["--only", kind, "--rows", str(arguments.rows), "--expressions", str(arguments.expressions)]
    environment = os.environ | {"PYTHONPATH": str(Path(source).resolve())}
    run = subprocess.run(
        [sys.executable, __file__, *flags], env=environment, capture_output=True, text=True, check=True
    )
    return float(run.stdout)


if __name__ == "__main__":
    main()
