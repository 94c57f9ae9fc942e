"""Old code against this: the same commands in two checkouts, in turn, and how many times as fast the new one is.

    git clone . ../old && git -C ../old checkout COMMIT
    python scripts/bench/against.py ../old --only statistics --data cifar10.npz
    python scripts/bench/against.py ../old --only demo

Each command runs in a process of its own, old and new in turn, so that both meet the same load; medians are compared.
Nothing but the command line of gencond and the files that it writes is asked of either checkout.

`statistics`: images a second of the pass over the real images of a pool of twelve ConvNets of 64 channels under all of
the augmentation, compiled where a checkout compiles it by itself. A run before it, which is not counted, leaves a pool
of networks of some steps each, which cost as much as others. `demo`: wall time of `gencond demo` from an empty cache,
and both tables of top-1 per cent.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gencond.cli import run_cleanly
from gencond.common.errors import InputError
from gencond.data.load import load_real
from gencond.eval.wording import markdown_table

HERE = Path(__file__).resolve().parents[2]
# Recipe `demo`, which every version has, with the pass of images that are larger than digits, and little besides.
PASS = (
    "data.augmentation=color_crop_cutout_flip_scale_rotate", "generator.num_blocks=null", "features.depth=null",
    "features.snapshot_steps=[1,2,3,4]", "features.num_trajectories=2", "features.num_random=4", "real.num_passes=1",
    "objective.representative_weight=0", "condense.stream_probability=0",
    "pretrain.num_steps=1", "codes.encode_steps=0", "codes.num_slots=1", "codes.representative_sizes=[1]",
    "condense.num_steps=1", "condense.prefix_lengths=[1]",
)  # fmt: skip
OF_STATISTICS = ("extractors", "statistics", "extractors and statistics")  # stages in log.jsonl, of all versions


class Found(NamedTuple):
    """What one run of a checkout gave.

    Args:
        speed: the larger the better.
        shown: of the speed, with its unit.
        top1: row of a table -> per cent; empty where nothing was judged.
    """

    speed: float
    shown: str
    top1: dict[str, float]


def gencond(checkout: Path, folder: Path, *arguments: str) -> None:
    """The command of a checkout, with the cache and compiled code in `folder`."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout), "GENCOND_CACHE": f"{folder}/cache",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled",
    }  # fmt: skip
    program = "from gencond.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"{checkout}: gencond {arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}")


def seconds_of(run: Path, stages: tuple[str, ...]) -> float:
    """Of some stages of a run, as its log has them."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return sum(entry["seconds"] for entry in entries if entry["stage"] in stages)


def run_statistics(checkout: Path, folder: Path, args: argparse.Namespace) -> Found:
    """Images a second of the pass, with its probe; reading the pool from the cache counts too."""

    def condense(name: str, of_class: int) -> float:
        gencond(
            checkout, folder, "condense", "--recipe", "demo", "--data", args.data, "--out", f"{folder}/{name}",
            f"real.candidates={of_class}", *PASS, *args.set,
        )  # fmt: skip
        return seconds_of(folder / name, OF_STATISTICS)

    train, _ = load_real(args.data)
    of_class = min(int(train.counts.min()), -(-args.images // train.num_classes))
    condense("pool", 1)
    speed = of_class * train.num_classes / max(condense("pass", of_class), 0.05)  # logs hold tenths of seconds
    return Found(speed, f"{speed:.1f} images/s", {})


def run_demo(checkout: Path, folder: Path, args: argparse.Namespace) -> Found:
    """The whole demo; with --set, condensing and evaluating digits as it does, changed."""
    begun = time.perf_counter()
    if args.set:
        gencond(checkout, folder, "condense", "--recipe", "demo", "--data", "digits", "--out", "run", *args.set)
        gencond(checkout, folder, "evaluate", "run")
    else:
        gencond(checkout, folder, "demo", "--out", "run")
    seconds = time.perf_counter() - begun
    rows = json.loads((folder / "run" / "report.json").read_text())["rows"]
    return Found(1 / seconds, f"{seconds:.1f} s", {row_name(row): 100 * row["top1_mean"] for row in rows})


def row_name(row: dict[str, Any]) -> str:
    """Of a row of a report."""
    return f"{row['images']}, IPC {'all' if row['ipc'] is None else row['ipc']}"


MEASUREMENTS: dict[str, Callable[[Path, Path, argparse.Namespace], Found]] = {
    "statistics": run_statistics,
    "demo": run_demo,
}


def middle(found: list[Found]) -> Found:
    """The run of median speed, the slower one of two; accuracies are means over all runs."""
    chosen = sorted(found)[(len(found) - 1) // 2]
    return chosen._replace(top1={row: statistics.mean(one.top1[row] for one in found) for row in chosen.top1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--data", default="digits", help="of `statistics` (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2000, help="of `statistics` (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each checkout (default: %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all recipes")
    args = parser.parse_args()
    if not (args.old / "gencond" / "cli.py").is_file():
        raise InputError(f"{args.old} is no checkout of gencond")
    if Path(args.data).exists():
        args.data = str(Path(args.data).resolve())
    checkouts, lines, tables = {"old": args.old.resolve(), "new": HERE}, [], []
    for name in args.only:
        found: dict[str, list[Found]] = {"old": [], "new": []}
        for _ in range(args.repeats):
            for age, checkout in checkouts.items():
                with tempfile.TemporaryDirectory() as folder:
                    found[age].append(MEASUREMENTS[name](checkout, Path(folder), args))
                print(f"{name}, {age}: {found[age][-1].shown}", flush=True)
        old, new = middle(found["old"]), middle(found["new"])
        lines.append([name, old.shown, new.shown, f"{new.speed / old.speed:.2f}"])
        if old.top1 or new.top1:
            rows = [
                [row, *(f"{one.top1[row]:.1f}" if row in one.top1 else "" for one in (old, new))]
                for row in dict.fromkeys([*old.top1, *new.top1])
            ]
            tables.append(markdown_table([f"{name}, top-1 %", "old", "new"], rows))
    print("\n" + "\n\n".join([markdown_table(["measured", "old", "new", "times as fast"], lines), *tables]))


if __name__ == "__main__":
    run_cleanly(main)
