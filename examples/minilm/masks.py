"""What learns: the same share of every linear layer of the encoder, in both frameworks and as SHiRA has it."""

from maskedlinear_core import select

RANK = 2
"""As SHiRA counts: so many times (out_features + in_features) entries of each weight."""


def largest(name, linear):
    """Return the mask of the largest entries of a weight, as many as SHiRA trains."""
    shape = tuple(linear.weight.shape)
    count = RANK * sum(shape)
    return select.top_k(abs(linear.weight), density=count / (shape[0] * shape[1]))


MASKS = {"encoder.layer.*": largest}
