"""Special functions."""

import jax.numpy as jnp
import jax.scipy.special as jsp
import torch

from parity.subjects.atlas.entry import entry, group, joined, matrix, positive, two_matrices, uniform

CHANCES = uniform(0.05, 0.95, (4, 6))

PAIRS = group(
    "special functions",
    [
        entry("erf", lambda x: torch.erf(x), lambda x: jsp.erf(x), matrix),
        entry("erfc", lambda x: torch.erfc(x), lambda x: jsp.erfc(x), matrix),
        entry("erfinv", lambda x: torch.erfinv(x), lambda x: jsp.erfinv(x), uniform(-0.9, 0.9, (4, 6))),
        entry("gammaln", lambda x: torch.special.gammaln(x), lambda x: jsp.gammaln(x), positive),
        entry("digamma", lambda x: torch.special.digamma(x), lambda x: jsp.digamma(x), positive),
        entry("polygamma", lambda x: torch.special.polygamma(1, x), lambda x: jsp.polygamma(1, x), positive),
        entry("i0", lambda x: torch.special.i0(x), lambda x: jsp.i0(x), matrix),
        entry("logit", lambda x: torch.special.logit(x), lambda x: jsp.logit(x), CHANCES),
        entry("entr", lambda x: torch.special.entr(x), lambda x: jsp.entr(x), positive),
        entry(
            "xlogy", lambda x, y: torch.special.xlogy(x, y), lambda x, y: jsp.xlogy(x, y), joined(positive, positive)
        ),
        entry("ndtr", lambda x: torch.special.ndtr(x), lambda x: jsp.ndtr(x), matrix),
        entry("sinc", lambda x: torch.sinc(x), lambda x: jnp.sinc(x), matrix),
        entry("logaddexp", lambda x, y: torch.logaddexp(x, y), lambda x, y: jnp.logaddexp(x, y), two_matrices),
    ],
)
