"""What a person sees of a run, and what a file keeps of it."""
