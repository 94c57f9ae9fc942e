"""The published comparison, from the data to its tables, as one command.

    python scripts/flagship.py cifar10 --data cifar10.npz --out runs/flagship

    pretrain    the GAN that the recipe starts from
    condense    the artefact
    quality     FID and its kin, of the images that table A trains on (with --quality)
    fixed       table A: the papers' recipes, ours and real images at the same IPC
    storage     table B: generators of four sizes in four storages, for the bytes that they take
    page        OUT/flagship.md: the tables, the pictures, and what gave them

Every stage is commands of this project, printed before they run and noted in OUT/flagship.log. What is done is skipped,
unless its command, its recipe or the images are others now; what was killed goes on. --minutes is for a machine that is
lent: when they are over, the command in work is stopped, what it saved stays, and the status is 75; called again until
it is 0, the script goes through all of it. A piece that is saved only when it is whole has to fit into them: the
training of one classifier, the extractors of a recipe, the steps between two states.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import IO, Any

import compare
import storage_curve
import torch

from gencond import cli
from gencond.cli import run_cleanly
from gencond.common.distributed import new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import read_json, require_writable, short_hash, take_lock, write_json, write_text
from gencond.common.progress import spoken_time
from gencond.common.provenance import current_commit, library_versions
from gencond.condensing.build import has_pretraining
from gencond.condensing.checks import check_counts, check_fit
from gencond.config import Data, Recipe, load_recipe, to_dict, to_yaml
from gencond.data.images import LabeledImages
from gencond.data.load import data_source, load_data
from gencond.eval.given import quality_network
from gencond.eval.published import PUBLISHED

SCRIPTS = Path(os.path.relpath(Path(__file__).parent))  # as short as it is called by
DATASETS = ("digits", "fashion_mnist", "cifar10")  # of which every paper's recipe has a variant
PARSERS = {"compare.py": compare.build_parser, "storage_curve.py": storage_curve.build_parser}
PAPERS = ("dm", "m3d", "dream")
STREAMS = ("stream-small", "stream", "stream-large", "stream-xlarge")  # variants of the recipe, table B's generators
NOTHING = {
    "pretrain": "the recipe pretrains nothing",
    "quality": "without --quality",
    "storage": "the smallest class has fewer images than a generator of table B starts from",
}
STORED_AS = ("", "@float16", "@int8", "@coded")
NOT_DONE = 75  # EX_TEMPFAIL: the same again later
PATIENCE_SECONDS = 20.0
LAST_LINES = 12


@dataclass(frozen=True)
class Budget:
    """How much of the comparison is done.

    Args:
        variant: appended to every recipe.
        images_seen: by a classifier of table B.
        changes: to every recipe, those that learn pixels too.
    """

    protocols: tuple[str, ...]
    network: str
    seeds: int
    images_seen: int
    ipc: tuple[int, ...] = (1, 10, 50)
    variant: str = ""
    changes: tuple[str, ...] = ()


BUDGETS = {
    "full": Budget(("dm", "idc"), "convnet3", 5, 2_000_000),
    "quick": Budget(("dm:100", "idc:30"), "convnet3w64", 3, 300_000, variant=":quick"),
    # That every stage runs, and nothing of what it measures.
    "smoke": Budget(
        ("dm:1",), "convnet2w8", 1, 2000, ipc=(1, 2),
        changes=(
            "generator.width=8", "generator.chunk_dim=4", "generator.class_embed_dim=8", "pretrain.num_steps=4",
            "pretrain.batch_size=8", "pretrain.discriminator_width=8", "features.width=4", "features.train_images=16",
            "features.snapshot_steps=[1,3]", "features.num_trajectories=1", "features.num_random=1",
            "features.batch_size=16", "features.precision=float32", "features.compile=false", "real.batch_size=4",
            "real.candidates=16", "real.num_passes=1", "real.num_frequencies=12", "codes.num_slots=4",
            "codes.representative_sizes=[1,4]", "codes.encode_steps=0", "codes.start=prior", "condense.num_steps=4",
            "condense.prefix_lengths=null", "condense.stream_length=2", "condense.representative_batch_size=8",
            "save_every_steps=2", "evaluate.ipc=[1]",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """One process of a stage.

    Args:
        words: after the interpreter.
        makes: what is there once it is done; a .txt holds what it prints.
        recipes: of what it makes.
        needs: what it starts from.
    """

    stage: str
    words: tuple[str, ...]
    makes: Path
    recipes: tuple[Recipe, ...]
    needs: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return shlex.join(["python", *self.words])

    @property
    def keeps_stdout(self) -> bool:
        return self.makes.suffix == ".txt"


# --- the stages ----------------------------------------------------------------------------------------------------


def pretrain(args: argparse.Namespace, budget: Budget) -> list[Command]:
    recipe = _recipe(args, budget)
    if not has_pretraining(recipe):
        return []
    words = ("-m", "gencond.cli", "pretrain", *_of_run(args, budget, "", args.out / "gan"))
    return [Command("pretrain", words, args.out / "gan" / "pretrained", (recipe,))]


def condense(args: argparse.Namespace, budget: Budget) -> list[Command]:
    gan = _gan(args, budget)
    run = _of_run(args, budget, "", args.out / "artefact", *_given(gan))
    words = ("-m", "gencond.cli", "condense", *run)
    return [Command("condense", words, args.out / "artefact" / "condensed", (_recipe(args, budget),), gan)]


def quality(args: argparse.Namespace, budget: Budget) -> list[Command]:
    """Accuracies are table A's: the evaluation trains one short classifier, since it does nothing without any."""
    if args.quality is None:
        return []
    artefact, out = args.out / "artefact", args.out / "quality"
    words = (
        "-m", "gencond.cli", "evaluate", str(artefact), "--quality", args.quality, "--data", args.data, "--out",
        str(out), "--ipc", str(budget.ipc[-1]), "--networks", budget.network, "--protocol", "quick", "--seeds", "1",
        "--baselines",
    )  # fmt: skip
    return [Command("quality", words, out / "report.md", (_recipe(args, budget),), (artefact / "condensed",))]


