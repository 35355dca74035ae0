"""What goes into each module of a model and comes out of it, and each module run alone: one file a framework."""
