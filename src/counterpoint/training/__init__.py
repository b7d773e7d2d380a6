"""Training on several domains for users of TRL: the trainer and its settings.

* ``DomainGRPOTrainer``, ``DomainGRPOConfig``: a ``trl.GRPOTrainer`` with a dataset of domains and a strategy.

Whole runs from a configuration are in ``counterpoint.engine``.
"""

from counterpoint.training.config import DomainGRPOConfig
from counterpoint.training.trainer import DomainGRPOTrainer

__all__ = ["DomainGRPOConfig", "DomainGRPOTrainer"]
