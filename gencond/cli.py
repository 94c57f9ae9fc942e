"""The `gencond` command."""

import argparse
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gencond
from gencond.common.errors import InputError, first_line
from gencond.common.files import alone_in, read_json, read_log, require_new
from gencond.common.progress import LogAboveBars, close_bars
from gencond.common.quick_scores import quick_scores, spoken_score
from gencond.common.room import require_place, require_text
from gencond.config import (
    DEFAULT_RECIPE,
    Recipe,
    available_recipes,
    column_overrides,
    load_recipe,
    to_commented_yaml,
    to_yaml,
)

if TYPE_CHECKING:
    from gencond.eval.outside.lrs import Settings

logger = logging.getLogger("gencond")

SECONDS_OF_MAIN = 5.0  # that other processes leave the main one to say what is wrong
ON_STATE = "the same command goes on from what is saved"

DEMO_RECIPE, DEMO_DATA, DEMO_OUT = "demo", "digits", Path("runs/demo")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args, left = parser.parse_known_args(arguments)
    # argparse takes positional words in one place only: changes to a recipe may stand behind options too.
    if left and not (hasattr(args, "overrides") and all("=" in word and word[0] != "-" for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        args.overrides = [*args.overrides, *left]
    run_cleanly(lambda: args.command(args))


def run_cleanly(command: Callable[[], None]) -> None:
    """Runs a command; what the user can mend ends it with one line and exit status 2, without a traceback.

    Of several processes the main one says it, and another only if the main one goes on.
    """
    handler = LogAboveBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        command()
    except InputError as error:
        _end(" ".join(str(error).split()), 2)
    except _write_errors() as error:
        _end(f"a file could not be written: {error}", 2)
    except OSError as error:  # no space, no permission, a vanished file
        _end(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):  # torch.save on a full disk
            _end(f"a file could not be written: {first_line(error)}", 2)
        if not _is_of_lost_process(error):
            raise
        why = "does not answer" if "imed out" in str(error) else "ended"
        _end(f"another process of this run {why}; {ON_STATE}", 1)
    except _Terminated:
        _end(f"terminated; {ON_STATE}", 143)
    except KeyboardInterrupt:
        _end(f"interrupted; {ON_STATE}", 130)
    finally:
        close_bars()
        signal.signal(signal.SIGTERM, before)
        logger.removeHandler(handler)


class _Terminated(KeyboardInterrupt):
    """By SIGTERM: of a launcher whose other process died, or of a scheduler that wants the machine back."""


def _terminate(*of_signal: object) -> None:
    raise _Terminated


def _write_errors() -> type[Exception]:
    """What safetensors raises for a full disk; asked for only when something was raised."""
    from safetensors import SafetensorError

    return SafetensorError


def _is_of_lost_process(error: RuntimeError) -> bool:
    """Whether a process waited in vain for another one."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def _end(message: str, status: int) -> None:
    close_bars()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and os.environ.get("RANK", "0") != "0":
        if status > 128:
            sys.exit(status)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher sends it once the main process has ended
        time.sleep(SECONDS_OF_MAIN)
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
    demo.add_argument("--out", type=_path, default=DEMO_OUT, help="run folder (default: %(default)s)")
    demo.set_defaults(command=run_demo)

    for name, command, what in (
        ("condense", run_condense, "condense a folder of images into a generator"),
        ("pretrain", run_pretrain, "only the adversarial pretraining of the generator"),
    ):
        sub = commands.add_parser(name, help=what)
        sub.add_argument(
            "--recipe",
            help=f"{', '.join(available_recipes())}, or a YAML file; with variants as in dm:fashion_mnist:quick"
            + ("; default: the best method known here, planned for the images and --minutes" * (name == "condense")),
        )
        if command is run_condense:
            sub.add_argument("--minutes", type=float, help="that a run without --recipe may take (default: 30)")
        _add_data(
            sub,
            "a folder with one folder per class, WebDataset shards or parquet files, one of `save_to_disk`, "
            "hf:owner/name of the Hub, an .npz file, or a named set",
        )
        sub.add_argument("--out", type=_path, help="run folder; an unfinished run in it goes on")
        if command is run_condense:
            sub.add_argument("--pretrained", type=_path, metavar="DIR", help="a pretrained generator to start from")
            sub.add_argument("--evaluate", action="store_true", help="judge the result too, as `gencond evaluate OUT`")
        _add_track(sub)
        sub.add_argument("--dry-run", action="store_true", help="print the whole recipe and stop")
        sub.add_argument("overrides", nargs="*", metavar="part.field=value", help="changes to the recipe")
        sub.set_defaults(command=command)

    plan = commands.add_parser(
        "plan",
        help="print what condense would do with your images in so many minutes",
        description="Looks at the images, times a few steps of each stage, and prints what `gencond condense` does "
        "without --recipe. With --out the whole recipe is written, which --recipe takes on any machine.",
    )
    _add_data(plan, "as of condense")
    plan.add_argument("--minutes", type=float, help="from the start to the artefact (default: 30)")
    plan.add_argument("--out", type=_path, help="a new YAML file for the recipe")
    plan.add_argument("overrides", nargs="*", metavar="part.field=value", help="changes to the recipe")
    plan.set_defaults(command=run_plan)

    recipe = commands.add_parser(
        "recipe",
        help="print a recipe with what each field means, may be and is by default",
        description="Prints a whole recipe as YAML, which --recipe takes again. Above each field stands what it means, "
        "which values it takes, and its default.",
    )
    recipe.add_argument("recipe", metavar="NAME[:VARIANT...]", help=f"{', '.join(available_recipes())}, or a YAML file")
    recipe.add_argument("overrides", nargs="*", metavar="part.field=value", help="changes to the recipe")
    recipe.set_defaults(command=run_recipe)

    doctor = commands.add_parser(
        "doctor",
        help="say what a run will take, and what it lacks, before it starts",
        description="Times a few steps of each stage on some of the images and prints what a run will take: time, "
        "memory, disk. What the run lacks is named line by line, and the status is then 2, otherwise 0.",
    )
    doctor.add_argument(
        "--recipe", default=DEFAULT_RECIPE, help="as of condense (default: %(default)s, whole; see `gencond plan`)"
    )
    _add_data(doctor, "as of condense; images are counted, a few are read")
    doctor.add_argument("--out", type=_path, help="run folder, for the space on its disk")
    doctor.add_argument("overrides", nargs="*", metavar="part.field=value", help="changes to the recipe")
    doctor.set_defaults(command=run_doctor)

    sample = commands.add_parser("sample", help="write any number of images per class")
    sample.add_argument("path", help="run folder, artefact folder or Hub id")
    sample.add_argument("--ipc", type=int, required=True, help="images per class, at least 1")
    sample.add_argument("--out", type=_path, required=True, help="a new folder; of npz and ddranking a new file")
    sample.add_argument(
        "--format", default="imagefolder", help="imagefolder (default), npz, webdataset, parquet, ddranking"
    )
    sample.add_argument("--seed", type=int, help="another seed for the images past the learned codes")
    sample.set_defaults(command=run_sample)

    append = commands.add_parser("append", help="add classes, or images of its classes, to an artefact")
    append.add_argument("path", help="run folder, artefact folder or Hub id; it stays as it is")
    _add_data(append, "the new images, as of condense; one class is enough", required=True)
    append.add_argument("--out", type=_path, required=True, help="a new run folder; an unfinished run in it goes on")
    append.add_argument(
        "--more-images", action="store_true",
        help="classes that the artefact has are learned again, from the new images and its own samples",
    )  # fmt: skip
    _add_track(append)
    append.add_argument("overrides", nargs="*", metavar="part.field=value", help="changes to the artefact's recipe")
    append.set_defaults(command=run_append)

    store = commands.add_parser("store", help="write an artefact in fewer bits")
    store.add_argument("path", help="run folder, artefact folder or Hub id")
    store.add_argument("--as", dest="storage", required=True, help="float32, float16, int8 or coded")
    store.add_argument("--out", type=_path, required=True, help="a new artefact folder, which is loaded like any other")
    store.set_defaults(command=run_store)

    push = commands.add_parser("push", help="put an artefact on the Hub, with a model card")
    push.add_argument("path", help="run folder, whose scores go into the card, or artefact folder")
    push.add_argument("name", help="owner/name; the repository is made where there is none")
    push.add_argument("--private", action="store_true", help="a repository that is made is private")
    push.add_argument("--license", help="of the artefact, as the Hub calls it: mit, cc-by-4.0, ...")
    push.set_defaults(command=run_push)

    evaluate = commands.add_parser("evaluate", help="train on samples, test on real images, beside the baselines")
    evaluate.add_argument(
        "path", help="run folder, artefact folder or Hub id; or anybody's set: image folder, .npz, .pt, .safetensors"
    )
    evaluate.add_argument(
        "--ipc", type=int, nargs="+", help="images per class to judge at; default: what the recipe says"
    )
    evaluate.add_argument("--protocol", help="how classifiers are trained; default: what the recipe says")
    evaluate.add_argument("--networks", nargs="+", help="classifiers that are trained; default: what the recipe says")
    evaluate.add_argument("--seeds", type=int, help="classifiers of each network; default: what the recipe says")
    evaluate.add_argument(
        "--baselines",
        nargs="*",
        metavar="NAME",
        help="real images beside it; default: all kinds, those of cut images where its own are cut",
    )
    _add_real_and_foreign(evaluate)
    evaluate.add_argument("--augmentation", help="operations that leave the class as it is; default: the recipe's")
    evaluate.add_argument("--stream", action="store_true", help="a row besides, of classifiers that see no image twice")
    evaluate.add_argument(
        "--quality",
        metavar="NETWORK",
        help="FID and its kin by `inception`, a timm model or a judge: NAME or NAME=FILE",
    )
    evaluate.add_argument(
        "--teacher", metavar="NETWORK",
        help="of protocol soft: a judge, trained here on real images, or NAME=FILE, or a timm model of these classes",
    )  # fmt: skip
    evaluate.add_argument(
        "--judge", metavar="ddranking[:EPOCHS]",
        help="have DD-Ranking judge instead, in an environment of its own; --networks is its name, --seeds its runs",
    )  # fmt: skip
    evaluate.add_argument(
        "--judge-python", metavar="PYTHON", help="one that has DD-Ranking; default: one is made in the cache"
    )
    evaluate.add_argument(
        "--judge-lr",
        type=float,
        metavar="RATE",
        help="learning rate of DD-Ranking for the condensed set; default: searched",
    )
    evaluate.add_argument("--out", type=_path, help="for the report; default: the run folder")
    evaluate.set_defaults(command=run_evaluate)

    continual = commands.add_parser(
        "continual", help="compare memories for continual learning: real images, condensed sets, a generator that grows"
    )
    _add_data(continual, "as of condense", required=True)
    continual.add_argument("--out", type=_path, required=True, help="for the report and all that is made")
    continual.add_argument("--recipe", help="with which each step is condensed; default: planned, as of condense")
    continual.add_argument("--minutes", type=float, help="that condensing all classes once may take (default: 30)")
    for option, default, what in (
        ("--steps", 5, "in which the classes come"),
        ("--ipc", 20, "images per class in memories of a number"),
        ("--orders", 3, "orders of the classes"),
        ("--seeds", 1, "classifiers of each step of an order"),
    ):
        continual.add_argument(option, type=int, default=default, help=f"{what} (default: %(default)s)")
    continual.add_argument(
        "--rows", nargs="+", metavar="NAME",
        help="baselines, gencond (each step alone), gencond_grown (one generator that grows), or recipes",
    )  # fmt: skip
    continual.add_argument("--network", help="classifier that is trained; default: what the recipe says")
    continual.add_argument("--protocol", default="dm:100", help="how it is trained (default: %(default)s)")
    continual.add_argument("overrides", nargs="*", metavar="part.field=value", help="changes to the recipe")
    continual.set_defaults(command=run_continual)

    search = commands.add_parser(
        "search",
        help="choose a network by training on a condensed set",
        description="Trains every network of a space on the condensed set and on its rivals, ranks them by held-out "
        "training images, and trains the best of each ranking on the whole set.",
    )
    search.add_argument("path", help="as of evaluate")
    search.add_argument("--out", type=_path, required=True, help="folder of the search, which goes on in it")
    search.add_argument("--ipc", type=int, nargs="+", help="images per class to rank by; default: what the recipe says")
    search.add_argument("--networks", nargs="+", help="instead of a space: names, as of evaluate")
    for option, kind, values in (
        ("widths", int, "32 64 128 256"),
        ("depths", int, "1 2 3 4"),
        ("activations", str, "sigmoid relu leaky_relu"),
        ("norms", str, "none batch layer instance group"),
        ("poolings", str, "none max avg"),
    ):
        search.add_argument(f"--{option}", type=kind, nargs="+", help=f"of the ConvNets; default: {values}")
    search.add_argument("--protocol", help="how networks are trained, from labels; default: dm:50")
    search.add_argument("--whole-epochs", type=int, help="of training on the whole set; default: as the protocol says")
    search.add_argument(
        "--top", type=int, metavar="K",
        help="networks of each ranking that are trained on the whole set; default: 10, or all where there are fewer",
    )  # fmt: skip
    search.add_argument("--seeds", type=int, default=1, help="trainings of each network (default: %(default)s)")
    _add_real_and_foreign(search)
    search.set_defaults(command=run_search)

    cache = commands.add_parser("cache", help="list what lies in the cache, or remove what was not used for long")
    cache.add_argument("action", nargs="?", choices=("list", "prune"), default="list", help="default: list")
    cache.add_argument(
        "--older-than", type=float, metavar="DAYS", default=30.0,
        help="prune what was last used so long ago and can be made again (default: %(default)g); what a process uses "
        "and downloads stay",
    )  # fmt: skip
    cache.set_defaults(command=run_cache)

    report = commands.add_parser("report", help="write report.md and report.html of a judged run again")
    report.add_argument("path", type=_path, help="run folder")
    report.set_defaults(command=run_report)
    return parser


def _add_track(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--track",
        metavar="NAME",
        help="tensorboard, wandb, trackio, ...: hears of losses, rates, quick scores and samples",
    )


def _add_data(parser: argparse.ArgumentParser, what: str, required: bool = False) -> None:
    """Where images lie, and in which columns of a table."""
    parser.add_argument("--data", required=required, help=what)
    for column, holds in (("image", "images"), ("label", "classes")):
        parser.add_argument(
            f"--{column}-column", metavar="NAME", help=f"of parquet files and hf: sets, where several can hold {holds}"
        )


def _add_real_and_foreign(parser: argparse.ArgumentParser) -> None:
    """What a condensed set is judged with, and how anybody's set is read."""
    _add_data(parser, "the real images, where they are not those of the recipe or have moved")
    parser.add_argument(
        "--normalised-by", nargs=2, type=_numbers, metavar=("MEAN", "STD"),
        help="of anybody's floats, per channel and comma-separated, as of images in [0, 1]; ZCA is not undone",
    )  # fmt: skip
    parser.add_argument("--factor", type=int, default=1, help="anybody's images are cut into factor x factor (IDC)")


def _path(text: str) -> Path:
    """A path, which an empty text is not: it would be the folder that one happens to be in."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path: name a folder or a file")
    return Path(text)


def _numbers(text: str) -> list[float]:
    """0.49,0.48,0.45 -> floats."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers; images whitened by ZCA are not known here: save them in [0, 1]"
        ) from None


# --- commands ----------------------------------------------------------------------------------------------------


def run_demo(args: argparse.Namespace) -> None:
    _require_one_process("demo")
    out = args.out
    gencond.condense(DEMO_DATA, out, DEMO_RECIPE)
    gencond.evaluate(out)
    print(
        f"\nLook at   {out}/report.html   (pictures, plots, how it was measured)\n"
        f"Sample    gencond sample {out} --ipc 600 --out runs/digits600\n"
        f"Use       python -c \"import gencond; print(gencond.load('{out}').sample(ipc=10)[0].shape)\"\n"
        "Your own  gencond condense --data DIR --out runs/x --minutes 30   (DIR holds one folder per class)"
    )


def run_condense(args: argparse.Namespace) -> None:
    is_planned = args.recipe is None and not args.dry_run
    if args.minutes is not None and not is_planned:
        raise InputError("--minutes plans the default method: leave --recipe and --dry-run out, or see `gencond plan`")
    if is_planned and args.pretrained is not None:
        raise InputError("--pretrained starts the generator of a recipe: name it with --recipe")
    recipe = None if is_planned else _recipe(args)
    if args.dry_run and recipe is not None:
        print(to_yaml(recipe), end="")
        return
    if args.pretrained is not None and recipe is not None:
        _require_generator(recipe, "starts from --pretrained")
    if args.evaluate:
        _require_one_process("condense --evaluate")
    out = _out(args)
    if recipe is None:
        condensed = gencond.condense(args.data, out, minutes=args.minutes, overrides=_changes(args), track=args.track)
    else:
        condensed = gencond.condense(None, out, recipe, pretrained=args.pretrained, track=args.track)
    from gencond.common.distributed import is_main_process

    if args.evaluate:
        gencond.evaluate(out)
    if is_main_process():
        _say_what_is_next(out, condensed.largest_ipc or 10, args.evaluate)


def _say_what_is_next(out: Path, ipc: int, is_judged: bool, data: str = "") -> None:
    """How good a run's result is, where its picture lies, and what to do with it.

    Args:
        data: an option that evaluating needs.
    """
    scores = quick_scores(read_log(out))
    score = f": {spoken_score(scores[-1])}" if scores and not is_judged else ""
    samples = out / "samples"
    pictures = [file for file in (samples / "grid.png", *sorted(samples.glob("step_*.png"))[-1:]) if file.is_file()]
    shown = " and ".join([f"{out}/report.html"] * is_judged + [str(file) for file in pictures[:1]])
    folder = shlex.quote(str(out))
    code = f"import gencond; print(gencond.load({json.dumps(str(out))}).sample(ipc={ipc})[0].shape)"
    evaluate, report = f"Evaluate  gencond evaluate {folder}{data}", f"Report    gencond report {folder}"
    lines = [
        f"\n{out}/condensed is ready{score}",
        *([f"Look at   {shown}"] if shown else []),
        *([] if is_judged else [evaluate]),
        f"Sample    gencond sample {folder} --ipc {ipc} --out {shlex.quote(f'{out}-ipc{ipc}')}",
        f"Use       python -c {shlex.quote(code)}",
        *([report] if is_judged else []),
    ]
    print("\n".join(lines))


def run_plan(args: argparse.Namespace) -> None:
    from gencond.common.files import write_text
    from gencond.data.load import data_source
    from gencond.plan import plan

    _require_one_process("plan")
    if args.out is not None:
        require_new(args.out)
        require_place(args.out)
    found = plan(data_source(args.data), args.minutes, _changes(args))
    print(found.page())
    if args.out is not None:
        write_text(args.out, to_yaml(found.recipe))
        print(f"\n{args.out} is written.   gencond condense --recipe {args.out} --out DIR")


def run_pretrain(args: argparse.Namespace) -> None:
    recipe = _recipe(args)
    if args.dry_run:
        print(to_yaml(recipe), end="")
        return
    from gencond.common.distributed import is_main_process
    from gencond.condensing.run import pretrain
    from gencond.condensing.tracking import require_tracker
    from gencond.data.load import load_data

    out = _out(args)
    _require_generator(recipe, "is pretrained")
    require_tracker(args.track)
    pretrained = pretrain(recipe, load_data(recipe.data)[0], out, args.track)
    if is_main_process():
        print(f"\n{pretrained} is ready; `gencond condense` with the same arguments goes on from it")


def run_recipe(args: argparse.Namespace) -> None:
    print(to_commented_yaml(load_recipe(args.recipe, args.overrides)), end="")


def run_doctor(args: argparse.Namespace) -> None:
    from gencond.doctor import doctor

    doctor(_recipe(args), args.out)


def run_sample(args: argparse.Namespace) -> None:
    from gencond.common.distributed import new_accelerator

    accelerator = new_accelerator()
    condensed = gencond.load(args.path, accelerator.device)
    out = condensed.export(
        args.out, args.ipc, args.format, args.seed, accelerator.process_index, accelerator.num_processes
    )
    if accelerator.is_main_process:
        count = args.ipc * condensed.num_classes * condensed.images_per_slot
        print(f"{count} images of {condensed.num_classes} classes in {out}")


def run_append(args: argparse.Namespace) -> None:
    from gencond.common.distributed import is_main_process

    require_text(args.out, "--out")
    grown = gencond.append(
        args.path, args.data, args.out, more_images=args.more_images, overrides=_changes(args), track=args.track
    )
    if is_main_process():
        _say_what_is_next(args.out, grown.largest_ipc or 10, is_judged=False, data=" --data ALL")
        print(f"          ALL holds images of all {grown.num_classes} classes")


def run_continual(args: argparse.Namespace) -> None:
    _require_one_process("continual")
    require_text(args.out, "--out")
    # Changes to the recipe may stand behind the rows, none of which has an equals sign.
    changes = [*_changes(args), *(word for word in args.rows or () if "=" in word)]
    rows = {} if args.rows is None else {"rows": [word for word in args.rows if "=" not in word]}
    gencond.continual(
        args.data, args.out, args.recipe, minutes=args.minutes, overrides=changes, steps=args.steps,
        ipc=args.ipc, orders=args.orders, num_seeds=args.seeds, network=args.network, protocol=args.protocol, **rows,
    )  # fmt: skip
    print(f"\nLook at   {args.out}/continual.html")


def run_store(args: argparse.Namespace) -> None:
    from gencond.condensing.run_folder import write_artefact
    from gencond.generator.card import model_card

    condensed = gencond.load(args.path)
    require_new(args.out)
    require_place(args.out)
    stored = condensed.stored_as(args.storage)
    write_artefact(args.out, stored, model_card(stored))
    print(
        f"{args.out}: {stored.num_bytes:,} bytes instead of {condensed.num_bytes:,}.   "
        f"gencond evaluate {args.out} --out {args.out}_judged"
    )


def run_push(args: argparse.Namespace) -> None:
    _require_one_process("push")
    print(f"Look at   {gencond.push(args.path, args.name, private=args.private, license=args.license)}")
    print(f"Use       python -c 'import gencond; print(gencond.load(\"{args.name}\").sample(ipc=1)[0].shape)'")


def run_evaluate(args: argparse.Namespace) -> None:
    _require_one_process("evaluate")
    normalised_by = args.normalised_by and tuple(args.normalised_by)
    if args.judge is not None:
        _have_it_judged_outside(args, normalised_by)
    elif args.judge_python is not None or args.judge_lr is not None:
        raise InputError("--judge-python and --judge-lr are of an outside judge: name it with --judge ddranking")
    else:
        gencond.evaluate(
            args.path, args.data, args.out, ipc=args.ipc, protocol=args.protocol, networks=args.networks,
            num_seeds=args.seeds, baselines=args.baselines, augmentation=args.augmentation,
            normalised_by=normalised_by, factor=args.factor, quality=args.quality, stream=args.stream,
            teacher=args.teacher, image_column=args.image_column, label_column=args.label_column,
        )  # fmt: skip
    print(f"\nLook at   {args.out or Path(args.path)}/report.html")


def _have_it_judged_outside(
    args: argparse.Namespace, normalised_by: tuple[Sequence[float], Sequence[float]] | None
) -> None:
    from gencond.api import REPORT_LOCK, report_folder
    from gencond.eval.judge import judge_outside
    from gencond.eval.subject import SubjectAt

    out = report_folder(args.path, args.out)
    with alone_in(out, REPORT_LOCK):
        at = SubjectAt(args.path, args.data, normalised_by, args.factor, args.image_column, args.label_column)
        judge_outside(at, out, _outside_settings(args), args.judge_python, args.ipc)


def run_search(args: argparse.Namespace) -> None:
    gencond.search(
        args.path, args.out, args.data, ipc=args.ipc, networks=args.networks, widths=args.widths, depths=args.depths,
        activations=args.activations, norms=args.norms, poolings=args.poolings, protocol=args.protocol,
        whole_epochs=args.whole_epochs, top=args.top, num_seeds=args.seeds,
        normalised_by=args.normalised_by and tuple(args.normalised_by), factor=args.factor,
        image_column=args.image_column, label_column=args.label_column,
    )  # fmt: skip
    from gencond.common.distributed import is_main_process

    if is_main_process():
        print(f"\nLook at   {args.out}/search.html")


def run_report(args: argparse.Namespace) -> None:
    from gencond.eval.report import write_reports
    from gencond.eval.results import Evaluation

    content = read_json(args.path / "report.json")
    if not content.get("rows") and not content.get("outside"):
        raise InputError(f"{args.path}/report.json has no rows: run `gencond evaluate {args.path}`")
    write_reports(args.path, Evaluation.from_json(content), read_log(args.path))
    print(f"{args.path}/report.md and report.html are written")


def run_cache(args: argparse.Namespace) -> None:
    from gencond.common.cache import entries, prune, table
    from gencond.common.files import cache_dir

    if args.action == "list":
        print(table(entries()))
        return
    if not args.older_than >= 0:
        raise InputError(f"--older-than {args.older_than:g}: a number of days from 0")
    removed, used = prune(args.older_than)
    print(table(removed))
    print(f"\n{len(removed)} removed, {sum(one.num_bytes for one in removed) / 1e6:,.1f} MB freed in {cache_dir()}")
    for one in used:
        print(f"left, since a process uses it: {one.path}")


# --- what the commands share -------------------------------------------------------------------------------------


def _recipe(args: argparse.Namespace) -> Recipe:
    from gencond.data.load import data_source

    return load_recipe(args.recipe or DEFAULT_RECIPE, _changes(args), data_source(args.data))


def _changes(args: argparse.Namespace) -> list[str]:
    """Changes to a recipe: the columns that options name, and what was given as `part.field=value`."""
    return [*column_overrides(args.image_column, args.label_column), *args.overrides]


def _outside_settings(args: argparse.Namespace) -> "Settings":
    """How the outside judge trains. Raises InputError where options are of our own evaluator alone."""
    from gencond.eval.outside.lrs import Settings

    name, colon, epochs = args.judge.partition(":")
    if name != "ddranking":
        raise InputError(f"unknown judge {name!r}; known: ddranking")
    if colon and not epochs.isdecimal():
        raise InputError(f"judge {args.judge!r}: after the colon stands the number of epochs")
    for option in ("protocol", "baselines", "augmentation", "quality", "teacher", "stream"):
        if getattr(args, option) not in (None, False):
            raise InputError(f"--{option} is of gencond's own evaluation: leave it out with --judge")
    if args.networks is not None and len(args.networks) != 1:
        raise InputError("an outside judge takes one network: run it once for each")
    given = {
        "epochs": int(epochs) if colon else None,
        "network": args.networks and args.networks[0],
        "num_eval": args.seeds,
        "learning_rate": args.judge_lr,
    }
    return Settings(**{field: value for field, value in given.items() if value is not None})


def _require_one_process(what: str) -> None:
    """Raises InputError where a launcher started several: they would do the same work and write the same files."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise InputError(f"gencond {what} is done by one process: start it without accelerate launch")


def _require_generator(recipe: Recipe, what: str) -> None:
    if recipe.synthesizer.kind == "pixels":
        raise InputError(f"recipe {recipe.name} learns pixels: only a generator {what} (synthesizer.kind=generator)")


def _out(args: argparse.Namespace) -> Path:
    if args.out is None:
        raise InputError("--out is missing: name a folder for the run")
    require_text(args.out, "--out")
    return args.out


if __name__ == "__main__":
    main()
