"""Training on several domains: the trainer for TRL users, whole runs for the command line.

* ``DomainGRPOTrainer``, ``DomainGRPOConfig``: a ``trl.GRPOTrainer`` with a dataset of domains and a strategy.
* ``train``, ``resume``: a configuration to a run directory, and back to it after an interruption.
* ``evaluate_model``: scores without training.
"""

from counterpoint.training.config import DomainGRPOConfig
from counterpoint.training.preflight import check_config, plan_run
from counterpoint.training.reporter import Reporter, Silent
from counterpoint.training.run import Interrupted, evaluate_model, resume, train
from counterpoint.training.trainer import DomainGRPOTrainer

__all__ = [
    "DomainGRPOConfig",
    "DomainGRPOTrainer",
    "Interrupted",
    "Reporter",
    "Silent",
    "check_config",
    "evaluate_model",
    "plan_run",
    "resume",
    "train",
]
