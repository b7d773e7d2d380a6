"""What training changed between checkpoints: sparsity, norms, directions, neurons, overlap."""
