"""Images to look at."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from gencond.common.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURED_CLASSES, PICTURED_IMAGES = 10, 10


def grid(images: UInt8[Tensor, "rows columns c h w"], scale: int = 1, gap: int = 2) -> UInt8[np.ndarray, "H W 3"]:
    """Images side by side on white, each pixel drawn as `scale` x `scale`; grey ones become RGB."""
    rows, columns, channels, height, width = images.shape
    images = images.expand(-1, -1, 3, -1, -1) if channels == 1 else images
    pixels = images.repeat_interleave(scale, -1).repeat_interleave(scale, -2).permute(0, 1, 3, 4, 2).numpy()
    height, width = height * scale, width * scale
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = pixels[row, column]
    return canvas


def screen_scale(image_size: int) -> int:
    """How large a pixel is drawn, so that small images are about 50 pixels on a screen."""
    return max(1, 48 // image_size)


def png_bytes(picture: UInt8[np.ndarray, "h w c"]) -> bytes:
    """A PNG file, grey for one channel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG")
    return buffer.getvalue()


def new_figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> "tuple[Figure, np.ndarray]":
    """A matplotlib figure that needs no screen, and its rows x columns panels; `size` in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def write_figure(path: Path, figure: "Figure", dots_per_inch: int = 110) -> None:
    """Writes a matplotlib figure as PNG, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dots_per_inch)


def write_png(path: Path, picture: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes a PNG file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(png_bytes(picture))
