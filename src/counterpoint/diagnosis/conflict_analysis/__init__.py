"""Policy gradients per domain, and whether they oppose each other beyond noise."""
