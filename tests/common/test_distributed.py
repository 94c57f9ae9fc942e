import json
import logging
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TINY, tiny_recipe
from PIL import Image
from test_run import WEIGHTS, a_step, untrained
from torch.nn.parallel import DistributedDataParallel

import gencond
import gencond.common.distributed
import gencond.condensing.real_statistics
import gencond.data.decode
from gencond.cli import run_cleanly
from gencond.common.distributed import from_main, gather_rows, main_process_first, new_accelerator, own_share
from gencond.common.errors import InputError
from gencond.common.files import cache_dir, read_log
from gencond.common.quick_scores import quick_scores
from gencond.condensing.build import build
from gencond.condensing.run import condense
from gencond.condensing.run_folder import prepare_run
from gencond.condensing.stages import start
from gencond.config import load_recipe
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.data.load import load_real
from gencond.data.select import random_subset
from gencond.networks.convnet import ConvNet
from gencond.networks.extractor import Extractor


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
def test_shares_cover_all_items_once_and_differ_by_one_at_most(num_processes: int) -> None:
    shares = [own_share(10, rank, num_processes) for rank in range(num_processes)]
    assert [item for share in shares for item in range(10)[share]] == list(range(10))
    assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1


def test_a_single_process_gathers_its_own_rows() -> None:
    rows = torch.randn(3, 2)
    assert gather_rows(rows, 3) is rows


def in_environment(rank: int, environment: dict[str, str], function: Callable[..., None], *arguments: Any) -> None:
    os.environ |= environment
    function(rank, *arguments)


@pytest.fixture(scope="session")
def processes() -> Callable[..., None]:
    """Calls a function (rank, *arguments) in several processes, each forked from one that has imported this module.

    That one has made no thread and used no device; a process that is spawned would import everything for itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([path for path in sys.path if path]))
        multiprocessing.set_forkserver_preload([__name__, "sklearn.datasets", "sklearn.cluster"])
        forkserver.ensure_running()

    def call(function: Callable[..., None], *arguments: Any, count: int) -> None:
        given = (dict(os.environ), function, *arguments)
        mp.start_processes(in_environment, given, nprocs=count, start_method="forkserver")

    return call


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def step_worker(rank: int, world: int, port: int, out: str, images_at_once: int | None) -> None:
    """One process of a step: its gradients averaged over processes, as data parallelism does it."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=world)
    data = random_subset(load_real("digits", test_fraction=0.3333)[0], 12, seed=0)
    condensed = untrained(data)
    total, parts = a_step(data, condensed, WEIGHTS, rank=rank, num_processes=world, images_at_once=images_at_once)
    total.backward()
    values = [total.detach(), *(part.detach() for part in parts.values()), *(p.grad for p in condensed.parameters())]
    for value in values:
        if world > 1:
            dist.all_reduce(value)
        value /= world
    if rank == 0:
        torch.save(values, out)
    if world > 1:
        dist.destroy_process_group()


# Four classes: shares of 2 + 2, of one each, and of 1 + 1 + 2 a class at a time, so that processes differ in chunks.
@pytest.mark.parametrize(("worlds", "images_at_once"), [((1, 2, 4), None), ((1, 3), 3)])
def test_one_and_more_processes_compute_the_same_loss_and_gradient(
    processes: Callable[..., None], tmp_path: Path, worlds: tuple[int, ...], images_at_once: int | None
) -> None:
    results = []
    for world in worlds:
        out = str(tmp_path / f"{world}.pt")
        if world == 1:
            step_worker(0, 1, 0, out, None)
        else:
            processes(step_worker, world, free_port(), out, images_at_once, count=world)
        results.append(torch.load(out, weights_only=True))
    for several in results[1:]:
        for one, other in zip(results[0], several, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)  # sums in another order, float32


