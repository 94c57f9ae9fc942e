"""`gencond doctor`: what a run would take and what it lacks, said before it starts. Glue, as the command."""

import importlib.util
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch

from gencond.common.distributed import new_accelerator
from gencond.common.errors import InputError
from gencond.common.files import cache_dir, free_space, require_writable
from gencond.common.room import require_place, require_text
from gencond.condensing.backbones import IMAGENET1K
from gencond.condensing.checks import check_counts, check_networks, check_parts
from gencond.condensing.forecast import Forecast, forecast
from gencond.condensing.quick_score import too_few
from gencond.condensing.run_folder import RunFolder
from gencond.config import Recipe
from gencond.data.images import LabeledImages, require_two_of_each
from gencond.eval.networks import build_network
from gencond.eval.protocols import check_protocol
from gencond.examine import Patient, examine
from gencond.generator.published import HUB_FILE, kept_file
from gencond.generator.published import IMAGENET1K as PUBLISHED
from gencond.networks.extractor import advice_on_bfloat16, can_compile

logger = logging.getLogger(__name__)

PLENTY = 0.9  # of the memory there is: beyond it a run is likely to be killed


@dataclass
class Findings:
    """What the doctor says: `blocks` end a run, `notes` are good to know."""

    blocks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def hold(self, check: Callable[[], object]) -> bool:
        """Does a check; what it raises blocks. Returns whether nothing was raised."""
        try:
            check()
        except InputError as error:
            self.blocks.append(" ".join(str(error).split()))
            return False
        return True


def doctor(recipe: Recipe, out: Path | None) -> None:
    """Prints what a run of `recipe` would take on this machine, stage by stage, and what it lacks.

    Args:
        out: the run folder, for its disk; None: the working directory's.
    Raises:
        InputError: something that would end the run, in one line, after all is printed.
    """
    found = Findings()
    accelerator = new_accelerator()
    device = accelerator.device
    print(_line("machine", _machine(device)))
    found.hold(lambda: require_writable(cache_dir()))
    if out is not None:
        found.hold(lambda: require_text(out, "--out"))
        found.hold(lambda: require_place(out))
        found.hold(lambda: RunFolder(out).require_free(recipe))
    has_meaning = found.hold(lambda: check_parts(recipe))
    ready = check_weights(recipe, found)
    if recipe.features.compile and not can_compile():
        found.blocks.append("features.compile needs a C++ compiler (g++): install one or set features.compile=false")
        ready = replace(ready, features=replace(ready.features, compile=False))
    found.notes += advice_on_bfloat16(
        device,
        extractors=recipe.features.precision == "bfloat16",
        generator=recipe.generator.precision == "bfloat16",
        launch=accelerator.mixed_precision == "bf16",
    )
    try:
        patient = examine(recipe)
    except InputError as error:
        found.blocks.append(" ".join(str(error).split()))
    else:
        found.hold(lambda: found.notes.extend(patient.overlap()))
        fits = has_meaning and found.hold(lambda: check_networks(ready, patient.sample))
        _consult(recipe, patient, found)
        if fits:
            logger.info("doctor: a few steps of each stage are timed ...")
            found.hold(lambda: _predict(ready, patient, device, out or Path.cwd(), found))
    if device.type == "cpu":
        found.notes.append("no GPU is used: fine for small images, days for large ones")
    if importlib.util.find_spec("torch_fidelity") is None:
        found.notes.append("torch-fidelity is not installed: `evaluate --quality` alone needs it")
    for note in found.notes:
        print(_line("note", note))
    for block in found.blocks:
        print(_line("missing", block))
    if found.blocks:
        more = f" (and {len(found.blocks) - 1} more)" if len(found.blocks) > 1 else ""
        raise InputError(f"this run would fail: {found.blocks[0]}{more}")
    print(_line("ready", "nothing stands in the way"))


def _consult(recipe: Recipe, patient: Patient, found: Findings) -> None:
    """Says what the data is, and holds the recipe against it."""
    sample = patient.sample
    print(_line("data", _data(recipe, patient)))
    found.hold(lambda: _check_held_out(patient))
    found.hold(lambda: check_counts(recipe, patient.counts, sample.class_names))
    if why := too_few(recipe.condense, patient.counts):
        found.notes.append(why)
    found.hold(lambda: _check_judge(recipe, sample))
    most = min(sample.num_classes, recipe.condense.classes_per_step)  # more processes are refused by `condense`
    if (gpus := torch.cuda.device_count()) > most:
        found.notes.append(
            f"`accelerate launch` starts a process on each of {gpus} GPUs, and a step has {most} classes: "
            f"--num_processes {most}, or raise condense.classes_per_step"
        )


def _line(title: str, text: str) -> str:
    return f"{title:<9}{text}"


