"""How it runs: which cells there are, and what the two functions give."""
