"""What a user did that cannot work, said in one line."""

from numbers import Integral
from typing import Any


class InputError(ValueError):
    """Bad input from outside: a path, a recipe, a flag, a file.

    The message is one line that says what is wrong, where, and what to do. The command line prints it and
    ends with exit status 2; a library user catches it as a `ValueError`.
    """


class UnfitNetwork(InputError):
    """A network that is known and cannot take the images."""


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_count(given: Any, name: str) -> int:
    """A whole number as Python's own. Raises InputError for what is none."""
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise InputError(f"{name} is {given!r}: expected a whole number")
    return int(given)
