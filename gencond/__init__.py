"""gencond condenses an image dataset into a conditional generator: sample any number of images per class.

import gencond
gencond.condense("photos", "runs/photos", minutes=30)   # photos/<class>/*.jpg
condensed = gencond.load("runs/photos")
images, labels = condensed.sample(ipc=10)               # float [n, c, h, w] in [0, 1], class indices [n]
report = gencond.evaluate("runs/photos")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gencond.api import append, condense, continual, evaluate, search
    from gencond.common.errors import InputError
    from gencond.generator.dataset import CondensedDataset, load
    from gencond.generator.pipeline import CondensedPipeline
    from gencond.generator.pixels import CondensedPixels
    from gencond.publish import push

__version__ = "0.1.0"
__all__ = [
    "CondensedDataset", "CondensedPipeline", "CondensedPixels", "InputError", "append", "condense", "continual",
    "evaluate", "load", "push", "search", "__version__",
]  # fmt: skip
_ROOMS = {
    "CondensedDataset": "generator.dataset",
    "CondensedPipeline": "generator.pipeline",
    "CondensedPixels": "generator.pixels",
    "InputError": "common.errors",
    "append": "api",
    "condense": "api",
    "continual": "api",
    "evaluate": "api",
    "load": "generator.dataset",
    "push": "publish",
    "search": "api",
}


def __getattr__(name: str) -> Any:
    """Imports torch and diffusers at first use only, so that `import gencond` stays cheap."""
    if name in _ROOMS:
        return getattr(import_module(f"gencond.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'gencond' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
