"""The arguments of a precision, and what its guard says (contract S9, S10)."""

from __future__ import annotations

from typing import NoReturn

from maskedlinear_core.checks.words import Shape, is_integer

ENGINES = ("auto", "float64", "float32", "int8")
DTYPES = ("float32", "bfloat16", "float16")


def refuse(precision: object) -> NoReturn:
    """Refuse what is no precision.

    Raises:
        ValueError: A string, but another.
        TypeError: Anything else.
    """
    kind = ValueError if isinstance(precision, str) else TypeError
    raise kind(
        f"masked_linear: expected precision to be 'native', 'reproducible' or reproducible(...), got {precision!r}; "
        "leave it out for the framework's own products"
    )


def settings(bits: object, engine: object) -> None:
    """Check the arguments of `reproducible`.

    Raises:
        TypeError: bits is no integer.
        ValueError: bits is not positive, or engine has another name.

    Example:
        >>> settings(40, "int4")
        Traceback (most recent call last):
        ...
        ValueError: reproducible: expected engine to be one of auto, float64, float32, int8, got 'int4'; 'auto' suits \
the device
    """
    if bits is not None and not is_integer(bits):
        raise TypeError(f"reproducible: expected bits to be an integer or None, got {bits!r}; None is the default")
    if isinstance(bits, int) and bits < 1:
        raise ValueError(f"reproducible: expected bits to be at least 1, got {bits}; None is the default")
    if engine not in ENGINES:
        raise ValueError(
            f"reproducible: expected engine to be one of {', '.join(ENGINES)}, got {engine!r}; 'auto' suits the device"
        )


def group(group: object, is_one: bool, expected: str) -> None:
    """Check the workers of a `reproducible`.

    Args:
        group: What was given, not None.
        is_one: Whether the framework knows it as a group of workers.
        expected: What the framework calls one.

    Raises:
        TypeError: It is none.
    """
    if not is_one:
        raise TypeError(f"reproducible: expected group to be {expected}, got {group!r}; leave it out for one worker")


def refuse_bits(bits: int, most: int, terms: int) -> NoReturn:
    """Refuse more bits than can be summed exactly."""
    raise ValueError(
        f"reproducible: expected at most bits={most} for sums of {terms} terms, got {bits}; "
        "ask for fewer bits, or cut the sum"
    )


def refuse_terms(terms: int, most: int, engine: str) -> NoReturn:
    """Refuse a sum that is too long for an engine."""
    raise ValueError(
        f"reproducible: expected sums of at most {most} terms for engine={engine!r}, got {terms}; "
        "choose engine='float64', or cut the sum"
    )


def dtype(function: str, name: str) -> None:
    """Check that a dtype has a reproducible answer.

    Raises:
        TypeError: It has none: float64.
    """
    if name not in DTYPES:
        raise TypeError(
            f"{function}: expected float32, bfloat16 or float16 for precision='reproducible', got {name}; "
            "its answer is defined for up to 24 bits, convert the arguments or use precision='native'"
        )


def product(input: Shape, weight: Shape) -> None:
    """Check the shapes of x and W.

    Raises:
        ValueError: They do not fit.
    """
    if len(weight) != 2 or not input or input[-1] != weight[1]:
        raise ValueError(
            f"accuracy_bound: expected input (*batch, in_features) and weight (out_features, in_features), "
            f"got shapes {input} and {weight}; check that the weight is (out_features, in_features)"
        )


def refuse_sharded() -> NoReturn:
    """Refuse a weight that is spread over devices by the framework."""
    raise TypeError(
        "masked_linear: expected a plain tensor for precision='reproducible', got a DTensor; "
        "shard the batch and say reproducible(group=...), or use precision='native'"
    )


def refuse_compiled_transform() -> NoReturn:
    """Refuse a torch.func transform inside of torch.compile, where a rule would be dropped in silence."""
    raise NotImplementedError(
        "masked_linear: expected no torch.func transform inside torch.compile with precision='reproducible', got one: "
        "the compiler drops derivative rules there; compile the layer and differentiate outside, or do not compile"
    )


def refuse_version(function: str, package: str, version: str, right: str, wrong: str) -> NoReturn:
    """Refuse a call that a version of a package is known to answer wrongly.

    Args:
        function: Name of the public function.
        package: Its name.
        version: The one that is installed.
        right: The first version that answers rightly.
        wrong: What the wrong answer is.
    """
    raise RuntimeError(
        f"{function}: expected {package} {right} or later for this call, got {version}, which {wrong}; "
        f"pip install '{package}>={right}'"
    )


def refuse_second_order() -> NoReturn:
    """Refuse to differentiate gradients that were summed over a group of workers."""
    raise NotImplementedError(
        "masked_linear: expected first derivatives only with reproducible(group=...), got a derivative of a gradient; "
        "gather the batch on one worker for higher orders"
    )


def refuse_batched_cotangents() -> NoReturn:
    """Refuse a batch of cotangents that the framework hides in one (`is_grads_batched`): it has no bits to read."""
    raise NotImplementedError(
        "masked_linear: expected one cotangent at a time with precision='reproducible', got a batch "
        "(is_grads_batched=True); use torch.func.vmap over torch.func.vjp, or call torch.autograd.grad for each"
    )


def refuse_symbolic(function: str, length: object) -> NoReturn:
    """Refuse a length that is known only when an exported program is called."""
    raise ValueError(
        f"{function}: expected lengths that are numbers for precision='reproducible', got the symbolic {length}: how "
        "many bits are kept depends on the length of a sum; export one program for each size, or use precision='native'"
    )


def refuse_device(device: object, engine: str, wrong: str) -> NoReturn:
    """Refuse to compute on a device that failed the known-answer test."""
    raise RuntimeError(
        f"masked_linear: expected exact {engine} sums on {device} for precision='reproducible', got another answer in "
        f"the known-answer test ({wrong}); a setting breaks exactness (XLA fast-math, TF32, reduced-precision "
        "accumulation): unset it, or choose another engine with reproducible(engine=...)"
    )
