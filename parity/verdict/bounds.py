"""How far a correct computation may be from the oracle (Higham 2002; Higham and Mary 2019).

Everything the op computes is a sum of monomials, each rounded on its way to the result. To first order

    |computed - exact|  <=  sum over monomials of |monomial| * (sum of the rounding errors it met)

A monomial that went through sums of n terms met up to n roundings of the accumulator's unit u_acc,
worst case n u_acc. Rounding errors being independent of sign, sqrt(n) u_acc holds with overwhelming
probability times a small constant; 4 is that of a failure rate far below one in a billion elements.
Between operations, values are stored: one rounding of the storage unit u each. Hence

    bound = (4 sqrt(n) u_acc + stages u) * majorant

with majorant = the same formula on absolute values (oracle.py). n is the sum of all lengths a monomial
can be summed over, stages the number of times it can be stored. A bound that knows K is tight enough
to see inputs rounded to TF32 or a 16-bit accumulator; that it does is tested by sabotage (sabotage.py).
"""

from __future__ import annotations

import math

import numpy as np

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Unit roundoff of storage."""

ACCUMULATOR = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-24, "float16": 2.0**-24}
"""Unit roundoff of accumulation: 16-bit products are summed in float32 by both frameworks."""

SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}
"""What may be lost to underflow: XLA on CPU flushes float32 subnormals to zero, float16 has its own."""

FLUSHED = {"float64": 2.0**-1022, "float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}
"""The largest number that may be taken for zero: XLA on CPU flushes subnormals; it computes float16 in float32."""

PROBABLE = 4.0
"""The constant before sqrt(n)."""

ORACLE = 8.0
"""Float64 results are compared with a float64 oracle, which errs as much itself: twice the bound, and some."""


def error_bound(majorant: np.ndarray, dtype: str, *, terms: int, stages: int) -> np.ndarray:
    """Return the largest error of a correct computation, elementwise.

    Args:
        majorant: The formula on absolute values.
        dtype: The dtype computed in.
        terms: n, the sum of the lengths of all sums a monomial goes through.
        stages: How many times a monomial can be rounded to the dtype.
    """
    relative = PROBABLE * math.sqrt(max(terms, 1)) * ACCUMULATOR[dtype] + stages * UNIT[dtype]
    if dtype == "float64":
        relative *= ORACLE
    return relative * majorant + stages * SMALLEST[dtype]
