"""Linear algebra."""

import jax
import jax.numpy as jnp
import torch

from parity.suites.atlas.entry import definite, entry, group, invertible, normal

SQUARES = normal((4, 4))
GENERIC = ("random",)
"""The kind of data of operators that are defined for matrices of a kind only."""

PAIRS = group(
    "linear algebra",
    [
        entry("matmul", lambda a, b: a @ b, lambda a, b: a @ b, normal((4, 6), (6, 3))),
        entry(
            "einsum",
            lambda a, b: torch.einsum("bij,bjk->bik", a, b),
            lambda a, b: jnp.einsum("bij,bjk->bik", a, b),
            normal((2, 3, 4), (2, 4, 3)),
        ),
        entry("dot", lambda a, b: torch.dot(a, b), lambda a, b: jnp.dot(a, b), normal((6,), (6,))),
        entry("det", lambda a: torch.linalg.det(a), lambda a: jnp.linalg.det(a), invertible(4), data=GENERIC),
        entry("inv", lambda a: torch.linalg.inv(a), lambda a: jnp.linalg.inv(a), invertible(4), data=GENERIC),
        entry("pinv", lambda a: torch.linalg.pinv(a), lambda a: jnp.linalg.pinv(a), normal((5, 3)), data=GENERIC),
        entry(
            "solve",
            lambda a, b: torch.linalg.solve(a, b),
            lambda a, b: jnp.linalg.solve(a, b),
            invertible(4, (4, 2)),
            data=GENERIC,
        ),
        entry(
            "solve_triangular",
            lambda a, b: torch.linalg.solve_triangular(a, b, upper=False),
            lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True),
            invertible(4, (4, 2)),
            data=GENERIC,
        ),
        entry(
            "cholesky",
            lambda a: torch.linalg.cholesky(a),
            lambda a: jnp.linalg.cholesky(a),
            definite(4),
            data=GENERIC,
            why=(
                "JAX makes its argument symmetric (symmetrize_input=True), so a direction counts by its "
                "symmetric part; torch takes a direction as it is. Gradients agree."
            ),
            where=[("jvp", "*")],
            docs=("torch.linalg.cholesky", "jax.numpy.linalg.cholesky"),
        ),
        entry("qr", lambda a: torch.linalg.qr(a), lambda a: jnp.linalg.qr(a), normal((5, 3)), data=GENERIC),
        entry(
            "eigvalsh", lambda a: torch.linalg.eigvalsh(a), lambda a: jnp.linalg.eigvalsh(a), definite(4), data=GENERIC
        ),
        entry(
            "matrix_exp",
            lambda a: torch.linalg.matrix_exp(a),
            lambda a: jax.scipy.linalg.expm(a),
            SQUARES,
            data=GENERIC,
        ),
        entry(
            "vander",
            lambda x: torch.linalg.vander(x),
            lambda x: jnp.vander(x),
            normal((4,)),
            why=(
                "The powers rise from left to right in torch, and fall in JAX unless increasing=True. "
                "The gradient of x^0 at 0 is 0 in torch and NaN in JAX."
            ),
            where=[("*", "*")],
            docs=("torch.linalg.vander", "jax.numpy.vander"),
        ),
        entry(
            "vander, increasing alike",
            lambda x: torch.linalg.vander(x),
            lambda x: jnp.vander(x, increasing=True),
            normal((4,)),
            why=("The gradient of x^0 at 0 is 0 in torch; JAX computes it as 0 * 0^-1, which is NaN."),
            where=[("vjp", "zeros"), ("vjp", "kinks")],
            docs=("torch.linalg.vander", "jax.numpy.vander"),
        ),
    ],
)
