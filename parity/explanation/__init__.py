"""Why two functions differ."""
