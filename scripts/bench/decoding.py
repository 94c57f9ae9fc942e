"""How far images read from JPEGs that are decoded at a fraction lie from wholly decoded ones, and how much faster.

    python scripts/bench/decoding.py FOLDER                      # photographs in class folders
    python scripts/bench/decoding.py FOLDER --height 375         # first brought to that height, as tiles of them

With `--height`, pictures of that height and four thirds of it in width are made of photographs side by side, so that
they are as sharp as the files are, and stored at JPEG quality 90.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gencond.cli import run_cleanly
from gencond.data.decode import read_image
from gencond.data.source import image_files

SIDES = (8, 16, 32, 64, 128)


def tiled(photographs: list[Image.Image], height: int) -> list[bytes]:
    """JPEGs of `height`, full of photographs, each cut to a square of the side that is their median shorter one."""
    tile = int(np.median([min(photograph.size) for photograph in photographs]))
    squares = [ImageOps.fit(photograph.convert("RGB"), (tile, tile)) for photograph in photographs]
    width = height * 4 // 3
    corners = [(left, top) for top in range(0, height, tile) for left in range(0, width, tile)]
    pictures = []
    for start in range(0, len(squares) - len(corners) + 1, len(corners)):
        picture, file = Image.new("RGB", (width, height)), io.BytesIO()
        for square, corner in zip(squares[start:], corners, strict=False):
            picture.paste(square, corner)
        picture.save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    return pictures


def read_whole(file: io.BytesIO, side: int) -> np.ndarray:
    """[h, w, 3], as `read_image` but for the fraction."""
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--height", type=int, help="of pictures made of the photographs")
    parser.add_argument("--images", type=int, default=250)
    args = parser.parse_args()
    files = [file for file in image_files(args.folder) if file.suffix.lower() in (".jpg", ".jpeg")]
    if args.height is None:
        encoded = [file.read_bytes() for file in files[:: max(1, len(files) // args.images)]]
    else:
        encoded = tiled([Image.open(file) for file in files], args.height)[: args.images]
    print(f"{len(encoded)} JPEGs\n\n| side | levels off, mean | at most | whole | as read |\n|---|---|---|---|---|")
    for side in SIDES:
        off, most, seconds = [], 0, [0.0, 0.0]
        for content in encoded:
            started = time.process_time()
            whole = read_whole(io.BytesIO(content), side)
            between = time.process_time()
            read = read_image(io.BytesIO(content), side)
            seconds[0] += between - started
            seconds[1] += time.process_time() - between
            difference = np.abs(whole.astype(int) - (read if read.ndim == 3 else read[..., None]))
            off.append(difference.mean())
            most = max(most, int(difference.max()))
        milliseconds = [1000 * one / len(encoded) for one in seconds]
        print(f"| {side} | {np.mean(off):.2f} | {most} | {milliseconds[0]:.1f} ms | {milliseconds[1]:.1f} ms |")


if __name__ == "__main__":
    run_cleanly(main)
