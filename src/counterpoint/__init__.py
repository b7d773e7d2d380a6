"""Train one language model on many domains with reinforcement learning, without the domains hurting each other."""

__version__ = "0.1.0"