def fixed(args: argparse.Namespace, budget: Budget) -> list[Command]:
    gan = _gan(args, budget)
    rows = ["random_real", "kmeans_real", *(f"{paper}:{args.dataset}{budget.variant}" for paper in PAPERS)]
    words = (
        str(SCRIPTS / "compare.py"), *rows, _name(args, budget), "--data", args.data, "--out",
        str(args.out / "fixed"), "--ipc", *map(str, budget.ipc), "--protocols", *budget.protocols, "--network",
        budget.network, "--seeds", str(args.seeds), *_given(gan), *(["--set", *args.set] if args.set else []),
    )  # fmt: skip
    asked = read_arguments("fixed", words)
    with_recipe = [row for row in asked.rows if row not in compare.BASELINES]
    recipes = tuple(compare.recipe_of(row, ipc, 0, asked) for row in with_recipe for ipc in asked.ipc)
    return [Command("fixed", words, args.out / "fixed.txt", recipes, gan)]


def storage(args: argparse.Namespace, budget: Budget) -> list[Command]:
    """Each generator is pretrained, where the recipe says so, at its own size; those that no class can fill are not."""
    streams = _filled({stream: _recipe(args, budget, f":{stream}") for stream in STREAMS})
    if not streams:
        return []
    made, recipes = [], []
    for stream, recipe in streams.items():
        run = args.out / stream
        words = ("-m", "gencond.cli", "condense", *_of_run(args, budget, f":{stream}", run))
        made.append(Command("storage", words, run / "condensed", (recipe,)))
        recipes.append(recipe)
    runs = [f"{args.out / stream}{stored}" for stream in streams for stored in STORED_AS]
    published = ("--published", args.dataset) if args.dataset in PUBLISHED else ()
    words = (
        str(SCRIPTS / "storage_curve.py"), *runs, "--data", args.data, "--out", str(args.out / "storage"),
        "--images-seen", str(budget.images_seen), "--network", budget.network, "--protocol", "idc", "--seeds",
        str(args.seeds), *published,
    )  # fmt: skip
    needs = tuple(command.makes for command in made)
    return [*made, Command("storage", words, args.out / "storage.txt", tuple(recipes), needs)]


