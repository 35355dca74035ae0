"""Everything that is to be run on the day a GPU is at hand, in one command with one report to carry back."""
