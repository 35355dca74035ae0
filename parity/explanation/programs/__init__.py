"""Programs that can be read step by step, and run again with one step changed."""