def _filled(streams: dict[str, Recipe]) -> dict[str, Recipe]:
    """Those of which each class has the images that learning starts from; whichever share their data read it once."""
    trains = {data: load_data(data)[0] for data in {recipe.data for recipe in streams.values()}}
    filled = {}
    for stream, recipe in streams.items():
        train = trains[recipe.data]
        with contextlib.suppress(InputError):
            check_counts(recipe, train.counts, train.class_names)
            filled[stream] = recipe
    return filled


STAGES: dict[str, Callable[[argparse.Namespace, Budget], list[Command]]] = {
    "pretrain": pretrain,
    "condense": condense,
    "quality": quality,
    "fixed": fixed,
    "storage": storage,
}
PAGE = "page"  # no command: it is put together here


def _name(args: argparse.Namespace, budget: Budget, variant: str = "") -> str:
    """Of the recipe with its variants; a variant of its own says more than the budget's, which comes before."""
    return args.recipe + budget.variant + variant


def _recipe(args: argparse.Namespace, budget: Budget, variant: str = "") -> Recipe:
    recipe = load_recipe(_name(args, budget, variant), args.set, data_source(args.data))
    if recipe.synthesizer.kind != "generator":
        raise InputError(f"recipe {recipe.name} learns pixels: the comparison is of one that makes a generator")
    return recipe


def _of_run(args: argparse.Namespace, budget: Budget, variant: str, out: Path, *options: str) -> list[str]:
    return ["--recipe", _name(args, budget, variant), "--data", args.data, "--out", str(out), *options, *args.set]


def _gan(args: argparse.Namespace, budget: Budget) -> tuple[Path, ...]:
    """What stage pretrain makes."""
    return tuple(command.makes for command in pretrain(args, budget))


def _given(gan: tuple[Path, ...]) -> list[str]:
    return ["--pretrained", *map(str, gan)] if gan else []


# --- before anything runs ------------------------------------------------------------------------------------------


def read_arguments(stage: str, words: Sequence[str]) -> argparse.Namespace:
    """A command's arguments as its own parser reads them. Raises InputError where that refuses them."""
    if words[0] == "-m":
        parser, given = cli.build_parser(), words[2:]
    else:
        parser, given = PARSERS[Path(words[0]).name](), words[1:]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_args(given)
    except SystemExit:
        raise InputError(f"stage {stage}: {said.getvalue().strip().splitlines()[-1]}") from None


def check(commands: Sequence[Command], args: argparse.Namespace) -> dict[Command, str]:
    """What identifies the result of each command. Raises InputError for whatever would end the run later."""
    loaded: dict[Data, tuple[LabeledImages, LabeledImages]] = {}
    keys, made = {}, set()
    for command in commands:
        asked = read_arguments(command.stage, command.words)
        if command.stage == "fixed":  # besides, its rows have to agree
            _, train, test = compare.checked_data(asked)
        else:
            for recipe in command.recipes:
                if recipe.data not in loaded:
                    loaded[recipe.data] = load_data(recipe.data)
                train, test = loaded[recipe.data]
                check_fit(recipe, train)
        if command.stage == "quality":
            quality_network(args.quality, train, torch.device("cpu"))
        if absent := [path for path in command.needs if path not in made and not path.exists()]:
            raise InputError(f"{command.stage} starts from {absent[0]}, which is not there: choose its stage too")
        made.add(command.makes)
        recipes = [to_dict(recipe) for recipe in command.recipes]
        keys[command] = short_hash(command.words, recipes, train.fingerprint, test.fingerprint)
    return keys


def print_plan(commands: Sequence[Command], chosen: Sequence[str], args: argparse.Namespace) -> None:
    for stage in chosen:
        own = [command for command in commands if command.stage == stage]
        if stage == PAGE:
            print(f"{stage:<10}writes {args.out / 'flagship.md'}")
        elif not own:
            print(f"{stage:<10}nothing: {NOTHING[stage]}")
        for command in own:
            print(f"{stage:<10}{command}\n{'':<10}writes {command.makes}")


# --- running -------------------------------------------------------------------------------------------------------