# More slots and anchors than are made at once: processes make their images in different numbers of pieces.
IN_PIECES = (
    "pretrain.num_steps=0", "codes.encode_steps=0", "condense.classes_per_step=3", "condense.images_at_once=2",
    "condense.prefix_lengths=[4]", "condense.representative_batch_size=8", "objective.center_weight=0.1",
)  # fmt: skip


def launched(rank: int, world: int, port: int) -> None:
    """This process as one of several that `accelerate launch` started on a CPU."""
    torch.set_num_threads(1)
    gencond.common.distributed.TIMEOUT = timedelta(minutes=1)
    os.environ |= {
        "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
        "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
    }  # fmt: skip


def matching_worker(rank: int, world: int, port: int, out: str) -> None:
    """One process of two steps of matching, wrapped for data parallelism where there are several."""
    if world > 1:
        launched(rank, world, port)
        new_accelerator()
    data = random_subset(load_real("digits", test_fraction=0.3333)[0], 12, seed=0)
    recipe = tiny_recipe(*IN_PIECES)
    with prepare_run(Path(out) / str(world), recipe, data) as run:
        matching = start(build(recipe, data, new_accelerator().device), run)
        assert isinstance(matching.synthesize, DistributedDataParallel) == (world > 1)
        values = []
        for step in range(2):  # in the second one the wrapper sends gradients in other portions
            losses = matching.step(step)
            loss = matching.accelerator.reduce(losses["loss"], "mean")
            values += [loss, *(weight.grad.clone() for weight in matching.condensed.parameters())]
    if rank == 0:
        torch.save(values, Path(out) / f"{world}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_make_the_step_of_one_where_they_need_different_numbers_of_forward_passes(
    processes: Callable[..., None], tmp_path: Path
) -> None:
    matching_worker(0, 1, 0, str(tmp_path))
    processes(matching_worker, 2, free_port(), str(tmp_path), count=2)
    one, two = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    of_step = len(one) // 2
    for number, (alone, shared) in enumerate(zip(one, two, strict=True)):
        # Sums in another order, float32; what the first step of Adam makes of that moves the second one's weights,
        # by at most its rates of 5e-4 and 5e-2 where a gradient is next to nothing.
        close = {"atol": 1e-6, "rtol": 1e-4} if number < of_step else {"atol": 1e-2, "rtol": 1e-1}
        torch.testing.assert_close(alone, shared, **close)


def scored_worker(rank: int, world: int, port: int, out: str) -> None:
    """One process of a run with quick scores."""
    launched(rank, world, port)
    new_accelerator()
    logging.basicConfig(filename=f"{out}/{rank}.log", level=logging.INFO)
    data = random_subset(load_real("digits", test_fraction=0.3333)[0], 12, seed=0)
    condense(tiny_recipe(*IN_PIECES, "condense.score_every_steps=4"), data, Path(out) / "run")
    dist.destroy_process_group()


def test_one_of_two_processes_takes_the_quick_scores_and_logs_each_once(
    processes: Callable[..., None], tmp_path: Path
) -> None:
    processes(scored_worker, 2, free_port(), str(tmp_path), count=2)
    scores = quick_scores(read_log(tmp_path / "run"))
    assert [score["step"] for score in scores] == [4, 6] and all(0 <= score["top1"] <= 1 for score in scores)
    assert gencond.load(tmp_path / "run").sample(1)[0].isfinite().all()
    said = [(tmp_path / f"{rank}.log").read_text() for rank in (0, 1)]
    assert said[0].count("a quick classifier") == 2 and "condense:" not in said[1]


