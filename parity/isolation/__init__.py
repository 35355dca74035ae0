"""Running cells in a process of their own, so that one that dies or hangs is a verdict and not the end of the run."""