class Notes:
    """OUT/flagship.log, what is told of the run, and OUT/flagship.json, what is known of each command."""

    def __init__(self, out: Path) -> None:
        self.out, self.log, self.file = out, out / "flagship.log", out / "flagship.json"
        self.known: dict[str, Any] = read_json(self.file) if self.file.is_file() else {}

    def say(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"
        print(line, flush=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def of(self, command: Command, key: str) -> dict[str, Any]:
        """What is known of it; nothing where what it makes was made otherwise."""
        known = self.known.get(self._name(command), {})
        return known if known.get("key") == key else {"done": False, "seconds": 0.0}

    def is_done(self, command: Command, key: str) -> bool:
        return self.of(command, key)["done"] and command.makes.exists()

    def keep(self, command: Command, key: str, seconds: float, done: bool) -> None:
        """Time adds up over the calls that a command took."""
        self.known[self._name(command)] = {
            "stage": command.stage,
            "command": str(command),
            "key": key,
            "done": done,
            "seconds": round(self.of(command, key)["seconds"] + seconds, 1),
            "made_with": library_versions() | {"commit": current_commit(), "on": device_in_words()},
        }
        write_json(self.file, self.known)

    def _name(self, command: Command) -> str:
        return str(command.makes.relative_to(self.out))


def device_in_words() -> str:
    device = new_accelerator().device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores" if device.type == "cpu" else device.type


def run(words: Sequence[str], seconds: float | None) -> tuple[int | None, str, list[str]]:
    """Runs a command and shows what it says: (status or None where time was over, stdout, last lines of stderr)."""
    printed: list[str] = []
    last: deque[str] = deque(maxlen=LAST_LINES)
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    readers = [
        Thread(target=_show, args=shown, daemon=True)
        for shown in ((process.stdout, sys.stdout, printed.append), (process.stderr, sys.stderr, last.append))
    ]
    for reader in readers:
        reader.start()
    status = None
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = 0 if _stop(process) == 0 else None  # it may have ended in this very moment
    except KeyboardInterrupt:
        _stop(process)
        raise
    finally:
        for reader in readers:
            reader.join(PATIENCE_SECONDS)  # a helper that outlives its process holds the pipe
    return status, "".join(printed), [line.rstrip() for line in last if line.strip()]


def _show(stream: IO[str], shown: IO[str], keep: Callable[[str], None]) -> None:
    with stream:
        for line in stream:
            keep(line)
            if line.strip() or shown is sys.stdout:  # a progress bar begins its lines with a return
                print(line, end="", file=shown, flush=True)


def _stop(process: subprocess.Popen) -> int:
    """As Ctrl-C does; a process that was started in the background may not hear that, and hears SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(PATIENCE_SECONDS)
    process.kill()
    return process.wait()


def run_all(keys: dict[Command, str], notes: Notes, deadline: float | None) -> None:
    """What is not done yet, in order. Leaves by SystemExit where time is over or a command failed."""
    for command, key in keys.items():
        if notes.is_done(command, key):
            notes.say(
                f"{command.stage}: done before ({spoken_time(notes.of(command, key)['seconds'])}), {command.makes}"
            )
            continue
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            _end_for_now(notes)
        notes.say(f"{command.stage}: {command}")
        started = time.monotonic()
        status, printed, last = run(command.words, left)
        seconds = time.monotonic() - started
        if status == 0 and command.keeps_stdout:
            write_text(command.makes, printed)
        notes.keep(command, key, seconds, done=status == 0)
        if status is None:
            notes.say(f"{command.stage}: stopped after {spoken_time(seconds)}")
            _end_for_now(notes)
        if status != 0:
            notes.say(f"{command.stage}: failed after {spoken_time(seconds)} with status {status}: {command}")
            print("\n".join(last), file=sys.stderr)
            sys.exit(2 if status == 2 else 1)
        notes.say(f"{command.stage}: {command.makes} is there after {spoken_time(notes.of(command, key)['seconds'])}")


def _end_for_now(notes: Notes) -> None:
    notes.say("not done: run the same command again to go on")
    sys.exit(NOT_DONE)


# --- the page ------------------------------------------------------------------------------------------------------


def tables_in(text: str) -> str:
    """The tables of what a script prints, each with the paragraph of one line that stands over it."""
    found = re.findall(r"(?:(?<=\n\n)(?:[^|\n].*\n)\n)?(?:^\|.*\n)+", text, re.M)
    return "\n".join(found).strip()


def page(notes: Notes, args: argparse.Namespace, recipe: Recipe) -> str:
    """OUT/flagship.md, of whatever is done."""
    done = {name: known for name, known in notes.known.items() if known["done"] and (args.out / name).exists()}
    lines = [f"# {args.dataset}, condensed by {recipe.name}", ""]
    for stage, title in (("fixed", "Table A: fixed images at the same IPC"), ("storage", "Table B: equal storage")):
        file = f"{stage}.txt"
        table = tables_in((args.out / file).read_text(encoding="utf-8")) if file in done else "Not measured yet."
        pictures = sorted((args.out / stage).glob("*.png")) if file in done else []
        lines += [f"## {title}", "", table, ""]
        lines += [f"![{picture.stem}]({stage}/{picture.name})\n" for picture in pictures]
    lines += [f"FID and its kin: [{name}]({name})\n" for name, known in done.items() if known["stage"] == "quality"]
    lines += ["## How", "", "```"]
    for known in sorted(done.values(), key=lambda known: list(STAGES).index(known["stage"])):
        lines += [f"# {known['stage']}, {spoken_time(known['seconds'])}", known["command"], ""]
    lines += [f"# all of it, {spoken_time(sum(known['seconds'] for known in done.values()))}", "```", ""]
    made_with = [", ".join(f"{name} {value}" for name, value in known["made_with"].items()) for known in done.values()]
    lines += [f"Made with {one}." for one in dict.fromkeys(made_with)]
    without_path = replace(recipe, data=replace(recipe.data, source=Path(recipe.data.source).name))
    lines += ["", "## The recipe", "", "```yaml", to_yaml(without_path).strip(), "```", ""]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="DATASET", help=f"whose variants the papers take: {', '.join(DATASETS)}")
    parser.add_argument("--data", help="its images, as of `gencond condense`; default: the named set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", help="default: gencond:DATASET")
    parser.add_argument("--budget", default="full", help=f"{', '.join(BUDGETS)} (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="default: 5, 3 with quick")
    parser.add_argument("--quality", metavar="NETWORK[=FILE]", help="as of `gencond evaluate`")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop then, with status 75; the next call goes on")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all that can be checked, print the commands, stop"
    )
    parser.add_argument("--only", nargs="+", metavar="STAGE", help=f"of {', '.join(STAGES)}, {PAGE}")
    parser.add_argument("--set", nargs="*", default=[], metavar="part.field=value", help="for all recipes")
    return parser


def _require_known(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"unknown {what} {name!r}; known: {', '.join(known)}")


def main(arguments: Sequence[str] | None = None) -> None:
    started = time.monotonic()
    args = build_parser().parse_args(arguments)
    chosen = args.only or [*STAGES, PAGE]
    _require_known("data set", [args.dataset], DATASETS)
    _require_known("budget", [args.budget], list(BUDGETS))
    _require_known("stage", chosen, [*STAGES, PAGE])
    if "quality" in (args.only or ()) and args.quality is None:
        raise InputError("stage quality compares in the features of a network: name one with --quality")
    budget = BUDGETS[args.budget]
    args.seeds = budget.seeds if args.seeds is None else args.seeds
    args.set = [*budget.changes, *args.set]
    if args.seeds < 1:
        raise InputError("--seeds must be at least 1")
    args.data, args.recipe = args.data or args.dataset, args.recipe or f"gencond:{args.dataset}"
    commands = [command for name, stage in STAGES.items() if name in chosen for command in stage(args, budget)]
    keys = check(commands, args)
    if args.dry_run:
        print_plan(commands, [stage for stage in (*STAGES, PAGE) if stage in chosen], args)
        return
    require_writable(args.out)
    if take_lock(args.out / ".lock") is None:
        raise InputError(f"another process works in {args.out}: wait for it or choose another --out")
    notes = Notes(args.out)
    run_all(keys, notes, None if args.minutes is None else started + 60 * args.minutes)
    if PAGE in chosen:
        file, text = args.out / "flagship.md", page(notes, args, _recipe(args, budget))
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
            notes.say(f"page: {file} is written")


if __name__ == "__main__":
    run_cleanly(main)
