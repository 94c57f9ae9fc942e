"""The `gencond` command."""

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gencond
from gencond.config import Recipe, available_recipes, load_recipe, parse_recipe, read_recipe_file, to_yaml
from gencond.errors import InputError
from gencond.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from gencond.data import LabeledImages
    from gencond.generator.condensed import CondensedDataset

logger = logging.getLogger("gencond")

DEMO_RECIPE, DEMO_DATA, DEMO_OUT = "demo", "digits", Path("runs/demo")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    run_cleanly(lambda: args.command(args))


def run_cleanly(command: Callable[[], None]) -> None:
    """Runs a command; what the user can mend ends it with one line and exit status 2, without a traceback."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        command()
    except InputError as error:
        _end(" ".join(str(error).split()), 2)
    except _write_errors() as error:
        _end(f"a file could not be written: {error}", 2)
    except OSError as error:  # no space, no permission, a vanished file
        _end(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except KeyboardInterrupt:
        _end("interrupted; the same command goes on from the last saved state", 130)
    finally:
        logger.removeHandler(handler)


def _write_errors() -> type[Exception]:
    """What safetensors raises for a full disk; asked for only when something was raised."""
    from safetensors import SafetensorError

    return SafetensorError


def _end(message: str, status: int) -> None:
    print(f"gencond: {message}", file=sys.stderr)
    sys.exit(status)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gencond",
        description="Condense an image dataset into a conditional generator, sample it at any IPC, judge the samples.",
    )
    parser.add_argument("--version", action="version", version=f"gencond {gencond.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole main job on real 8x8 digits: minutes on a CPU")
    demo.add_argument("--out", type=Path, default=DEMO_OUT, help="run folder (default: %(default)s)")
    demo.set_defaults(command=run_demo)

    for name, command, what in (
        ("condense", run_condense, "condense a folder of images into a generator"),
        ("pretrain", run_pretrain, "only the adversarial pretraining of the generator"),
    ):
        sub = commands.add_parser(name, help=what)
        sub.add_argument("--recipe", default="gencond", help=f"{', '.join(available_recipes())}, or a YAML file")
        sub.add_argument("--data", help="a folder with one folder per class, an .npz file, or a named set")
        sub.add_argument("--out", type=Path, help="run folder; an unfinished run in it goes on")
        sub.add_argument("--dry-run", action="store_true", help="print the whole recipe and stop")
        sub.add_argument("overrides", nargs="*", metavar="part.field=value", help="changes to the recipe")
        sub.set_defaults(command=command)

    sample = commands.add_parser("sample", help="write any number of images per class")
    sample.add_argument("path", help="run folder, artefact folder or Hub id")
    sample.add_argument("--ipc", type=int, required=True, help="images per class, at least 1")
    sample.add_argument("--out", type=Path, required=True)
    sample.add_argument("--format", default="imagefolder", help="imagefolder (default), npz, webdataset or parquet")
    sample.add_argument("--seed", type=int, help="another seed for the images past the learned codes")
    sample.set_defaults(command=run_sample)

    evaluate = commands.add_parser("evaluate", help="train on samples, test on real images, beside the baselines")
    evaluate.add_argument("path", help="run folder, artefact folder or Hub id")
    evaluate.add_argument("--ipc", type=int, nargs="+", help="default: what the recipe says")
    evaluate.add_argument("--protocol", help="default: what the recipe says")
    evaluate.add_argument("--networks", nargs="+", help="default: what the recipe says")
    evaluate.add_argument("--seeds", type=int, help="default: what the recipe says")
    evaluate.add_argument("--data", help="the real images, where they are not those of the recipe or have moved")
    evaluate.add_argument("--out", type=Path, help="for the report; default: the run folder")
    evaluate.set_defaults(command=run_evaluate)

    report = commands.add_parser("report", help="write report.md and report.html of a judged run again")
    report.add_argument("path", type=Path, help="run folder")
    report.set_defaults(command=run_report)
    return parser


# --- commands ----------------------------------------------------------------------------------------------------


def run_demo(args: argparse.Namespace) -> None:
    recipe = load_recipe(DEMO_RECIPE, source=DEMO_DATA)
    out = _condensed_run(recipe, args.out)
    judge(str(out), out)
    print(
        f"\nLook at   {out}/report.html   (pictures, plots, how it was measured)\n"
        f"Sample    gencond sample {out} --ipc 600 --out runs/digits600\n"
        f"Use       python -c \"import gencond; print(gencond.load('{out}').sample(ipc=10)[0].shape)\"\n"
        "Your own  gencond condense --recipe gencond --data DIR --out runs/x   (DIR holds one folder per class)"
    )


def run_condense(args: argparse.Namespace) -> None:
    recipe = _recipe(args)
    if args.dry_run:
        print(to_yaml(recipe), end="")
        return
    out = _condensed_run(recipe, _out(args))
    if _is_main_process():
        print(f"\n{out}/condensed is ready.   gencond evaluate {out}   gencond sample {out} --ipc 10 --out DIR")


def run_pretrain(args: argparse.Namespace) -> None:
    recipe = _recipe(args)
    if args.dry_run:
        print(to_yaml(recipe), end="")
        return
    from gencond.checkpoint import prepare_run
    from gencond.condense import check_fit
    from gencond.pretrain import pretrained_generator

    out = _out(args)
    train, _ = load_data(recipe)
    check_fit(recipe, train)
    with prepare_run(out, recipe, train, _is_main_process()) as run:
        pretrained_generator(recipe, train, run)
    if _is_main_process():
        print(f"\n{run.pretrained} is ready; `gencond condense` with the same arguments goes on from it")


def run_sample(args: argparse.Namespace) -> None:
    condensed = gencond.load(args.path)
    condensed.export(args.out, args.ipc, args.format, args.seed)
    print(f"{args.ipc * condensed.num_classes} images of {condensed.num_classes} classes in {args.out}")


def run_evaluate(args: argparse.Namespace) -> None:
    out = args.out or Path(args.path)
    if args.out is None and not (out / "recipe.yaml").is_file():
        raise InputError(f"{args.path} is no run folder: name the real images with --data and a folder with --out")
    judge(
        args.path, out, ipcs=args.ipc, protocol=args.protocol, networks=args.networks, num_seeds=args.seeds,
        data=args.data,
    )  # fmt: skip
    print(f"\nLook at   {out}/report.html")


def run_report(args: argparse.Namespace) -> None:
    from gencond.eval.report import write_reports

    content = read_json(args.path / "report.json")
    if not content.get("rows"):
        raise InputError(f"{args.path}/report.json has no rows: run `gencond evaluate {args.path}`")
    write_reports(args.path, content, _run_log(args.path))
    print(f"{args.path}/report.md and report.html are written")


# --- what the commands share -------------------------------------------------------------------------------------


def _recipe(args: argparse.Namespace) -> Recipe:
    return load_recipe(args.recipe, args.overrides, _source(args.data))


def _source(data: str | None) -> str | None:
    """A path as it is found from any working directory; the name of a named set as it is."""
    from gencond.data import NAMED_SETS

    is_path = data is not None and data not in NAMED_SETS and Path(data).exists()
    return str(Path(data).resolve()) if is_path else data


def _out(args: argparse.Namespace) -> Path:
    if args.out is None:
        raise InputError("--out is missing: name a folder for the run")
    return args.out


def load_data(recipe: Recipe) -> tuple["LabeledImages", "LabeledImages"]:
    """The images to condense and those to judge on, as the recipe's `data` part says."""
    from gencond.data import load_real, split_off
    from gencond.distributed import new_accelerator

    with new_accelerator().main_process_first():  # one process downloads a named set, the others find it
        train, test = load_real(recipe.data.source, recipe.data.image_size, recipe.data.test_fraction)
    if recipe.data.judge_on == "validation":
        train, test = split_off(train, recipe.data.validation_fraction)
    if _is_main_process():
        logger.info(
            "data: %s, %d classes, %d training and %d %s images of %dx%dx%d",
            recipe.data.source, train.num_classes, len(train), len(test), recipe.data.judge_on, train.channels,
            train.image_size, train.image_size,
        )  # fmt: skip
    return train, test


