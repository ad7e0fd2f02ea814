"""What an argument may be, said once: errors that name the argument, what is allowed and what came instead.

A wrong type raises TypeError, a wrong value ValueError, each before anything is computed.
"""

import math
import operator
from numbers import Real

import torch
from torch import Tensor


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def instances(expected: type, **arguments: object) -> None:
    """Each argument is of the type, or of one of a union of types."""
    for name, value in arguments.items():
        if not isinstance(value, expected):
            raise TypeError(f"{name} must be of type {getattr(expected, '__name__', expected)}, got {value!r}")


def integers(least: int = 1, most: float = math.inf, /, **arguments: int) -> None:
    """Each argument is an integer, of whatever library, from `least` to `most`."""
    allowed = f"at least {least}" if most == math.inf else f"between {least} and {most}"
    for name, value in arguments.items():
        try:
            whole = None if isinstance(value, bool) else operator.index(value)
        except (TypeError, RuntimeError):
            whole = None
        if whole is None:
            raise TypeError(f"{name} must be an integer, got {value!r}")
        require(least <= whole <= most, f"{name} must be {allowed}, got {whole}")


def numbers(**arguments: float) -> None:
    """Each argument is one finite number."""
    for name, value in arguments.items():
        one = isinstance(value, Tensor) and value.ndim == 0 and value.device.type != "meta" and not value.is_complex()
        if isinstance(value, bool) or not (one or isinstance(value, Real)):
            raise TypeError(f"{name} must be a number, got {value!r}")
        require(math.isfinite(value), f"{name} must be finite, got {float(value)}")


def floats(**arguments: torch.dtype) -> None:
    """Each argument is a type of floating-point numbers that everything here can compute with."""
    instances(torch.dtype, **arguments)
    for name, value in arguments.items():
        require(value in (torch.float32, torch.float64), f"{name} must be float32 or float64, got {value}")


def positive(**arguments: float) -> None:
    """Each argument is one positive, finite number."""
    numbers(**arguments)
    for name, value in arguments.items():
        require(value > 0, f"{name} must be positive, got {value}")


def tensors(*, finite: bool = True, floating: bool = True, **arguments: Tensor) -> None:
    """Each argument is a tensor that holds values: finite ones, in float32 or float64, unless said otherwise."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if floating:
            floats(**{name: value.dtype})
        require(value.device.type != "meta", f"{name} must hold values, it is on the device 'meta'")
        require(value.numel() > 0, f"{name} must not be empty, got shape {tuple(value.shape)}")
        bad = int((~value.isfinite()).sum()) if finite else 0
        require(bad == 0, f"{name} must be finite, got {bad} NaN or inf")


def leading(**shapes: tuple[int, ...]) -> torch.Size:
    """The common shape of leading dimensions that broadcast."""
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        pairs = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"leading dimensions must go together, got {pairs}") from None
