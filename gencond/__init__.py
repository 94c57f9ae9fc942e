"""gencond condenses an image dataset into a conditional generator: sample any number of images per class.

import gencond
condensed = gencond.load("runs/demo")
images, labels = condensed.sample(ipc=10)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gencond.common.errors import InputError
    from gencond.generator.dataset import CondensedDataset, load
    from gencond.generator.pixels import CondensedPixels

__version__ = "0.1.0"
__all__ = ["CondensedDataset", "CondensedPixels", "InputError", "load", "__version__"]
_ROOMS = {
    "CondensedDataset": "generator.dataset",
    "CondensedPixels": "generator.pixels",
    "InputError": "common.errors",
    "load": "generator.dataset",
}


def __getattr__(name: str) -> Any:
    """Imports torch and diffusers at first use only, so that `import gencond` stays cheap."""
    if name in _ROOMS:
        return getattr(import_module(f"gencond.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'gencond' has no attribute {name!r}")
