"""What the codec's settings are worth: the error of photographs at equal bytes, for each way to encode them.

    python scripts/bench/codec.py --data cifar10.npz --ipc 100

Random training images of each class go into mosaics as `gencond.eval.codec` makes them, at several qualities. Of each
setting the table has bytes and PSNR, and the bytes that it would take, between two of its qualities, for the PSNR that
the settings in use have at quality 40: less is better. Seconds are of one thread on this machine, for comparison alone.
"""

import argparse
import math
import time
from itertools import pairwise
from typing import Any

import torch

from gencond.cli import run_cleanly
from gencond.common.errors import InputError
from gencond.data.load import load_real
from gencond.eval import codec
from gencond.eval.codec import Album, encoder_version
from gencond.eval.wording import markdown_table

QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80)
REFERENCE = 40
WAYS: dict[str, dict[str, Any]] = {
    "in use": {},
    "speed 6": {"speed": 6},
    "tune ssim": {"advanced": {"tune": "ssim"}},
    "libavif's own tune": {"advanced": {}},
    "4:2:0": {"subsampling": "4:2:0"},
    "Pillow's defaults": {"speed": 6, "advanced": {}, "autotiling": True, "subsampling": "4:2:0"},
}


def measure(album: Album, ipc: int, quality: int) -> tuple[int, float, float]:
    """(bytes, PSNR in dB, seconds) of the first `ipc` photographs of each class."""
    begun = time.perf_counter()
    size = album.size(ipc, quality)
    seconds = time.perf_counter() - begun
    shown = album.stored(ipc, size, quality).images.images.float()
    true = album.train.images[album.rows[:ipc].flatten()].float()
    return size, 10 * math.log10(255**2 / (shown - true).square().mean().item()), seconds


def bytes_at(points: list[tuple[int, float]], psnr: float) -> float | None:
    """Bytes for a PSNR, interpolated in the logarithm of bytes; None outside of what was measured."""
    for (size, low), (larger, high) in pairwise(sorted(points)):
        if low <= psnr <= high:
            return math.exp(math.log(size) + (psnr - low) / (high - low) * math.log(larger / size))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--ipc", type=int, default=100, help="photographs of each class (default: %(default)s)")
    args = parser.parse_args()
    if args.ipc < 1:
        raise InputError(f"--ipc must be at least 1, not {args.ipc}")
    torch.set_num_threads(1)
    train, _ = load_real(args.data)
    ipc = min(args.ipc, int(train.counts.min()))
    usual, subsampling = dict(codec.ENCODER), dict(codec.SUBSAMPLING)
    ways = dict(WAYS)
    if train.channels == 1:  # grey has no colours to save on
        del ways["4:2:0"]
        ways["Pillow's defaults"] = {**ways["Pillow's defaults"], "subsampling": "4:0:0"}
    found: dict[str, list[tuple[int, float, float]]] = {}
    for name, way in ways.items():
        changed = dict(way)
        codec.SUBSAMPLING[train.channels] = changed.pop("subsampling", subsampling[train.channels])
        codec.ENCODER.clear()
        codec.ENCODER.update(usual | changed)
        found[name] = [measure(Album(train, seed=0), ipc, quality) for quality in QUALITIES]
        print(f"{name}: " + ", ".join(f"{size:,} bytes {psnr:.1f} dB" for size, psnr, _ in found[name]), flush=True)
    goal = found["in use"][QUALITIES.index(REFERENCE)][1]
    reference = found["in use"][QUALITIES.index(REFERENCE)][0]
    lines = []
    for name, points in found.items():
        needed = bytes_at([(size, psnr) for size, psnr, _ in points], goal)
        ratio = "not reached" if needed is None else f"{needed / reference:.2f}"
        lines.append([name, ratio, f"{sum(seconds for *_, seconds in points):.0f}"])
    print(f"\n{len(train.class_names) * ipc} photographs, bytes for {goal:.1f} dB; {encoder_version()}\n")
    print(markdown_table(["settings", "bytes, of those in use", "seconds, all qualities"], lines))


if __name__ == "__main__":
    run_cleanly(main)
