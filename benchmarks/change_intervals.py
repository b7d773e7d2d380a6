"""Is the interval of a change right? Coverage, width beside an oracle's, and power, by simulation.

    python benchmarks/change_intervals.py            # the table of docs/statistics.md, three minutes on one core

Every cell draws two evaluations of the same prompts, 4 samples a prompt. ``kept`` is the share of samples that one
random stream gives to both evaluations alike. The oracle knows the true standard deviation of the mean change.
"""

import argparse

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from counterpoint.stats import difference_interval

RATES = {
    "all 0": lambda rng, n: np.zeros(n),
    "mean .1, most 0": lambda rng, n: rng.beta(0.2, 1.8, n),
    "mean .5, wide": lambda rng, n: rng.beta(0.3, 0.3, n),
    "all .5": lambda rng, n: np.full(n, 0.5),
    "mean .8": lambda rng, n: rng.beta(1.6, 0.4, n),
    "all .9": lambda rng, n: np.full(n, 0.9),
    "mean .98": lambda rng, n: rng.beta(4.9, 0.1, n),
    "all 1": lambda rng, n: np.ones(n),
}
"""Success rates of prompts."""

CHANGES = {
    "none": lambda rng, p: p,
    "all fall .05": lambda rng, p: np.clip(p - 0.05, 0, 1),
    "all fall .08": lambda rng, p: np.clip(p - 0.08, 0, 1),
    "3 % of prompts flip": lambda rng, p: np.where(rng.random(len(p)) < 0.03, 1 - np.round(p), p),
}


def draw(
    rng: np.random.Generator, prompts: int, rates: str, change: str, kept: float, samples: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    before = RATES[rates](rng, prompts)
    after = CHANGES[change](rng, before)
    stream = rng.random((prompts, samples))
    other = np.where(rng.random(stream.shape) < kept, stream, rng.random(stream.shape))
    return (stream < before[:, None]).mean(1), (other < after[:, None]).mean(1)


def truth(rates: str, change: str) -> float:
    rng = np.random.default_rng(1)
    before = RATES[rates](rng, 400_000)
    return (CHANGES[change](rng, before) - before).mean()


def cell(prompts: int, rates: str, change: str, kept: float, draws: int) -> tuple[float, ...]:
    """Coverage, width over the oracle's, power, and power of a paired t."""
    rng = np.random.default_rng(0)
    pairs = [draw(rng, prompts, rates, change, kept) for _ in range(draws)]
    found = [difference_interval(list(before), list(after)) for before, after in pairs]
    means = np.array([one.value for one in found])
    low, high = np.array([(one.low, one.high) for one in found]).T
    true, spread = truth(rates, change), means.std()
    errors = np.array([(after - before).std(ddof=1) for before, after in pairs]) / np.sqrt(prompts)
    width = (high - low).mean() / (2 * norm.ppf(0.975) * spread) if spread > 0 else np.nan
    textbook = (means + student.ppf(0.975, prompts - 1) * errors < 0).mean()
    return ((low <= true) & (true <= high)).mean(), width, (high < 0).mean(), textbook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 128])
    options = parser.parse_args()
    print("| prompts | rates | change | kept | coverage | width / oracle | power | power of a paired t |")
    print("|--:|---|---|--:|--:|--:|--:|--:|")
    for prompts in options.prompts:
        for rates in RATES:
            for change in CHANGES:
                for kept in (0, 0.8):
                    values = cell(prompts, rates, change, kept, options.draws)
                    numbers = " | ".join("-" if np.isnan(value) else f"{value:.2f}" for value in values)
                    print(f"| {prompts} | {rates} | {change} | {kept} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
