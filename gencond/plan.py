"""The default way: what the method leaves open follows from the images, the machine and the minutes. Glue.

A recipe is written out in full, so a plan is a recipe: it can be printed, kept, changed, and run on another machine.
"""

import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsFloat

import torch

from gencond.common.distributed import from_main, new_accelerator, rank_and_world
from gencond.common.errors import InputError
from gencond.common.files import alone_in, write_text
from gencond.common.progress import spoken_time
from gencond.common.room import require_place
from gencond.condensing.backbones import usual_blocks
from gencond.condensing.build import codes_start_from_images, starts_from_known
from gencond.condensing.checks import check_fit
from gencond.condensing.encode import Encoding
from gencond.condensing.forecast import Forecast, Stage, forecast
from gencond.condensing.match import Matching
from gencond.condensing.pretrain import Pretraining
from gencond.condensing.run_folder import PLAN_LOCK, RunFolder
from gencond.config import DEFAULT_RECIPE, Recipe, load_recipe, parse_recipe, read_recipe_file, to_dict, to_yaml
from gencond.data.images import LabeledImages
from gencond.examine import Patient, examine
from gencond.networks.convnet import automatic_depth
from gencond.networks.extractor import can_compile, emulates_bfloat16

logger = logging.getLogger(__name__)

DEFAULT_MINUTES = 30.0
SAFETY = 0.93  # of the minutes are planned for: other programs, saved states, the end
SIZES = (1, 10, 50)  # images a class that an artefact is made for
MOST_SLOTS = SIZES[-1]
FEWEST_STEPS = 20  # of matching, below which nothing is learned
SHARES = {Pretraining.name: 0.1, Encoding.name: 0.1}  # of the time; matching has the rest
MOST_STEPS = {Pretraining.name: 20_000, Encoding.name: 4000, Matching.name: 10_000}
FIELDS = {
    Pretraining.name: "pretrain.num_steps", Encoding.name: "codes.encode_steps", Matching.name: "condense.num_steps",
}  # fmt: skip
SAVED_AFTER_SECONDS = 60.0
SMALLEST_HALVED = 48  # pixels of a side; extractors see larger images at the side of their parts, which hold no more
SMALLEST_CUT = 16  # pixels of a side; smaller images are not cut in four
# Of images in four parts below `SMALLEST_HALVED`: a point more on FashionMNIST. Of sixteen parts three less at IPC 50.
FASTER_RATES = ("condense.generator_lr=0.001", "condense.code_lr=0.1")
# Parts a side that an image is cut into: the most that leaves parts of so many pixels and codes of a class.
CUTS, SMALLEST_PART, FEWEST_SLOTS = (4, 3), 8, 10
CODE_SHARE = 2 / 3  # of the values of such a part: as many numbers has its code at most, or codes lose what they show
LONGEST_CHUNK = 128
REAL_IMAGES = 128  # of a class in a step, where it has so many
FEWEST_LOOKED_AT = 96  # images of a class in a step, or of the parts that they are cut into
SMALLEST_SEEN = 16  # pixels of a side at which networks see images that are cut into so many
SCORES_IN_A_RUN, SCORE_IMAGES, SCORED_FROM = 5, 500, 500  # training images, of which a tenth is held out at most
LEAST_MINUTES = 1.0
TERMS = {
    "mean": "means", "mmd": "MMD", "gradient": "gradients", "diversity": "intra-class diversity",
    "center": "inter-class centers", "classification": "classification", "own": "a term of one's own",
}  # fmt: skip
ON_A_CPU = (
    "generator.width=32", "features.train_images=128", "codes.encode_batch_size=32",
)  # fmt: skip
ON_A_GPU = (
    "generator.width=64", "features.train_images=512", "codes.encode_batch_size=128",
)  # fmt: skip
NETWORKS_IN_A_RUN = 8  # at least, one after the other
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


