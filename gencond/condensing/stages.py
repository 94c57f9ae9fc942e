"""The stages of a run, in order: a run goes through the list, and a forecast times the same list."""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from gencond.common.distributed import (
    from_main,
    is_main_process,
    main_process_first,
    memory_used,
    new_accelerator,
    wait_for_everyone,
)
from gencond.common.files import written_whole
from gencond.condensing.build import Parts
from gencond.condensing.encode import Encoding
from gencond.condensing.extractors import Extractors, OnlineExtractors, Pool
from gencond.condensing.loop import Stage, run_stage
from gencond.condensing.match import Matching
from gencond.condensing.pretrain import Pretraining
from gencond.condensing.quick_score import too_few
from gencond.condensing.real import RealSide
from gencond.condensing.run_folder import RunFolder
from gencond.condensing.starts import CodeStarts, Representatives, start_from_components, start_from_transform
from gencond.generator.artefact import Condensed
from gencond.generator.backbone import Backbone
from gencond.generator.dataset import CondensedDataset
from gencond.networks.extractor import advice_on_bfloat16

logger = logging.getLogger(__name__)


class Work:
    """What the stages of a run have made so far; a stage takes what the ones before it made, and no other is there.

    Args:
        generator: that condensing starts from; None where pixels are learned, or before it is pretrained.
    """

    extractors: Extractors
    pool_key: str
    real: RealSide
    representatives: Representatives
    condensed: Condensed

    def __init__(self, generator: Backbone | None = None) -> None:
        self.generator = generator


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Args:
        name: of the stage.
        says: what it does and how much, in one line for people, before it begins.
        is_needed: whether a run of these parts has it, after what was made so far.
        begin: makes the steps that it consists of; None: it is one piece.
        end: leaves in `Work` what it makes, once its steps are done.
    """

    name: str
    says: Callable[[Parts], str]
    is_needed: Callable[[Parts, Work], bool]
    begin: Callable[[Parts, Work], Stage] | None
    end: Callable[[Parts, Work, RunFolder, Any], None]  # of what `begin` made


def _always(parts: Parts, work: Work) -> bool:
    return True


# --- pretraining ---------------------------------------------------------------------------------------------------


def given_generator(parts: Parts, run: RunFolder, pretrained: Path | None) -> Backbone | None:
    """The generator that condensing starts from where nothing has to be trained for it; None where it has, or pixels.

    Args:
        pretrained: a folder with a generator of the recipe's shape, which comes before all others.
    Raises:
        InputError: `pretrained` is no generator, or one of another shape; weights that cannot be had or do not fit.
    """
    makers = parts.generators
    if parts.growth is not None:
        return parts.growth.onto.generator
    if makers is None:
        return None
    if pretrained is not None:
        return makers.read(pretrained)
    if parts.pretraining is None:
        of_others = nullcontext() if makers.part.weights is None else main_process_first()
        with of_others:  # one process downloads them
            return makers.make().eval()
    if from_main(run.pretrained.is_dir):
        logger.info("pretrain: reusing %s", run.pretrained)
        from_main(lambda: run.drop_states(Pretraining.name))
        return makers.read(run.pretrained)
    return None


def _begin_pretraining(parts: Parts, work: Work) -> Pretraining:
    if parts.pretraining is None or parts.generators is None:
        raise TypeError("nothing is pretrained")
    return Pretraining(parts.pretraining, parts.generators.new(), parts.data, parts.seed)


def _keep_generator(parts: Parts, work: Work, run: RunFolder, stage: Pretraining) -> None:
    work.generator = generator = stage.result()

    def write() -> None:
        with written_whole(run.pretrained) as temporary:
            generator.save_pretrained(temporary)
        run.drop_states(stage.name)

    from_main(write)


# --- what a step needs ---------------------------------------------------------------------------------------------


def _make_extractors(parts: Parts, work: Work, run: RunFolder, stage: None) -> None:
    with main_process_first():
        work.extractors, work.pool_key = parts.new_extractors()


def _make_real_side(parts: Parts, work: Work, run: RunFolder, stage: None) -> None:
    work.real = parts.new_real_side(work.extractors, work.pool_key)


def _choose_starts(parts: Parts, work: Work, run: RunFolder, stage: None) -> None:
    work.representatives = parts.starts.choose(work.extractors).to(parts.device)
    wait_for_everyone()  # before data parallelism compares its copies
    work.condensed = parts.new_condensed(work.generator, work.representatives, run.weights)
    if parts.growth is not None:
        parts.growth.start_codes(cast("CondensedDataset", work.condensed), work.representatives)
    elif parts.generators is not None and parts.generators.part.backbone == "transform":
        start_from_transform(
            cast("CondensedDataset", work.condensed), work.representatives, parts.generators.part.quantization_step
        )
    elif parts.generators is not None and parts.codes.start == "components":
        start_from_components(cast("CondensedDataset", work.condensed), work.representatives, parts.seed)


# --- learning ------------------------------------------------------------------------------------------------------


def _begin_encoding(parts: Parts, work: Work) -> Encoding:
    return Encoding(parts.codes, cast("CondensedDataset", work.condensed), work.representatives, parts.seed)


def _stay_in_place(parts: Parts, work: Work, run: RunFolder, stage: Encoding) -> None:
    """Encoding changes the artefact itself."""


def begin_matching(parts: Parts, work: Work) -> Matching:
    """Matching, from what all stages before it made."""
    return Matching(parts, work.condensed, work.extractors, work.real, work.representatives)


def _keep_artefact(parts: Parts, work: Work, run: RunFolder, stage: Matching) -> None:
    work.condensed = stage.result()


# --- what they say -------------------------------------------------------------------------------------------------


def _say_pretraining(parts: Parts) -> str:
    steps = parts.pretraining.num_steps if parts.pretraining else 0
    return f"{steps} steps teach a generator to make images like the {len(parts.data):,} real ones"


def _say_extractors(parts: Parts) -> str:
    extracting = parts.extracting
    if isinstance(extracting, Pool):
        kinds = [
            f"{count} {kind}"
            for count, kind in (
                (extracting.num_trained, "of all ages of training"),
                (extracting.num_random, "random"),
            )
            if count
        ]
        return f"a pool of networks to compare images with, {' and '.join(kinds)}"
    fresh = extracting.fresh if isinstance(extracting, OnlineExtractors) else extracting
    learns = ", trained on real images along the way" if isinstance(extracting, OnlineExtractors) else ""
    often = "step" if fresh.refresh_steps == 1 else f"{fresh.refresh_steps} steps"
    return f"a new random network every {often} to compare images with{learns}"


def _say_real_side(parts: Parts) -> str:
    part, pool = parts.real, parts.pool
    if part.kind == "statistics" and pool is not None:
        most = len(parts.data) if part.candidates is None else part.candidates * parts.data.num_classes
        passes = {1: "once", 2: "twice"}.get(part.num_passes, f"{part.num_passes} times")
        seen = f"{min(most, len(parts.data)):,} real images"
        return f"{pool.num_networks} networks look at {seen} {passes} and keep what they see of each class"
    if part.kind == "representatives":
        often = "step" if part.refresh_steps == 1 else f"{part.refresh_steps} steps"
        return f"the {part.batch_size} most typical real images of each class are chosen anew every {often}"
    return f"{part.batch_size} random real images of each class are read in every step"


def _say_starts(parts: Parts) -> str:
    of_class, starts = parts.synthesizer.factor**2, parts.starts
    if isinstance(starts, CodeStarts):
        count = parts.codes.num_slots * of_class
        chosen = f"up to {count} real images of each class are chosen for its codes to start from"
        if starts.trials is not None:
            chosen += ", as held-out images say whether its easiest ones are skipped"
        if starts.learnable_first:
            chosen += ", first those that a network knows after a brief training"
        return chosen if starts.are_needed else f"{parts.codes.num_slots} codes of each class start at random"
    if parts.pixels.init == "noise":
        return f"{parts.pixels.ipc} images of each class start from noise"
    how = "typical" if parts.pixels.init == "kmeans" else "random"
    return f"{parts.pixels.ipc * of_class} {how} real images of each class are chosen to start from"


def _say_encoding(parts: Parts) -> str:
    count = parts.codes.num_slots * len(parts.learned)
    what = "codes and class embeddings" if parts.growth else "codes and the generator"
    return f"{parts.codes.encode_steps} steps fit {count:,} {what} to their real images"


def _say_matching(parts: Parts) -> str:
    slots = parts.codes.num_slots if parts.generators else parts.pixels.ipc
    count = slots * len(parts.learned)
    others = "the class embeddings" if parts.growth else "the generator"
    what = f"{count:,} codes and {others}" if parts.generators else f"{count:,} images"
    return f"{parts.condense.num_steps} steps change {what} until networks see in samples what they see in real images"


PRETRAIN = Entry(
    Pretraining.name,
    _say_pretraining,
    lambda parts, work: parts.pretraining is not None and work.generator is None,
    _begin_pretraining,
    _keep_generator,
)
EXTRACTORS = Entry("extractors", _say_extractors, _always, None, _make_extractors)
REAL_SIDE = Entry("statistics", _say_real_side, _always, None, _make_real_side)
STARTS = Entry("representatives", _say_starts, _always, None, _choose_starts)
ENCODE = Entry(
    Encoding.name,
    _say_encoding,
    lambda parts, work: parts.generators is not None and parts.codes.encode_steps > 0,
    _begin_encoding,
    _stay_in_place,
)
MATCH = Entry(Matching.name, _say_matching, _always, begin_matching, _keep_artefact)
BEFORE_MATCHING = (PRETRAIN, EXTRACTORS, REAL_SIDE, STARTS, ENCODE)
STAGES = (*BEFORE_MATCHING, MATCH)


def go_through(stages: tuple[Entry, ...], parts: Parts, work: Work, run: RunFolder) -> None:
    """Does one stage after the other, each from its last state, and says it; what they make lies in `work`."""
    for entry in stages:
        if not entry.is_needed(parts, work):
            continue
        if is_main_process():
            logger.info("%s: %s", entry.name, entry.says(parts))
        started, stage = time.monotonic(), entry.begin and entry.begin(parts, work)
        if stage is not None:
            run_stage(stage, run, parts.save_every_steps)
        entry.end(parts, work, run, stage)
        if stage is None and is_main_process():
            seconds = round(time.monotonic() - started, 1)
            run.log(stage=entry.name, seconds=seconds, memory=memory_used(parts.device))


def _say_held_out(parts: Parts) -> None:
    """That images are held out for quick scores, or why none are although the recipe asks for them."""
    if parts.scorer is not None:
        held, all_images = len(parts.scorer.held_out), parts.about["data"]["num_images"]
        logger.info("condense: %d of %d training images are held out for quick scores", held, all_images)
    elif why := too_few(parts.condense, parts.data.counts):
        logger.info("condense: %s", why)


def begin(parts: Parts, run: RunFolder, pretrained: Path | None = None) -> Work:
    """What a run has before its first stage: a generator, where none has to be trained.

    Args:
        pretrained: see `given_generator`.
    """
    for advice in advice_on_bfloat16(
        parts.device,
        extractors=parts.maker.embed.dtype is torch.bfloat16,
        generator=parts.generators is not None and parts.generators.part.precision == "bfloat16",
        launch=new_accelerator().mixed_precision == "bf16",
    ):
        logger.warning("condense: %s", advice)
    if is_main_process():
        _say_held_out(parts)
    return Work(generator=given_generator(parts, run, pretrained))


def start(parts: Parts, run: RunFolder, pretrained: Path | None = None) -> Matching:
    """Goes through all stages before matching, and begins matching.

    Args:
        pretrained: see `given_generator`.
    """
    work = begin(parts, run, pretrained)
    go_through(BEFORE_MATCHING, parts, work, run)
    return begin_matching(parts, work)
