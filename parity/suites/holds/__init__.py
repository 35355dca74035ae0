"""Held layers trained on a device: no frozen bit moves, under no optimizer, in no CUDA graph; the rest learns."""
