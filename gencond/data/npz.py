"""Arrays in a .npz file -> labelled images."""

import logging
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from gencond.common.errors import InputError, first_line
from gencond.data.images import LabeledImages, require_every_class
from gencond.data.source import told_apart

logger = logging.getLogger(__name__)


def _channels_first(images: np.ndarray) -> UInt8[Tensor, "n c h w"]:
    """[n, h, w] or [n, h, w, c] -> [n, c, h, w]."""
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images))


def load_npz(path: Path) -> tuple[LabeledImages, LabeledImages | None]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            arrays = {key: loaded[key] for key in loaded.files}
    # RuntimeError: with a password, or packed in an unknown way; MemoryError: a damaged shape
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz ({first_line(error)})") from None
    if missing := {"x_train", "y_train"} - arrays.keys():
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}; it holds {', '.join(arrays) or 'nothing'}")
    if len(of_test := {"x_test", "y_test"} & arrays.keys()) == 1:
        raise InputError(
            f"{path} has {of_test.pop()} alone: a test set is x_test and y_test, add one or remove the other"
        )
    if others := arrays.keys() - {"x_train", "y_train", "x_test", "y_test", "names"}:
        logger.info("data: left out of %s: %s", path, ", ".join(sorted(others)))

    def part(split: str) -> tuple[Tensor, np.ndarray]:
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"].reshape(-1)
        shaped = x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3))
        if x.dtype != np.uint8 or not shaped or 0 in x.shape[1:3]:
            raise InputError(
                f"{path}: x_{split} is {x.dtype} {list(x.shape)}; expected uint8 [n, h, w] or [n, h, w, 1 or 3]"
            )
        if len(x) != len(y) or len(y) == 0:
            raise InputError(f"{path}: {len(x)} images but {len(y)} labels in {split}; expected as many, and some")
        most = len(names) if names else arrays["y_train"].size  # each class has an image
        if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= most:
            held = f"from {y.min()} to {y.max()}" if y.dtype.kind in "iu" else f"as {y.dtype}"
            raise InputError(
                f"{path}: y_{split} holds labels {held}; expected class indices from 0 to {most - 1} at most"
            )
        return _channels_first(x), y.astype(np.int64)

    names = told_apart(_names_in(arrays["names"], path)) if "names" in arrays else []
    x, y = part("train")
    if not names:
        count = int(y.max()) + 1
        names = [f"{label:0{len(str(count - 1))}d}" for label in range(count)]
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = torch.tensor(order).argsort()
    class_names, class_of = tuple(names[label] for label in order), tuple(rank.tolist())
    train = LabeledImages(x, rank[torch.from_numpy(y)], class_names, class_of)
    require_every_class(train, str(path))
    if "x_test" not in arrays:
        return train, None
    x, y = part("test")
    if x.shape[1:] != train.images.shape[1:]:
        raise InputError(f"{path}: training images are {list(train.images.shape[1:])}, test images {list(x.shape[1:])}")
    return train, LabeledImages(x, rank[torch.from_numpy(y)], class_names, class_of)


def _names_in(array: np.ndarray, path: Path) -> list[str]:
    """Class names of an array of text, UTF-8 bytes or whole numbers."""
    try:
        if array.ndim == 1 and len(array) and array.dtype.kind in "USiu":
            return [name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist()]
    except UnicodeDecodeError:
        pass
    raise InputError(f"{path}: names is {array.dtype} {list(array.shape)}; expected a text for each class")
