"""Special functions."""

import jax.numpy as jnp
import jax.scipy.special as jsp
import torch

from parity.suites.atlas.entry import entry, group, joined, matrix, positive, two_matrices, uniform

CHANCES = uniform(0.05, 0.95, (4, 6))

PAIRS = group(
    "special functions",
    [
        entry("erf", lambda x: torch.erf(x), lambda x: jsp.erf(x), matrix),
        entry("erfc", lambda x: torch.erfc(x), lambda x: jsp.erfc(x), matrix),
        entry("erfinv", lambda x: torch.erfinv(x), lambda x: jsp.erfinv(x), uniform(-0.9, 0.9, (4, 6))),
        entry(
            "gammaln",
            lambda x: torch.special.gammaln(x),
            lambda x: jsp.gammaln(x),
            positive,
            why=(
                "Near 1 and 2, where the function is 0, JAX's float32 results are off by some 5e-7, "
                "torch's by 2e-9. At 0 torch's gradient is infinite, and JAX's, which is its digamma, "
                "NaN."
            ),
            where=[("forward", "random ties kinks"), ("vjp", "zeros kinks")],
            docs=("torch.special.gammaln", "jax.scipy.special.gammaln"),
        ),
        entry(
            "digamma",
            lambda x: torch.special.digamma(x),
            lambda x: jsp.digamma(x),
            positive,
            why=(
                "At 0 torch gives -inf and JAX NaN. The derivative, the trigamma function, torch "
                "computes in float64 to some 1e-9 only, and at a pole as a huge number that is another "
                "one in each dtype."
            ),
            where=[
                ("forward", "zeros kinks"),
                ("vjp", "random ties kinks"),
                ("jvp", "*"),
                ("gradient-per-copy", "*"),
                ("vjp", "kinks", "torch-eager"),
            ],
            docs=("torch.special.digamma", "jax.scipy.special.digamma"),
        ),
        entry(
            "polygamma",
            lambda x: torch.special.polygamma(1, x),
            lambda x: jsp.polygamma(1, x),
            positive,
            why=(
                "torch computes the trigamma function in float64 to some 1e-9 only (SciPy sides with "
                "JAX), and at a pole as a huge number that is another one in each dtype; JAX gives "
                "infinity or NaN there. Its derivative under jit is some 8 units of float32 too large on average."
            ),
            where=[
                ("forward", "random ties kinks"),
                ("vjp", "zeros kinks"),
                ("forward", "kinks", "torch-eager"),
                ("vjp", "random", "jax-jit"),
            ],
            docs=("torch.special.polygamma", "jax.scipy.special.polygamma"),
        ),
        entry(
            "i0",
            lambda x: torch.special.i0(x),
            lambda x: jsp.i0(x),
            matrix,
            why=(
                "At 0 the derivative is i1(0) = 0, as in torch; JAX differentiates exp(|x|) i0e(x), and "
                "takes 1 for the derivative of |x| there."
            ),
            where=[("vjp", "zeros"), ("vjp", "kinks")],
            docs=("torch.special.i0", "jax.scipy.special.i0"),
        ),
        entry(
            "logit",
            lambda x: torch.special.logit(x),
            lambda x: jsp.logit(x),
            CHANCES,
            why=(
                "Beyond 0 and 1, where the function is NaN, torch's gradient is NaN too, and JAX's the "
                "number 1 / (x (1 - x))."
            ),
            where=[("vjp", "ties"), ("vjp", "kinks")],
            docs=("torch.special.logit", "jax.scipy.special.logit"),
        ),
        entry("entr", lambda x: torch.special.entr(x), lambda x: jsp.entr(x), positive),
        entry(
            "xlogy",
            lambda x, y: torch.special.xlogy(x, y),
            lambda x, y: jsp.xlogy(x, y),
            joined(positive, positive),
            why=("The derivative by x is log(y): at x = 0 and y not above 0 JAX gives -inf or NaN, and torch 0."),
            where=[("vjp", "zeros"), ("vjp", "kinks")],
            docs=("torch.special.xlogy", "jax.scipy.special.xlogy"),
        ),
        entry("ndtr", lambda x: torch.special.ndtr(x), lambda x: jsp.ndtr(x), matrix),
        entry("sinc", lambda x: torch.sinc(x), lambda x: jnp.sinc(x), matrix),
        entry("logaddexp", lambda x, y: torch.logaddexp(x, y), lambda x, y: jnp.logaddexp(x, y), two_matrices),
    ],
)
