"""What results are made of: the scores of several seeds, and dataclasses that are read from JSON again."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from gencond.common.errors import InputError

Record = TypeVar("Record")


@dataclass(frozen=True)
class Scores:
    """What the seeds of one row reached.

    Args:
        each: in [0, 1], one for each seed.
        mean: of them.
        std: their sample deviation (n - 1); 0 of a single one.
    """

    each: tuple[float, ...]
    mean: float
    std: float

    @classmethod
    def of(cls, each: Sequence[float]) -> "Scores":
        """The scores with their mean and sample deviation."""
        return cls(tuple(each), statistics.mean(each), statistics.stdev(each) if len(each) > 1 else 0.0)


def read_record(kind: type[Record], content: Mapping[str, Any], **converted: Callable[[Any], Any]) -> Record:
    """A dataclass from a JSON object of its fields; keys that it does not know are left out.

    Args:
        converted: field -> what makes its value of what JSON holds; null is not converted.
    Raises:
        InputError: a field without a default is missing.
    """
    values = {}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]  # Python has no name for a type of dataclass
        if field.name in content:
            value, convert = content[field.name], converted.get(field.name)
            values[field.name] = value if value is None or convert is None else convert(value)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"a result has no {field.name!r}: it is damaged or of another version, evaluate again")
    return kind(**values)