def _is_main_process() -> bool:
    from gencond.distributed import new_accelerator

    return new_accelerator().is_main_process


def _condensed_run(recipe: Recipe, out: Path) -> Path:
    from gencond.condense import condense
    from gencond.eval.networks import build_network
    from gencond.eval.protocols import get_protocol

    train, _ = load_data(recipe)
    get_protocol(recipe.evaluate.protocol)  # what the run will be judged by has to fit before it starts
    for network in recipe.evaluate.networks:
        build_network(network, train.channels, train.num_classes, train.image_size, seed=0)
    condense(recipe, train, out)
    return out


def judge(
    path: str,
    out: Path,
    ipcs: Sequence[int] | None = None,
    protocol: str | None = None,
    networks: Sequence[str] | None = None,
    num_seeds: int | None = None,
    data: str | None = None,
) -> None:
    """Scores an artefact beside the baselines and writes report.json, report.md and report.html to `out`."""
    from gencond.checkpoint import current_commit, library_versions
    from gencond.data import LabeledImages
    from gencond.distributed import new_accelerator
    from gencond.eval.protocols import get_protocol
    from gencond.eval.report import summary_table, write_pictures, write_reports
    from gencond.eval.scoring import score_tables
    from gencond.features import state_fingerprint
    from gencond.generator.card import model_card
    from gencond.ranges import to_uint8

    condensed = gencond.load(path)
    if out.is_file():
        raise InputError(f"{out} is a file: choose a folder for the report")
    recipe = _recipe_of(path, condensed, data)
    judged = recipe.evaluate
    chosen = get_protocol(protocol or judged.protocol)
    ipcs, networks = ipcs or judged.ipc, networks or judged.networks
    num_seeds = judged.num_seeds if num_seeds is None else num_seeds
    if min(ipcs) < 1 or num_seeds < 1:
        raise InputError("--ipc and --seeds must be at least 1")
    train, test = load_data(recipe)
    _require_fit(condensed, train)
    old = read_json(out / "report.json") if (out / "report.json").is_file() else {}

    def sample(ipc: int) -> LabeledImages:
        images, labels = condensed.sample(ipc)
        return LabeledImages(to_uint8(images).cpu(), labels.cpu(), train.class_names)

    device = new_accelerator().device
    condensed.to(device)
    measured = {
        "train": train.fingerprint, "test": test.fingerprint, "condensed": state_fingerprint(condensed),
    }  # fmt: skip
    known: list[dict[str, Any]] = old["rows"] if old.get("measured") == measured else []
    made = dict(condensed.config.provenance or {})
    content: dict[str, Any] = {
        "title": f"{Path(recipe.data.source).stem}, condensed by recipe {recipe.name}",
        "rows": known,
        "notes": [],
        "measured": measured,
        "augmentation": recipe.data.augmentation,
        "judged_on": recipe.data.judge_on,
        "num_test_images": len(test),
        "class_names": list(train.class_names),
        "condensed": made | {"num_slots": condensed.num_slots, "bytes": condensed.num_bytes},
        "versions": library_versions(),
        "commit": current_commit(),
        "command": f"gencond evaluate {path} --ipc {' '.join(map(str, ipcs))} --protocol {chosen.name} "
        f"--networks {' '.join(networks)} --seeds {num_seeds}" + ("" if data is None else f" --data {data}"),
    }
    if (condensed_from := made.get("data", {}).get("fingerprint")) not in (None, train.fingerprint):
        content["notes"].append(
            f"the real images (fingerprint {train.fingerprint}) are not those this set was condensed from "
            f"({condensed_from}): test images may have been trained on"
        )
    started, seconds = time.monotonic(), old.get("evaluation_seconds", 0.0) if known else 0.0

    def keep(*rows: dict[str, Any]) -> None:
        """Writes the report so far; a row takes the place of one that asked the same."""
        asked = [_question(row) for row in rows]
        content["rows"] = sorted([*rows, *(r for r in content["rows"] if _question(r) not in asked)], key=_question)
        used = dict.fromkeys(row["protocol"] for row in content["rows"])
        content["protocols"] = [get_protocol(name).describe() for name in used]
        content["evaluation_seconds"] = round(seconds + time.monotonic() - started, 1)
        write_json(out / "report.json", content)

    rows, notes = score_tables(
        sample,
        train,
        test,
        ipcs=ipcs,
        networks=networks,
        protocol=chosen,
        augmentation=recipe.data.augmentation,
        num_seeds=num_seeds,
        condensed_key=measured["condensed"],
        condensed_bytes=condensed.num_bytes,
        device=device,
        known=known,
        on_row=keep,
    )
    reused = sum(row in known for row in rows)
    if reused:
        logger.info("evaluation: %d of %d rows were measured before and are reused", reused, len(rows))
    content["notes"] += notes
    keep(*rows)
    write_pictures(out, train, sample(min(10, max(ipcs))))
    write_reports(out, content, _run_log(out))
    if out.resolve() == Path(path).resolve() and (out / "condensed").is_dir():
        write_text(out / "condensed" / "README.md", model_card(condensed, content["rows"]))
    print(f"\n{summary_table(rows)}")
    for note in content["notes"]:
        print(f"Note: {note}")


