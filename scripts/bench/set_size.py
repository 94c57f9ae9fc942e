"""Whether memory stays flat as a set grows: decoding and the pass over 1x and 10x images, each in a process of its own.

    python scripts/bench/set_size.py                     # 2000 and 20,000 images of 64 px, made here; minutes
    python scripts/bench/set_size.py --images 5000 --times 1 2 4

"file" decodes into a file of the cache and reads from there, as sets of more than a GB of pixels are; "memory" is
what smaller sets do. "again" is the start of a second run, which decodes nothing where there is a file. The peak is of
memory that is not file cache (RssAnon, looked at every 20 ms): the system takes cached pages back whenever others need
them. Where there is no /proc it is all of the process's memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

import gencond.data.decode
from gencond.cli import run_cleanly
from gencond.condensing.real_statistics import real_statistics
from gencond.data.augment import Augmentation
from gencond.data.load import load_real
from gencond.networks.convnet import ConvNet
from gencond.networks.extractor import Extractor

CLASSES = 100
STATUS = Path("/proc/self/status")


def make_images(root: Path, count: int, side: int) -> None:
    """An image folder of smooth coloured noise as JPEGs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / f"class{number % CLASSES:02d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


def memory_now() -> int:
    """Bytes that are not file cache, or all where the system does not tell them apart."""
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss


class Peak(threading.Thread):
    """The most that `memory_now` said since it was started."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.ends = 0, threading.Event()

    def run(self) -> None:
        while not self.ends.wait(0.02):
            self.most = max(self.most, memory_now())


def measure(root: Path, side: int, kept_in: str, width: int) -> dict[str, float]:
    """Both stages in this process."""
    gencond.data.decode.MAPPED_ABOVE_BYTES = 0 if kept_in == "file" else sys.maxsize
    before, peak = memory_now(), Peak()
    peak.start()
    times = [time.perf_counter()]
    data, _ = load_real(str(root), side)
    times.append(time.perf_counter())
    load_real(str(root), side)
    times.append(time.perf_counter())
    torch.manual_seed(0)
    extractors = [Extractor(ConvNet(3, CLASSES, side, width=width, depth=3), *data.mean_std) for _ in range(2)]
    augmentation = Augmentation("color_crop_cutout_flip_scale_rotate", side, *data.mean_std)
    real_statistics(data, extractors, augmentation=augmentation, num_passes=1, num_frequencies=510, seed=0)
    times.append(time.perf_counter())
    peak.ends.set()
    decoding, again, passing = np.diff(times).tolist()
    return {
        "decoding": decoding, "again": again, "passing": passing, "images_passed": len(data), "before": before,
        "peak": peak.most,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--side", type=int, default=64, help="in pixels")
    parser.add_argument("--width", type=int, default=16, help="of two ConvNets")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "KEPT_IN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(Path(args.measure[0]), args.side, args.measure[1], args.width)))
        return
    titles = ("images", "kept in", "decode s", "images/s", "again s", "pass s", "images/s", "MB at start", "MB peak")
    print("".join(f"{title:>12}" for title in titles))
    for times in args.times:
        with tempfile.TemporaryDirectory() as folder:
            count = args.images * times
            make_images(Path(folder) / "images", count, args.side)
            for kept_in in ("file", "memory"):
                command = [
                    sys.executable, __file__, "--measure", f"{folder}/images", kept_in, "--side", str(args.side),
                    "--width", str(args.width),
                ]  # fmt: skip
                environment = os.environ | {"GENCOND_CACHE": f"{folder}/cache"}
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                cells = (
                    f"{count}", kept_in, f"{found['decoding']:.1f}", f"{count / found['decoding']:.0f}",
                    f"{found['again']:.1f}", f"{found['passing']:.1f}",
                    f"{found['images_passed'] / found['passing']:.0f}", f"{found['before'] / 2**20:.0f}",
                    f"{found['peak'] / 2**20:.0f}",
                )  # fmt: skip
                print("".join(f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    run_cleanly(main)