def append_worker(rank: int, world: int, port: int, folder: str) -> None:
    """One process that appends the letters of `folder` to the digits of `folder`."""
    launched(rank, world, port)
    gencond.append(f"{folder}/digits", f"{folder}/letters.npz", f"{folder}/{world}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_append_what_one_appends(processes: Callable[..., None], tmp_path: Path) -> None:
    old = gencond.condense("digits", tmp_path / "digits", tiny_recipe())
    letters = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "letters.npz", x_train=letters, y_train=np.arange(60) % 2, names=np.array(["a", "b"]))
    gencond.append(tmp_path / "digits", tmp_path / "letters.npz", tmp_path / "1")
    processes(append_worker, 2, free_port(), str(tmp_path), count=2)
    one, two = (gencond.load(tmp_path / str(world)) for world in (1, 2))
    assert one.class_names == two.class_names == [*old.class_names, "a", "b"]
    of_one, of_two, before = (condensed.sample(2)[0] for condensed in (one, two, old))
    assert torch.equal(of_one[: len(before)], before) and torch.equal(of_two[: len(before)], before)
    torch.testing.assert_close(of_one, of_two, atol=1e-4, rtol=0)  # sums of float32 in another order, through Adam


def waiting_worker(rank: int, world: int, port: int, out: str) -> None:
    """The main process works for longer than a collective may wait, then says what is wrong, then never comes."""
    launched(rank, world, port)
    gencond.common.distributed.TIMEOUT, gencond.common.distributed.SECONDS_BETWEEN_WORDS = timedelta(seconds=10), 0.5
    logging.basicConfig(filename=f"{out}/{rank}.log", level=logging.INFO)
    new_accelerator()
    said = [from_main(lambda: (time.sleep(12), "found")[1])]
    try:
        with main_process_first():
            if rank == 0:
                raise InputError("no such data")
    except InputError as error:
        said.append(str(error))
    if rank == 1:
        with open(f"{out}/said", "w") as errors, redirect_stderr(errors), pytest.raises(SystemExit):
            run_cleanly(dist.barrier)
    Path(f"{out}/{rank}.json").write_text(json.dumps(said))
    while not all(Path(f"{out}/{each}.json").exists() for each in range(world)):
        time.sleep(0.1)  # a process that ends would be another error for the others


@pytest.mark.slow
def test_processes_wait_for_long_work_of_one_with_a_word_and_not_in_a_collective(
    processes: Callable[..., None], tmp_path: Path
) -> None:
    processes(waiting_worker, 2, free_port(), str(tmp_path), count=2)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == ["found", "no such data"]
    assert "process 1 of 2 has waited 0.5 s for others" in (tmp_path / "1.log").read_text()
    assert "gencond: another process of this run does not answer; the same command" in (tmp_path / "said").read_text()


