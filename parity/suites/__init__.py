"""What the engine is pointed at: our own layer, and trainings of it on real data."""
