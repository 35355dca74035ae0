"""The verdict: results are compared with an oracle, with a float64 run, or by bits."""
