"""What the verdict is: held to an oracle, to a float64 run, or to bits."""
