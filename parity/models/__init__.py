"""Whole models: a torch model held to its JAX port, module by module."""
