"""The inputs and outputs of each module of a model, and each module run alone: one file for each framework."""
