"""The one engine: what is compared, how it is run in each framework, and what is made of the difference."""