@dataclass(frozen=True)
class Plan:
    """A recipe with the numbers that fit its minutes.

    Args:
        expected: what it is foreseen to take.
        reasons: for people, what was derived and from what.
        notes: what does not come out as asked for.
    """

    recipe: Recipe
    expected: Forecast
    reasons: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()

    def page(self) -> str:
        """One screen of text."""
        said = [f"{name:<18}{text}" for name, text in self.reasons]
        notes = [f"{'note':<18}{note}" for note in self.notes]
        return "\n".join([*said, "", *self.expected.lines(), *notes])


def plan(source: str | None, minutes: SupportsFloat | str | None, overrides: Sequence[str] = ()) -> Plan:
    """The default method for some images, in so many minutes of this machine; times a few steps of each stage.

    Args:
        source: of the images, as `data.source`; None takes what the overrides say.
        minutes: from the start to the artefact, without evaluation; None: `DEFAULT_MINUTES`.
        overrides: as `part.field=value`; they come before whatever is derived.
    Raises:
        InputError: minutes that do not suffice, images that cannot be read, overrides that do not fit.
    """
    minutes, started = checked_minutes(minutes), time.monotonic()
    given = {override.partition("=")[0] for override in overrides}
    if "minutes" in given:
        raise InputError("minutes are asked for by --minutes, not as a field of the recipe")
    asked = load_recipe(DEFAULT_RECIPE, overrides, source)
    patient = examine(asked)
    device = new_accelerator().device
    changes = derived(patient, asked, given, device)
    changes = [change for change in changes if change.partition("=")[0] not in given]
    recipe = load_recipe(DEFAULT_RECIPE, [*changes, *overrides], source)
    check_fit(recipe, patient.sample)
    expected = forecast(recipe, patient.sample, patient.amount_beside_scores(recipe.condense), device)
    steps, notes = chosen_steps(expected, minutes, given, time.monotonic() - started)
    changes += [f"minutes={minutes!r}", *(f"{field}={count}" for field, count in steps.items())]
    recipe = load_recipe(DEFAULT_RECIPE, [*changes, *overrides], source)
    changes += follow_from_steps(recipe, expected)
    recipe = load_recipe(DEFAULT_RECIPE, [*changes, *overrides], source)
    planned = as_planned(expected, recipe)
    if not recipe.condense.num_steps:
        notes.append("condense.num_steps=0: nothing is matched, the artefact is what encoding leaves")
    if planned.seconds > 60 * minutes:
        notes.append(f"the steps that were asked for do not end in {minutes:g} minutes")
    return Plan(recipe, planned, tuple(reasons(recipe, patient, device)), tuple(notes))


def checked_minutes(minutes: object) -> float:
    """The minutes, or `DEFAULT_MINUTES`. Raises InputError where they are no number from `LEAST_MINUTES`."""
    if minutes is None:
        return DEFAULT_MINUTES
    try:
        number = float(minutes) if isinstance(minutes, SupportsFloat | str) and minutes is not True else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= LEAST_MINUTES):
        raise InputError(f"--minutes {minutes}: a number from {LEAST_MINUTES:g}, since a few steps are timed first")
    return number