def _question(row: dict[str, Any]) -> tuple:
    """What a row asks, in the order of a table."""
    order = ["gencond", "random_real", "kmeans_real", "whole_set"]
    return row["protocol"], row["network"], row["ipc"] or math.inf, order.index(row["images"])


def _recipe_of(path: str, condensed: "CondensedDataset", data: str | None) -> Recipe:
    """What an artefact is judged by: its name, its data and how it is evaluated.

    The other parts are left alone, so that what an older version made can still be judged.
    """
    if (recipe_file := Path(path) / "recipe.yaml").is_file():
        made = read_recipe_file(recipe_file)
    elif data is None:
        raise InputError(f"{path} is no run folder: name its real images with --data")
    else:
        made = (condensed.config.provenance or {}).get("recipe") or {"data": {"image_size": condensed.image_size}}
    parts = {"name": path} | {part: made[part] for part in ("name", "data", "evaluate") if part in made}
    return parse_recipe(parts, path, source=_source(data))


def _require_fit(condensed: "CondensedDataset", train: "LabeledImages") -> None:
    """Raises InputError where an artefact and real images are not of the same classes and size."""
    if condensed.class_names != list(train.class_names):
        raise InputError(
            f"the artefact has {condensed.num_classes} classes ({condensed.class_names[0]}, ...), the real images "
            f"{train.num_classes} ({train.class_names[0]}, ...): name the set it was made from with --data"
        )
    ours, theirs = (condensed.channels, condensed.image_size), (train.channels, train.image_size)
    if ours != theirs:
        raise InputError(f"the artefact makes {ours[0]}x{ours[1]} px images, the real ones are {theirs[0]}x{theirs[1]}")


def _run_log(folder: Path) -> list[dict[str, Any]]:
    from gencond.checkpoint import RunFolder

    return RunFolder(folder).read_log()


if __name__ == "__main__":
    main()
