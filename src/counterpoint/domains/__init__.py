"""Domains: prompts with their reward, their share of every step, and the order in which they are drawn."""

from counterpoint.domains.build import Domain, LoadSummary, load_domains
from counterpoint.domains.rows import WeightedReward
from counterpoint.domains.sampler import QuotaSampler
from counterpoint.domains.shares import Quotas

__all__ = ["Domain", "LoadSummary", "QuotaSampler", "Quotas", "WeightedReward", "load_domains"]
