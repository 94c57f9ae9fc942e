"""Old code against this: the same commands in two checkouts, in turn, and how many times as fast the new one is.

    git clone . ../old && git -C ../old checkout COMMIT
    python scripts/bench/against.py ../old --only statistics --data cifar10.npz
    python scripts/bench/against.py ../old --only demo
    python scripts/bench/against.py ../old --only road --data cifar10.npz --recipe flagship:cifar10:quick --minutes 10 \
        --repeats 1 --set features.precision=float32

Each command runs in a process of its own, old and new in turn, so that both meet the same load; medians are compared.
Nothing but the command line of gencond and the files that it writes is asked of either checkout.

`statistics`: images a second of the pass over the real images of a pool of twelve ConvNets of 64 channels under all of
the augmentation, compiled where a checkout compiles it by itself. A run before it, which is not counted, leaves a pool
of networks of some steps each, which cost as much as others. `demo`: wall time of `gencond demo` from an empty cache,
and both tables of top-1 per cent. `road`: wall time from images to an artefact, of the old checkout's `--recipe` and of
the new one's default method in `--minutes`, and what both are worth on a fifth of the training images that neither sees
(`data.judge_on=validation`), as the new checkout judges both; the way to learn whether a share of the time is enough.
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
from typing import Any, Literal, NamedTuple

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


class Side(NamedTuple):
    """One of the two checkouts."""

    age: Literal["old", "new"]
    checkout: Path


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


def run_statistics(side: Side, folder: Path, args: argparse.Namespace) -> Found:
    """Images a second of the pass, with its probe; reading the pool from the cache counts too."""

    def condense(name: str, of_class: int) -> float:
        gencond(
            side.checkout, folder, "condense", "--recipe", "demo", "--data", args.data, "--out", f"{folder}/{name}",
            f"real.candidates={of_class}", *PASS, *args.set,
        )  # fmt: skip
        return seconds_of(folder / name, OF_STATISTICS)

    train, _ = load_real(args.data)
    of_class = min(int(train.counts.min()), -(-args.images // train.num_classes))
    condense("pool", 1)
    speed = of_class * train.num_classes / max(condense("pass", of_class), 0.05)  # logs hold tenths of seconds
    return Found(speed, f"{speed:.1f} images/s", {})


def run_demo(side: Side, folder: Path, args: argparse.Namespace) -> Found:
    """The whole demo; with --set, condensing and evaluating digits as it does, changed."""
    begun = time.perf_counter()
    if args.set:
        gencond(side.checkout, folder, "condense", "--recipe", "demo", "--data", "digits", "--out", "run", *args.set)
        gencond(side.checkout, folder, "evaluate", "run")
    else:
        gencond(side.checkout, folder, "demo", "--out", "run")
    seconds = time.perf_counter() - begun
    rows = json.loads((folder / "run" / "report.json").read_text())["rows"]
    return Found(1 / seconds, f"{seconds:.1f} s", {row_name(row): 100 * row["top1_mean"] for row in rows})


def row_name(row: dict[str, Any]) -> str:
    """Of a row of a report."""
    return f"{row['images']}, IPC {'all' if row['ipc'] is None else row['ipc']}"


def run_road(side: Side, folder: Path, args: argparse.Namespace) -> Found:
    """All of condensing; the judgement is not timed."""
    held_out = ("--data", args.data, "--out", "run", "data.judge_on=validation", *args.set)
    way = ("--minutes", f"{args.minutes:g}") if side.age == "new" else ("--recipe", args.recipe)
    begun = time.perf_counter()
    gencond(side.checkout, folder, "condense", *way, *held_out)
    seconds = time.perf_counter() - begun
    wishes = ("--ipc", "1", "10", "50", "--protocol", "dm:100", "--networks", args.network, "--seeds", str(args.seeds))
    gencond(HERE, folder, "evaluate", "run", *wishes, "--baselines", "--out", "judged")
    rows = json.loads((folder / "judged" / "report.json").read_text())["rows"]
    return Found(1 / seconds, f"{seconds / 60:.1f} min", {row_name(row): 100 * row["top1_mean"] for row in rows})


MEASUREMENTS: dict[str, Callable[[Side, Path, argparse.Namespace], Found]] = {
    "statistics": run_statistics,
    "demo": run_demo,
    "road": run_road,
}
BY_DEFAULT = ("statistics", "demo")  # the road takes hours


def middle(found: list[Found]) -> Found:
    """The run of median speed, the slower one of two; accuracies are means over all runs."""
    chosen = sorted(found)[(len(found) - 1) // 2]
    return chosen._replace(top1={row: statistics.mean(one.top1[row] for one in found) for row in chosen.top1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=BY_DEFAULT)
    parser.add_argument("--data", default="digits", help="of `statistics` and `road` (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2000, help="of `statistics` (default: %(default)s)")
    parser.add_argument("--recipe", default="flagship:cifar10:quick", help="of the old `road` (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="of the new `road` (default: %(default)s)")
    parser.add_argument("--network", default="convnet3w64", help="that judges a `road` (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="classifiers that judge a `road` (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each checkout (default: %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all recipes")
    args = parser.parse_args()
    if not (args.old / "gencond" / "cli.py").is_file():
        raise InputError(f"{args.old} is no checkout of gencond")
    if Path(args.data).exists():
        args.data = str(Path(args.data).resolve())
    sides, lines, tables = (Side("old", args.old.resolve()), Side("new", HERE)), [], []
    for name in args.only:
        found: dict[str, list[Found]] = {"old": [], "new": []}
        for _ in range(args.repeats):
            for side in sides:
                with tempfile.TemporaryDirectory() as folder:
                    found[side.age].append(MEASUREMENTS[name](side, Path(folder), args))
                print(f"{name}, {side.age}: {found[side.age][-1].shown}", flush=True)
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
