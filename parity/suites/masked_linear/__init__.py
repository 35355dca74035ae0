"""The masked linear layer: its cases, its oracle, and wrong twins of it."""
