"""A real training run, side by side: handwritten digits, a small network of masked layers, both frameworks."""
