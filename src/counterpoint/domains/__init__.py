"""Domains: prompts with their reward, their share of every step, and the order in which they are drawn."""

from counterpoint.domains.build import Domain, LoadSummary, WeightedReward, load_domains
from counterpoint.domains.shares import Quotas, QuotaSampler

__all__ = ["Domain", "LoadSummary", "QuotaSampler", "Quotas", "WeightedReward", "load_domains"]
