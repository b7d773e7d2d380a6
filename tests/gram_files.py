"""``grams.jsonl`` as a run would have written it."""

import json

import numpy as np

from counterpoint.runs.grams import gram_line


def write_grams(path, gram_SGDD, groups, domains, steps=None, strategy_groups=None):
    """One line per step of ``gram_SGDD``; a domain whose numbers are NaN took no part in the step."""
    gram_SGDD = np.asarray(gram_SGDD, np.float32)
    names = list(strategy_groups or groups)
    lines = []
    for step, gram_GDD in zip(steps or range(1, len(gram_SGDD) + 1), gram_SGDD, strict=True):
        present = [i for i in range(len(domains)) if np.isfinite(gram_GDD[:, i, i]).any()]
        gram_GDD = gram_GDD[:, present][:, :, present]
        weights_KD = np.ones((len(names), len(present)))
        lines.append(gram_line(step, groups, [domains[i] for i in present], gram_GDD, names, weights_KD))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
