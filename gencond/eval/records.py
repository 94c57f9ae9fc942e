"""What results are made of: scores and answers of several seeds, and dataclasses that are read from JSON again."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeGuard, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from gencond.common.errors import InputError

Record = TypeVar("Record")
MOST_MISTAKES = 1000  # kinds of them that are kept: a matrix of a thousand classes has a million


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


@dataclass(frozen=True)
class Answered:
    """How the classifiers of one row answered, all seeds together.

    Args:
        asked: test images of each class, times seeds.
        right: of them answered rightly.
        mistakes: (class, class that it was taken for, how often), the most frequent `MOST_MISTAKES` first.
    """

    asked: tuple[int, ...]
    right: tuple[int, ...]
    mistakes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, confusion: Int[Tensor, "classes classes"]) -> "Answered":
        """From how often images of each class (rows) were taken for each class (columns)."""
        right = confusion.diagonal()
        wrong = confusion - right.diag()
        order = wrong.flatten().argsort(descending=True, stable=True)[:MOST_MISTAKES]
        rows, columns = order // len(wrong), order % len(wrong)
        named = torch.stack([rows, columns, wrong.flatten()[order]], dim=1).tolist()
        mistakes = tuple((label, taken_for, times) for label, taken_for, times in named if times)
        return cls(tuple(confusion.sum(1).tolist()), tuple(right.tolist()), mistakes)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Answered":
        """As `dataclasses.asdict` wrote it. Raises InputError where it cannot be what classifiers answered."""
        asked, right, mistakes = (content.get(name) for name in ("asked", "right", "mistakes"))
        if (
            _are_counts(asked)
            and _are_counts(right)
            and len(right) == len(asked)
            and all(some <= most for some, most in zip(right, asked, strict=True))
            and isinstance(mistakes, list)
            and all(_are_counts(line) and len(line) == 3 and max(line[:2]) < len(asked) for line in mistakes)
            and all(times <= asked[label] for label, _, times in mistakes)
        ):
            return cls(tuple(asked), tuple(right), tuple((label, other, times) for label, other, times in mistakes))
        raise InputError("the answers of a row are damaged: evaluate again")

    @property
    def shares(self) -> list[float]:
        """Of each class, that was answered rightly, in [0, 1]; 0 of a class without test images."""
        return [right / max(1, asked) for right, asked in zip(self.right, self.asked, strict=True)]


def _are_counts(value: object) -> TypeGuard[list[int]]:
    """Whether a value of JSON is a list of whole numbers from 0."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


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