def _gigabytes(count: int) -> str:
    """0.004 GB would say nothing."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{max(count / 1e6, 0.1):,.1f} MB"


def _machine(device: torch.device) -> str:
    memory = psutil.virtual_memory()
    gpu = "no GPU"
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        gpu = f"{torch.cuda.device_count()} x {about.name} with {_gigabytes(about.total_memory)}"
    elif device.type != "cpu":
        gpu = device.type
    return (
        f"{os.cpu_count()} CPU cores ({torch.get_num_threads()} threads), {_gigabytes(memory.total)} of memory "
        f"({_gigabytes(memory.available)} free), {gpu}; {_gigabytes(free_space(cache_dir()))} of disk free in "
        f"{cache_dir()}"
    )


def _data(recipe: Recipe, patient: Patient) -> str:
    sample, amount = patient.sample, patient.amount
    place = "kept in memory"
    if amount.is_mapped:
        place = "read from the cache" if amount.bytes_to_write == 0 else "decoded once into the cache"
    held = f", {amount.num_held_out:,} held out for quick scores" if amount.num_held_out else ""
    return (
        f"{recipe.data.source}: {amount.num_train:,} training{held} and {patient.num_test:,} "
        f"{recipe.data.judge_on} images, {sample.num_classes:,} classes, "
        f"{sample.channels}x{sample.image_size}x{sample.image_size} px, "
        f"{_gigabytes(amount.pixel_bytes)} {place}"
    )


def _table(expected: Forecast) -> str:
    rows = [f"{'stage':<18}{'how much':<44}{'time':>10}", *expected.lines()]
    gpu = f", {_gigabytes(expected.gpu_memory)} of the GPU's" if expected.gpu_memory else ""
    rows.append(
        f"memory   {_gigabytes(expected.memory)}{gpu};   disk   {_gigabytes(expected.cache)} in the cache, "
        f"{_gigabytes(expected.out)} in the run folder"
    )
    return "\n".join(rows)


# --- the data ------------------------------------------------------------------------------------------------------


def _check_held_out(patient: Patient) -> None:
    """Raises InputError where a class is too small to hold an image out."""
    for counts in patient.held_from:
        require_two_of_each(counts, patient.sample.class_names)


# --- the recipe ----------------------------------------------------------------------------------------------------


def check_weights(recipe: Recipe, found: Findings) -> Recipe:
    """Says which weights are not on this machine; returns the recipe without those, of the same shapes, to be timed."""
    part, offline = recipe.features, os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    if part.weights == "pretrained":
        if why := _absent_from_hub_cache(part.network):
            (found.blocks if offline else found.notes).append(why)
    elif part.weights is not None and not Path(part.weights).is_file():
        found.blocks.append(f"features.weights={part.weights}: no such file")
    recipe = replace(recipe, features=replace(part, weights=None))
    source = recipe.generator.weights
    if source is None or recipe.synthesizer.kind != "generator" or Path(source).exists():
        return recipe
    url = source
    if source == IMAGENET1K and recipe.data.image_size in PUBLISHED:
        url = PUBLISHED[recipe.data.image_size].url
    is_url = "://" in url
    if is_url and kept_file(url).is_file():
        return recipe
    if is_url or re.fullmatch(HUB_FILE, source):
        said = f"generator.weights={source} are not looked for in the Hub's cache: the run reads or downloads them"
        if is_url:
            said = f"generator.weights={source} are not on this machine: the run downloads {url}"
        found.notes.append(said)
    else:
        found.blocks.append(f"generator.weights={source}: no such file, folder, URL or Hub id")
    shape = {"width": 128, "latent_dim": 128, "class_embed_dim": 128, "attention_resolution": 64}
    sizes = shape if source == IMAGENET1K else {}
    return replace(recipe, generator=replace(recipe.generator, weights=None, **sizes))


def _absent_from_hub_cache(network: str) -> str | None:
    """What to say of timm's weights of a network where they are not on this machine; None where they are."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    if not timm.is_model(network):
        return None  # `check_networks` says so
    about = timm.get_pretrained_cfg(network)
    if about is None or not about.has_weights:
        return f"timm has no weights of {network}: leave features.weights out"
    names = ("model.safetensors", "pytorch_model.bin")
    if about.hf_hub_id and any(isinstance(try_to_load_from_cache(about.hf_hub_id, name), str) for name in names):
        return None
    where = about.hf_hub_id or about.url
    return f"the weights of {network} are not on this machine: the run downloads them ({where})"


def _check_judge(recipe: Recipe, sample: LabeledImages) -> None:
    """Raises InputError where the result could not be judged as the recipe says."""
    check_protocol(recipe.evaluate.protocol)
    for network in recipe.evaluate.networks:
        build_network(network, sample.channels, sample.num_classes, sample.image_size, seed=0)


def _predict(recipe: Recipe, patient: Patient, device: torch.device, out: Path, found: Findings) -> None:
    """Prints the forecast. Raises InputError for weights that cannot be used."""
    try:
        expected = forecast(recipe, patient.sample, patient.amount, device)
    except torch.OutOfMemoryError:
        raise InputError(
            "the GPU's memory does not hold a few steps: lower condense.images_at_once, pretrain.batch_size or "
            "real.batch_size, or set generator.gradient_checkpointing=true"
        ) from None
    print(_table(expected))
    found.notes.extend(expected.notes)
    _space(expected, out, device, found)


# --- space ---------------------------------------------------------------------------------------------------------


def _space(expected: Forecast, out: Path, device: torch.device, found: Findings) -> None:
    """Holds memory and disk against what there is."""
    total = psutil.virtual_memory().total
    if expected.memory > PLENTY * total:
        found.blocks.append(f"{_gigabytes(expected.memory)} of memory are needed, the machine has {_gigabytes(total)}")
    if device.type == "cuda":
        of_gpu = torch.cuda.get_device_properties(device).total_memory
        if expected.gpu_memory > PLENTY * of_gpu:
            found.blocks.append(
                f"{_gigabytes(expected.gpu_memory)} of GPU memory are needed, it has {_gigabytes(of_gpu)}: lower "
                "condense.images_at_once"
            )
    for what, path, needed in (("the cache", cache_dir(), expected.cache), ("the run folder", out, expected.out)):
        if needed > free_space(path):
            found.blocks.append(
                f"{what} needs {_gigabytes(needed)} in {path}, and {_gigabytes(free_space(path))} are free: make space "
                f"or {'set GENCOND_CACHE' if what == 'the cache' else 'choose another --out'}"
            )
