"""Everything that the checkpoints of a run allow, and two sentences for every pair of domains."""
