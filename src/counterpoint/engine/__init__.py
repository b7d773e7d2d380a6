"""Whole runs: from a configuration to a run directory, and back to it after an interruption.

* ``train``, ``resume``: every stage, evaluated and recorded.
* ``evaluate_model``, ``compare_checkpoints``: scores without training.
* ``check_config``, ``plan_run``: everything that can be refused before a model is loaded.

>>> from counterpoint.config import load_config
>>> from counterpoint.engine import train
>>> run = train(load_config("my.yaml"), "my-run")  # doctest: +SKIP
"""

from counterpoint.engine.evaluate import compare_checkpoints, evaluate_checkpoints, evaluate_model
from counterpoint.engine.prepare import check_config, plan_run
from counterpoint.engine.run import Interrupted, resume, train
from counterpoint.runs import Reporter

__all__ = [
    "Interrupted",
    "Reporter",
    "check_config",
    "compare_checkpoints",
    "evaluate_checkpoints",
    "evaluate_model",
    "plan_run",
    "resume",
    "train",
]
