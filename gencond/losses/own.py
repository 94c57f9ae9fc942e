"""A term of one's own: a function that is registered under a name, which a recipe weighs."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from gencond.common.errors import InputError


@dataclass(frozen=True)
class Seen:
    """What a term of one's own is given in a step, of some classes.

    Args:
        images: made, in [-1, 1], before they are augmented, with gradient.
        features: of the same images, augmented, to the step's extractor, with gradient.
        centers: mean features of real images of these classes.
        real: features of the step's real images; None where statistics stand for them.
        labels: which classes these are.
    """

    images: Float[Tensor, "classes m c h w"]
    features: Float[Tensor, "classes m d"]
    centers: Float[Tensor, "classes d"]
    real: Float[Tensor, "classes n d"] | None
    labels: Int64[Tensor, " classes"]


Term = Callable[[Seen], Tensor]
_TERMS: dict[str, Term] = {}


def register_term(name: str, term: Term) -> None:
    """Makes a term known, so that a recipe may weigh it: `objective.own_term=NAME objective.own_weight=0.1`.

    A run that goes on needs it again under the same name; that it is the same function is the caller's affair.

    Args:
        term: `Seen` -> a scalar with gradient, the mean over the classes that it is given.
    Raises:
        InputError: a name that is no text, a term that is no function.
    """
    if not isinstance(name, str) or not callable(term):
        raise InputError(f"register_term({name!r}, {term!r}): expected a name and a function of what is seen")
    _TERMS[name] = term


def value_of(term: Term, seen: Seen) -> Tensor:
    """What a term says. Raises InputError where it is no scalar that can be learned from."""
    value = term(seen)
    if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        got += " without gradient" if isinstance(value, Tensor) and not value.requires_grad else ""
        raise InputError(f"objective.own_term returned {got}: expected a scalar with gradient")
    return value


def own_term(name: str) -> Term:
    """The term of a name. Raises InputError where nobody registered it."""
    if name not in _TERMS:
        known = f"; registered: {', '.join(_TERMS)}" if _TERMS else ""
        raise InputError(f"objective.own_term={name}: call gencond.losses.register_term({name!r}, ...) first{known}")
    return _TERMS[name]
