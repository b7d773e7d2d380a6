"""Refresh: short reinforcement learning on a damaged domain that watches the others."""
