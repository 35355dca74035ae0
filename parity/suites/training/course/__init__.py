"""A training run that ends in the same bits everywhere: digits, in the reproducible precision (contract S9)."""