def derived(patient: Patient, asked: Recipe, given: set[str], device: torch.device) -> list[str]:
    """Overrides that follow from the images and the machine.

    Args:
        given: fields that were asked for, which others follow from.
    """
    side, smallest = patient.sample.image_size, int(patient.counts.min())
    factor = factor_of(side, smallest)
    factor = asked.synthesizer.factor if "synthesizer.factor" in given else factor
    cuts = factor > 1 and asked.synthesizer.by_parts
    slots = max(1, min(MOST_SLOTS, smallest // factor**2))
    slots = asked.codes.num_slots if "codes.num_slots" in given else slots
    lengths = sorted({*(size for size in SIZES if size <= slots), slots})
    judged = [size for size in SIZES if size <= smallest]
    looked_at = max(FEWEST_LOOKED_AT, 12 * factor**2) * (1 if device.type == "cpu" else 2)
    compiles = can_compile() and device.type in ("cpu", "cuda")
    has_bfloat16 = not emulates_bfloat16(device)
    scored = int(patient.counts.sum()) >= SCORED_FROM
    score_every = max(1, asked.condense.num_steps // SCORES_IN_A_RUN)
    return [
        f"data.image_size={side}",
        f"synthesizer.factor={factor}",
        f"synthesizer.by_parts={'true' if cuts else 'false'}",
        f"real.batch_size={min(REAL_IMAGES, smallest)}",
        *(ON_A_CPU if device.type == "cpu" else ON_A_GPU),
        "features.width=64",
        *([f"generator.chunk_dim={_chunk_dim(patient.sample, factor)}"] if cuts and factor in CUTS else []),
        *(FASTER_RATES if cuts and factor == 2 and side < SMALLEST_HALVED else ()),
        f"features.resize={_seen_at(side, factor) if cuts else 'null'}",
        f"features.precision={'bfloat16' if compiles and has_bfloat16 else 'float32'}",
        f"generator.precision={'bfloat16' if device.type == 'cpu' and has_bfloat16 else 'float32'}",
        f"features.compile={'true' if compiles else 'false'}",
        f"codes.num_slots={slots}",
        f"codes.ranking_resize={_ranked_at(side, asked)}",
        f"codes.representative_sizes={[size for size in lengths if size <= 10]}",
        f"condense.prefix_lengths={lengths}",
        f"condense.images_per_step={looked_at}",
        f"condense.score_every_steps={score_every if scored else 'null'}",
        f"condense.score_images={SCORE_IMAGES}",
        f"evaluate.ipc={judged}",
        f"evaluate.networks=[convnet{automatic_depth(side)}w64]",
        "evaluate.protocol=dm:100",
    ]


def factor_of(side: int, smallest: int) -> int:
    """How many parts a side an image of so many pixels is cut into, where the smallest class has so many images."""
    for factor in CUTS:
        if side % factor == 0 and side // factor >= SMALLEST_PART and smallest // factor**2 >= FEWEST_SLOTS:
            return factor
    return 2 if side >= SMALLEST_CUT and side % 2 == 0 and smallest >= 4 else 1


def _chunk_dim(sample: LabeledImages, factor: int) -> int:
    """Numbers of each chunk of a part's code, which has one for each block of the generator and one more."""
    side = sample.image_size // factor
    chunks = usual_blocks(side) + 1
    return max(1, min(LONGEST_CHUNK, int(CODE_SHARE * sample.channels * side**2 / chunks)))


def _seen_at(side: int, factor: int) -> int | str:
    """At which networks see images that are cut into parts, or null: at their own side."""
    if factor in CUTS:
        return max(SMALLEST_SEEN, side // factor)
    return side // factor if side >= SMALLEST_HALVED else "null"


def _ranked_at(side: int, asked: Recipe) -> int | str:
    """At which networks see images that they rank, or null: as extractors do, where another network was asked for."""
    part = asked.features
    is_ours = part.network == "convnet" and part.weights is None and part.depth is None
    return SMALLEST_SEEN if is_ours and side > SMALLEST_SEEN else "null"


def reasons(recipe: Recipe, patient: Patient, device: torch.device) -> list[tuple[str, str]]:
    """What a plan does, for people."""
    sample, part, data = patient.sample, recipe.synthesizer, recipe.data
    size = f"{sample.channels}x{sample.image_size}x{sample.image_size} px"
    amount = patient.amount_beside_scores(recipe.condense)
    scored = f", {amount.num_held_out:,} of them held out for quick scores" if amount.num_held_out else ""
    cut = f"{part.factor**2} in one, each {sample.image_size // part.factor} px from a code of its own"
    slots = f"{recipe.codes.num_slots} learned codes a class, in order: the first k are the set of k images"
    known = starts_from_known(recipe, amount.largest_class)
    started = "from real images" if codes_start_from_images(recipe) else "at random"
    started += " that a network knows after a brief training, and from others last" if known else ""
    terms = ", ".join(word for name, word in TERMS.items() if getattr(recipe.objective, f"{name}_weight"))
    cores = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
    compiled = "compiled" if recipe.features.compile else "not compiled"
    if not can_compile():
        compiled += ": there is no C++ compiler"
    return [
        ("images", f"{int(patient.counts.sum()):,} to learn from{scored}; {sample.num_classes:,} classes of "
                   f"{int(patient.counts.min()):,} or more, {size}"),
        ("made", f"{cut if part.by_parts else 'whole'}; {slots}"),
        ("started", f"codes start {started}"),
        ("matched", f"{terms}; networks: {recipe.features.kind}"),
        ("augmented", f"{data.augmentation}: set data.augmentation where one of these changes a class"),
        ("on", f"{cores}; extractors in {recipe.features.precision}, {compiled}"),
    ]  # fmt: skip


def chosen_steps(
    expected: Forecast, minutes: float, given: set[str], spent: float = 0.0
) -> tuple[dict[str, int], list[str]]:
    """(field -> number of steps, notes) that fill the time that other stages leave.

    Args:
        spent: seconds of the minutes that are gone, by looking and timing.
    Raises:
        InputError: too little is left.
    """
    open_stages = [stage for stage in expected.stages if stage.cost.each and FIELDS[stage.name] not in given]
    others = spent + sum(stage.seconds for stage in expected.stages if stage not in open_stages)
    fixed = others + sum(stage.cost.once for stage in open_stages)
    left = 60 * minutes * SAFETY - fixed
    of_matching = sum(stage.cost.each for stage in open_stages if stage.name == Matching.name)
    least = FEWEST_STEPS * of_matching / (1 - sum(SHARES.values()))
    if of_matching and left < least:
        raise InputError(
            f"--minutes {minutes:g} are too few for these images on this machine: give "
            f"{math.ceil((fixed + least) / 60 / SAFETY)} or more"
        )
    steps, notes, used = {}, [], 0.0
    for stage in sorted(open_stages, key=lambda stage: stage.name == Matching.name):
        share = left - used if stage.name == Matching.name else SHARES[stage.name] * left
        count = min(MOST_STEPS[stage.name], rounded_down(share / stage.cost.each))
        used += count * stage.cost.each
        steps[FIELDS[stage.name]] = count
    if steps.get(FIELDS[Matching.name]) == MOST_STEPS[Matching.name]:
        most = f"{MOST_STEPS[Matching.name]:,} steps of matching are planned at most"
        notes.append(f"{most}: it ends after {spoken_time(others + used)}")
    return steps, notes


def rounded_down(count: float) -> int:
    """To two digits, at least 1."""
    if count < 100:
        return max(1, int(count))
    unit = 10 ** (int(math.log10(count)) - 1)
    return int(count // unit * unit)


def follow_from_steps(recipe: Recipe, expected: Forecast) -> list[str]:
    """Overrides that follow from the numbers of steps: how often is saved, averages, how long a network learns."""
    score_every = max(1, -(-recipe.condense.num_steps // SCORES_IN_A_RUN))
    of_matching = max((stage.cost.each for stage in expected.stages if stage.name == Matching.name), default=1.0)
    return [
        f"save_every_steps={max(1, min(100, rounded_down(SAVED_AFTER_SECONDS / max(of_matching, 1e-3))))}",
        f"pretrain.ema_halflife_steps={max(1, min(1000, recipe.pretrain.num_steps // 12))}",
        f"features.refresh_steps={max(1, min(50, recipe.condense.num_steps // NETWORKS_IN_A_RUN))}",
        *([f"condense.score_every_steps={score_every}"] if recipe.condense.score_every_steps else []),
        f"condense.ema_halflife_steps={max(1, min(20, recipe.condense.num_steps // 10))}",
    ]


def as_planned(expected: Forecast, recipe: Recipe) -> Forecast:
    """A forecast with the recipe's numbers of steps."""
    counts = {
        Pretraining.name: recipe.pretrain.num_steps,
        Encoding.name: recipe.codes.encode_steps,
        Matching.name: recipe.condense.num_steps,
    }

    def of(stage: Stage) -> Stage:
        if not stage.num_steps:
            return stage
        count = counts[stage.name]
        return replace(stage, amount=f"{count} steps", seconds=stage.cost.of(count), num_steps=count)

    return replace(expected, stages=tuple(map(of, expected.stages)))


# --- a run of a plan -----------------------------------------------------------------------------------------------


def planned_recipe(
    source: str | None, minutes: SupportsFloat | str | None, overrides: Sequence[str], out: Path
) -> Recipe:
    """The recipe of a run of the default method in `out`: planned anew, or that of the run which is there.

    Every process of a launch has to call it; one of them plans for all.

    Raises:
        InputError: another run in `out`, another process that plans one there; whatever `plan` raises.
    """
    file, wanted = out / "recipe.yaml", checked_minutes(minutes)
    if from_main(file.is_file):
        return _read_plan(
            file, source, minutes, overrides, f"{out} holds a run of a recipe", f"{out} holds a run planned"
        )

    def found() -> dict[str, Any]:
        RunFolder(out).require_free(load_recipe(DEFAULT_RECIPE, overrides, source))
        require_place(out)
        with alone_in(out, PLAN_LOCK):
            if rank_and_world()[1] > 1:
                return planned_apart(source, wanted, overrides)
            return to_dict(_new_plan(source, wanted, overrides))

    return parse_recipe(from_main(found), DEFAULT_RECIPE)


def kept_plan(file: Path, source: str | None, minutes: SupportsFloat | str | None, overrides: Sequence[str]) -> Recipe:
    """The recipe that was planned into a file before, or one that is planned now and written there.

    Raises:
        InputError: a recipe in the file that was not planned, or for other minutes; whatever `plan` raises.
    """
    if file.is_file():
        return _read_plan(file, source, minutes, overrides, f"{file} holds a recipe", f"{file} holds a plan")
    require_place(file.parent)
    recipe = _new_plan(source, minutes, overrides)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, to_yaml(recipe))
    return recipe


def _read_plan(
    file: Path,
    source: str | None,
    minutes: SupportsFloat | str | None,
    overrides: Sequence[str],
    not_planned: str,
    planned: str,
) -> Recipe:
    """The recipe in a file, which was planned for `minutes`, or for any where these are None.

    Args:
        not_planned, planned: what to say of a recipe that was not planned, and of one for other minutes.
    Raises:
        InputError: it was not.
    """
    kept = load_recipe(str(file), overrides, source)
    if kept.minutes is None or (minutes is not None and kept.minutes != checked_minutes(minutes)):
        holds = not_planned if kept.minutes is None else f"{planned} for {kept.minutes:g} minutes"
        raise InputError(f"{holds}: go on with that, or choose another --out")
    logger.info("plan: that of %s, for %g minutes", file, kept.minutes)
    return kept


def _new_plan(source: str | None, minutes: SupportsFloat | str | None, overrides: Sequence[str]) -> Recipe:
    """A recipe that is planned now; its page is logged."""
    made = plan(source, minutes, overrides)
    logger.info("%s\n", made.page())
    return made.recipe


def planned_apart(source: str | None, minutes: float, overrides: Sequence[str]) -> dict[str, Any]:
    """What a recipe's file would hold, planned by a process of its own, whose steps wait for no other process."""
    alone = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{DEFAULT_RECIPE}.yaml"
        words = [sys.executable, "-m", "gencond.cli", "plan", "--minutes", repr(minutes), "--out", str(file)]
        words += [*overrides, *([] if source is None else ["--data", source])]
        done = subprocess.run(words, env=alone, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            said = re.findall("^gencond: (.*)$", done.stderr, re.M)
            raise InputError(said[-1] if said else f"the plan could not be made: {done.stderr.strip()[-500:]}")
        return read_recipe_file(file)