def pass_worker(rank: int, world: int, port: int, images: str, out: str) -> None:
    """One process that decodes its share of a folder and takes its share of the pass over the images."""
    torch.set_num_threads(1)
    gencond.data.decode.MAPPED_ABOVE_BYTES, gencond.data.decode.CHUNK_BYTES = 0, 7 * 64
    (
        gencond.condensing.real_statistics.BATCHES_BETWEEN_SUMS,
        gencond.condensing.real_statistics.SECONDS_BETWEEN_STATES,
    ) = 4, 0.0
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=world)
    os.environ["GENCOND_CACHE"] = f"{out}-{world}"
    data, _ = load_real(images, 8)
    torch.manual_seed(rank)  # what a process draws for itself is its own
    extractors = [Extractor(ConvNet(1, 10, 8, width=4, depth=2), *data.mean_std) for _ in range(2)]
    for seed, extractor in enumerate(extractors):
        torch.manual_seed(seed)
        for weight in extractor.network.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    found = gencond.condensing.real_statistics.cached_statistics(
        data, extractors, "pool", cache_dir(), augmentation=Augmentation("crop_scale", 8), num_passes=2,
        num_frequencies=12, seed=0,
    )  # fmt: skip
    torch.save({"images": data.images[:], "fingerprint": data.fingerprint, **vars(found)}, f"{out}-{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_processes_share_decoding_and_the_pass_and_get_what_one_gets(
    processes: Callable[..., None], tmp_path: Path, few_digits: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (image, label) in enumerate(zip(few_digits.images, few_digits.labels.tolist(), strict=True)):
        path = tmp_path / "images" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    monkeypatch.setenv("GENCOND_CACHE", os.environ["GENCOND_CACHE"])  # set back afterwards
    monkeypatch.setattr("gencond.data.decode.MAPPED_ABOVE_BYTES", 0)
    monkeypatch.setattr("gencond.data.decode.CHUNK_BYTES", 0)
    monkeypatch.setattr("gencond.condensing.real_statistics.BATCHES_BETWEEN_SUMS", 0)
    monkeypatch.setattr("gencond.condensing.real_statistics.SECONDS_BETWEEN_STATES", 0)
    arguments = (str(tmp_path / "images"), str(tmp_path / "out"))
    pass_worker(0, 1, 0, *arguments)
    processes(pass_worker, 2, free_port(), *arguments, count=2)
    one, *two = (torch.load(tmp_path / f"out-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for several in two:
        assert torch.equal(one["images"], several["images"]) and one["fingerprint"] == several["fingerprint"]
        for name in ("mean", "embedding", "frequencies", "gap", "pooled", "contrast"):
            torch.testing.assert_close(one[name], several[name], rtol=1e-6, atol=1e-7)  # sums in another order
    for kind in ("images", "statistics"):
        files = [
            sorted(path.name for path in (tmp_path / f"out-{world}" / kind).iterdir() if path.suffix != ".lock")
            for world in (1, 2)
        ]
        assert files[0] == files[1] and len(files[0]) == 1


def condensing(launcher: list[str], recipe: str, out: Path, overrides: list[str]) -> dict:
    """Arguments of `subprocess`: the script on the digits with `launcher`."""
    script = Path(__file__).parents[2] / "scripts" / "condense.py"
    command = [
        sys.executable, "-m", *launcher, str(script), "--recipe", recipe, "--data", "digits", "--out", str(out),
        *overrides,
    ]  # fmt: skip
    return {"args": command, "env": os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, "text": True}


def condense_on_two_processes(launcher: list[str], recipe: str, out: Path, overrides: list[str]) -> str:
    """What `condensing` printed to standard error, with its status."""
    result = subprocess.run(**condensing(launcher, recipe, out, overrides), capture_output=True)
    return f"{result.stderr}\nstatus {result.returncode}"


def accelerate_launch() -> list[str]:
    return [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        str(free_port()),
    ]


@pytest.mark.slow
def test_accelerate_launch_with_two_processes_makes_nearly_the_same_artefact(tmp_path: Path) -> None:
    overrides = [*TINY, "pretrain.num_steps=0", "objective.center_weight=0.1"]
    train, _ = load_real("digits", test_fraction=0.3333)
    one: LabeledImages = condense(tiny_recipe(*overrides), train, tmp_path / "one")
    said = condense_on_two_processes(accelerate_launch(), "demo", tmp_path / "two", overrides)
    assert said.endswith("status 0"), said
    two = gencond.load(tmp_path / "two")
    # ten Adam steps turn float noise into small differences where a gradient is near zero
    assert (one.sample(4)[0] - two.sample(4)[0]).abs().mean() < 1e-3


@pytest.mark.slow
def test_two_processes_end_a_run_of_the_demos_length_as_near_to_one_as_one_ends_to_itself_a_rounding_apart(
    tmp_path: Path,
) -> None:
    """Adam makes steps of nearly its rate of any gradient, so what two sums round apart grows for as long as it runs.

    What to expect is measured: one process again, from weights that are a unit in the last place away.
    """
    overrides = [*TINY, "codes.encode_steps=250", "condense.num_steps=300", "save_every_steps=1000"]
    recipe = tiny_recipe(*overrides)
    train, _ = load_real("digits", test_fraction=0.3333)
    generator = build(recipe, train, torch.device("cpu")).generators.new()
    generator.save_pretrained(tmp_path / "given")
    with torch.no_grad():
        for weight in generator.parameters():
            weight.copy_(weight.nextafter(torch.randn(weight.shape) * torch.inf))
    generator.save_pretrained(tmp_path / "beside")
    one, beside = (condense(recipe, train, tmp_path / f"of_{name}", tmp_path / name) for name in ("given", "beside"))
    said = condense_on_two_processes(
        accelerate_launch(), "demo", tmp_path / "two", ["--pretrained", str(tmp_path / "given"), *overrides]
    )
    assert said.endswith("status 0"), said
    two = gencond.load(tmp_path / "two")
    images, of_rounding, of_two = (made.sample(4)[0] for made in (one, beside, two))
    expected = (images - of_rounding).abs().mean()
    assert expected > 0 and (images - of_two).abs().mean() < 5 * expected  # two draws of one kind of noise


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dream", "m3d"])
def test_two_processes_learn_nearly_the_same_pixels_from_real_batches(tmp_path: Path, name: str) -> None:
    overrides = [
        "condense.num_steps=5", "features.width=8", "features.train_images=32", "real.batch_size=8", "pixels.ipc=2",
        "real.refresh_steps=2", "objective.center_weight=0.1",
    ]  # fmt: skip
    recipe = load_recipe(f"{name}:digits", overrides, "digits")
    train, _ = load_real("digits", test_fraction=recipe.data.test_fraction)
    one = condense(recipe, train, tmp_path / "one")
    said = condense_on_two_processes(accelerate_launch(), f"{name}:digits", tmp_path / "two", overrides)
    assert said.endswith("status 0"), said
    two = gencond.load(tmp_path / "two")
    parts = build(recipe, train, torch.device("cpu"))
    first = parts.starts.choose(parts.new_extractors()[0]).images
    moved = (one(*every_slot()) - first).abs().mean()
    assert moved > 1e-4  # there is something to agree on
    assert (one.pixels - two.pixels).abs().mean() < 0.01 * moved  # sums in another order, float32


def every_slot() -> tuple[torch.Tensor, torch.Tensor]:
    """Two slots of each of ten classes."""
    return torch.arange(10).repeat_interleave(2), torch.arange(2).repeat(10)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_which_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    overrides = [*TINY, "condense.num_steps=200", "save_every_steps=5", "objective.center_weight=0.1"]
    started = condensing(accelerate_launch(), "demo", out, overrides)
    with subprocess.Popen(**started, stderr=subprocess.PIPE) as launcher:
        while not list(out.glob("state/condense/step_*")):
            assert launcher.poll() is None, launcher.stderr.read()
            time.sleep(0.05)
        workers = [child for child in psutil.Process(launcher.pid).children() if str(out) in child.cmdline()]
        assert len(workers) == 2
        workers[1].kill()
        said = launcher.communicate(timeout=120)[1]
    assert launcher.returncode != 0 and "FAILED" in said
    assert list(out.glob("state/condense/step_*")) and not (out / "condensed").exists()
    train, _ = load_real("digits", test_fraction=0.3333)
    condense(load_recipe("demo", overrides, "digits"), train, out)  # one process now
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry for entry in log if entry.get("event") == "resumed" and entry["stage"] == "condense"]
    # ten real centers of 32 floats, where two processes made the step
    of_two = [entry["wire_bytes"] for entry in log if "wire_bytes" in entry]
    assert of_two and len(set(of_two)) == 1 and of_two[0] == 10 * 32 * 4
    assert gencond.load(out).sample(1)[0].isfinite().all()


@pytest.mark.slow
def test_more_processes_than_classes_end_with_one_line(tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    said = condense_on_two_processes(torchrun, "demo", tmp_path / "run", [*TINY, "condense.classes_per_step=1"])
    assert said.count("gencond: 2 processes share 1 classes a step") == 1  # the main process says it for all
    assert re.search(r"exitcode +: 2 ", said) and not said.endswith("status 0")  # the launcher has a status of its own
    assert not (tmp_path / "run").exists()
