"""Why two functions differ: causes.py tries the causes in order, and proof.py proves those found in the programs."""
