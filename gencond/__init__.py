"""gencond condenses an image dataset into a conditional generator: sample any number of images per class.

import gencond
condensed = gencond.load("runs/demo")
images, labels = condensed.sample(ipc=10)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gencond.generator.condensed import CondensedDataset, load

__version__ = "0.1.0"
__all__ = ["CondensedDataset", "load", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports torch and diffusers at first use only, so that `import gencond` stays cheap."""
    if name in ("CondensedDataset", "load"):
        from gencond.generator import condensed

        return getattr(condensed, name)
    raise AttributeError(f"module 'gencond' has no attribute {name!r}")
