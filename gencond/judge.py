"""Judging an artefact: real data, samples and baselines into rows, reports and the model card. Glue, as the command."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gencond
from gencond.checkpoint import RunFolder, current_commit, library_versions
from gencond.config import Recipe, parse_recipe, read_recipe_file
from gencond.data import NAMED_SETS, LabeledImages, load_real, split_off
from gencond.distributed import new_accelerator
from gencond.errors import InputError
from gencond.eval.protocols import get_protocol
from gencond.eval.report import summary_table, write_pictures, write_reports
from gencond.eval.scoring import GENCOND, REAL_IMAGES, Row, score_tables
from gencond.features import state_fingerprint
from gencond.files import read_json, write_json, write_text
from gencond.generator.card import model_card
from gencond.generator.face import Condensed
from gencond.ranges import to_uint8

logger = logging.getLogger(__name__)

OWN_RECIPES = ("demo", "gencond")  # rows of others carry their recipe's name


def data_source(data: str | None) -> str | None:
    """A path as it is found from any working directory; the name of a named set as it is."""
    is_path = data is not None and data not in NAMED_SETS and Path(data).exists()
    return str(Path(data).resolve()) if is_path else data


def load_data(recipe: Recipe) -> tuple[LabeledImages, LabeledImages]:
    """The images to condense and those to judge on, as the recipe's `data` part says."""
    with new_accelerator().main_process_first():  # one process downloads a named set, the others find it
        train, test = load_real(recipe.data.source, recipe.data.image_size, recipe.data.test_fraction)
    if recipe.data.judge_on == "validation":
        train, test = split_off(train, recipe.data.validation_fraction)
    if new_accelerator().is_main_process:
        logger.info(
            "data: %s, %d classes, %d training and %d %s images of %dx%dx%d",
            recipe.data.source, train.num_classes, len(train), len(test), recipe.data.judge_on, train.channels,
            train.image_size, train.image_size,
        )  # fmt: skip
    return train, test


def judge(
    path: str,
    out: Path,
    ipcs: Sequence[int] | None = None,
    protocol: str | None = None,
    networks: Sequence[str] | None = None,
    num_seeds: int | None = None,
    data: str | None = None,
) -> None:
    """Scores an artefact beside the baselines, prints the table, and writes report.json, report.md and report.html.

    Args:
        path: run folder, artefact folder or Hub id; with a run folder the model card is written anew too.
        out: where the reports go; rows of an earlier report there are kept if they are of the same images.
        ipcs, protocol, networks, num_seeds: None takes what the artefact's recipe says.
        data: the real images, where they are not those the recipe names or have moved.
    Raises:
        InputError: no artefact, real images of other classes or another size, an unknown protocol or network.
    """
    condensed = gencond.load(path)
    if out.is_file():
        raise InputError(f"{out} is a file: choose a folder for the report")
    recipe = _recipe_of(path, condensed, data)
    judged = recipe.evaluate
    chosen = get_protocol(protocol or judged.protocol)
    stored = (condensed.largest_ipc,) if condensed.largest_ipc else (1, 10, 50)
    ipcs, networks = ipcs or judged.ipc or stored, networks or judged.networks
    num_seeds = judged.num_seeds if num_seeds is None else num_seeds
    if min(ipcs) < 1 or num_seeds < 1:
        raise InputError("--ipc and --seeds must be at least 1")
    if condensed.largest_ipc and max(ipcs) > condensed.largest_ipc:
        raise InputError(f"{path} holds {condensed.largest_ipc} images of each class: lower --ipc {max(ipcs)}")
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
    known: list[Row] = old["rows"] if old.get("measured") == measured else []
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
        "condensed": made
        | {
            "stored": condensed.stored,
            "num_slots": condensed.num_slots,
            "images_per_slot": condensed.images_per_slot,
            "bytes": condensed.num_bytes,
        },
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

    def keep(*rows: Row) -> None:
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
        condensed_name=GENCOND if recipe.name.partition(":")[0] in OWN_RECIPES else recipe.name,
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
    write_reports(out, content, RunFolder(out).read_log())
    if out.resolve() == Path(path).resolve() and (out / "condensed").is_dir():
        write_text(out / "condensed" / "README.md", model_card(condensed, content["rows"]))
    print(f"\n{summary_table(rows)}")
    for note in content["notes"]:
        print(f"Note: {note}")


def _question(row: Row) -> tuple:
    """What a row asks, in the order of a table."""
    images = row["images"]
    place = REAL_IMAGES.index(images) if images in REAL_IMAGES else -1
    return row["protocol"], row["network"], row["ipc"] or math.inf, place


def _recipe_of(path: str, condensed: Condensed, data: str | None) -> Recipe:
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
    return parse_recipe(parts, path, source=data_source(data))


def _require_fit(condensed: Condensed, train: LabeledImages) -> None:
    """Raises InputError where an artefact and real images are not of the same classes and size."""
    if condensed.class_names != list(train.class_names):
        raise InputError(
            f"the artefact has {condensed.num_classes} classes ({condensed.class_names[0]}, ...), the real images "
            f"{train.num_classes} ({train.class_names[0]}, ...): name the set it was made from with --data"
        )
    ours, theirs = (condensed.channels, condensed.image_size), (train.channels, train.image_size)
    if ours != theirs:
        raise InputError(f"the artefact makes {ours[0]}x{ours[1]} px images, the real ones are {theirs[0]}x{theirs[1]}")
