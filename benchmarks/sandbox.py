"""Small programs a second through the code sandbox.

    python benchmarks/sandbox.py [--programs 300] [--rounds 5]

Each program defines a function and has three assert lines. Prints the median rate over the rounds, with the fastest and
the slowest, and the same for programs run one after the other by a fresh Python each. Target: 50 a second
on two processors.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from counterpoint.rewards.sandbox import Program, Sandbox

SOURCE = """
def primes(n):
    sieve = [True] * (n + 1)
    for i in range(2, int(n ** 0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = [False] * len(sieve[i * i :: i])
    return [i for i in range(2, n + 1) if sieve[i]]
"""
TESTS = ("assert primes(10) == [2, 3, 5, 7]", "assert len(primes(1000)) == 168", "assert primes(2) == [2]")


def sandbox_rate(num_programs: int) -> float:
    """Programs a second, as many at a time as there are processors."""
    program = Program([SOURCE], TESTS)
    start = time.perf_counter()
    verdicts = Sandbox().run_all([program] * num_programs)
    rate = num_programs / (time.perf_counter() - start)
    if not all(all(verdict.passed) for verdict in verdicts):
        raise SystemExit("a program that must pass did not")
    return rate


def bare_rate(num_programs: int) -> float:
    """Programs a second with a fresh interpreter for each and no protection at all."""
    text = SOURCE + "\n".join(TESTS)
    start = time.perf_counter()
    for _ in range(num_programs):
        subprocess.run([sys.executable, "-c", text], check=True)
    return num_programs / (time.perf_counter() - start)


def main() -> None:
    """Runs both, in turns, and prints the rates."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sandbox_rate(10)  # starts the fork server
    ours, bare = [], []
    for _ in range(arguments.rounds):
        ours.append(sandbox_rate(arguments.programs))
        bare.append(bare_rate(max(10, arguments.programs // 20)))
    for name, rates in (("sandbox", ours), ("bare python, one at a time", bare)):
        print(f"{name}: {statistics.median(rates):.0f} programs/s (from {min(rates):.0f} to {max(rates):.0f})")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
