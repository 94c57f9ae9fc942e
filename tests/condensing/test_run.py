import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_recipe, whole

import gencond
import gencond.condensing.encode
from gencond.common.errors import InputError
from gencond.common.files import cache_dir, file_sha256, state_fingerprint, weights_hash
from gencond.condensing import difficulty
from gencond.condensing.build import build
from gencond.condensing.loop import step_rng
from gencond.condensing.real import BatchSide, Draw
from gencond.condensing.run import condense
from gencond.condensing.run_folder import RunFolder
from gencond.condensing.stages import STAGES
from gencond.condensing.starts import Representatives
from gencond.condensing.step import Objective, shares_of, weights_of_sets
from gencond.config import Recipe, load_recipe, to_yaml
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.generator.dataset import CondensedDataset
from gencond.losses.center import center_loss
from gencond.losses.diversity import diversity_loss
from gencond.losses.kernels import fourier_embedding

CPU = torch.device("cpu")
WEIGHTS = {
    "mean": 1.0, "mmd": 0.7, "diversity": 0.3, "center": 0.2, "classification": 0.5, "pixel": 0.4,
    "representative": 0.6,
}  # fmt: skip


def artefact_bits(run: Path) -> bytes:
    return b"".join((run / "condensed" / name).read_bytes() for name in sorted(os.listdir(run / "condensed")))


@pytest.fixture(scope="module")
def finished(few_digits: LabeledImages, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CondensedDataset]:
    """(folder, what it returned) of one run of the tiny recipe, to be read or copied; its cache lies beside."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENCOND_CACHE", str(run.with_name("cache")))
        return run, condense(tiny_recipe(), few_digits, run)


@pytest.fixture
def copied(finished: tuple[Path, CondensedDataset], tmp_path: Path) -> Path:
    """The finished run in a folder of the test's own."""
    return shutil.copytree(finished[0], tmp_path / "run")


def untrained(data: LabeledImages, seed: int = 0) -> CondensedDataset:
    recipe = tiny_recipe(f"seed={seed}")
    config = {k: v for k, v in build(recipe, data, CPU).generators.new().config.items() if not k.startswith("_")}
    torch.manual_seed(seed)
    return CondensedDataset(data.class_names, config, recipe.codes.num_slots, seed).eval()


def a_real_side(recipe: Recipe, data: LabeledImages) -> tuple:
    """(extractors, statistics side) of a recipe."""
    parts = build(recipe, data, CPU)
    extractors, key = parts.new_extractors()
    return extractors, parts.new_real_side(extractors, key)


def tied_images(data: LabeledImages, *overrides: str) -> Representatives:
    recipe = tiny_recipe(*overrides)
    return build(recipe, data, CPU).starts.choose(a_real_side(recipe, data)[0])


def a_step(
    data: LabeledImages, condensed: torch.nn.Module, weights: dict, lengths: tuple[int, ...] = (3,), **share
) -> tuple:
    recipe = tiny_recipe()
    extractors, real = a_real_side(recipe, data)
    draw = Draw(
        step=0, classes=torch.tensor([1, 4, 5, 8]), first_slot=0, lengths=lengths, extractor=extractors.pool[1],
        anchors=torch.tensor([3, 7, 11]), rng=torch.Generator().manual_seed(7),
    )  # fmt: skip
    augmentation = Augmentation(recipe.data.augmentation, 8, *data.mean_std)
    return whole(Objective(condensed, real, augmentation, tied_images(data), weights, **share).at(draw))


def test_a_step_is_the_sum_of_its_terms_written_out(few_digits: LabeledImages) -> None:
    condensed = untrained(few_digits)
    total, parts = a_step(few_digits, condensed, WEIGHTS)
    extractors, real = a_real_side(tiny_recipe(), few_digits)
    pool, statistics = extractors.pool, real.statistics
    classes = [1, 4, 5, 8]
    images = torch.cat([condensed(torch.full((3,), c), torch.arange(3)) for c in classes])
    augmentation = Augmentation("crop_scale_rotate", 8, *few_digits.mean_std)
    augmented = augmentation(images, augmentation.draw(12, torch.Generator().manual_seed(7)))
    features = pool[1](augmented)
    of_class = features.view(4, 3, -1)
    mean = sum((statistics.mean[1, c] - of_class[i].mean(0)).square().sum() for i, c in enumerate(classes))
    torch.testing.assert_close(parts["mean"], mean / 4 / statistics.gap[1])
    embedded = fourier_embedding(of_class, statistics.frequencies[1]).mean(1)
    mmd = (embedded - statistics.embedding[1, classes]).square().sum(1).mean()
    torch.testing.assert_close(parts["mmd"], mmd)
    torch.testing.assert_close(parts["diversity"], diversity_loss(of_class, statistics.mean[1, classes]))
    centers = of_class.mean(1, keepdim=True)
    expected = center_loss(statistics.mean[1, classes], centers, torch.arange(4))
    torch.testing.assert_close(parts["center"], expected)
    labels = torch.tensor(classes).repeat_interleave(3)
    picked = pool[1].logits(features).log_softmax(1)[torch.arange(12), labels]
    torch.testing.assert_close(parts["classification"], -picked.mean())
    tied = tied_images(few_digits)
    rows = torch.tensor([3, 7, 11])
    error = (condensed(tied.labels[rows], tied.slots[rows]) - tied.images[rows]).square().mean()
    torch.testing.assert_close(parts["representative"], error)
    torch.testing.assert_close(total, sum(WEIGHTS[name] * part for name, part in parts.items()))


@pytest.mark.parametrize("images_at_once", [9, 6, 3, 2])
def test_a_step_in_chunks_of_classes_has_the_loss_and_gradient_of_one_without(
    few_digits: LabeledImages, images_at_once: int
) -> None:
    """Three of the four classes at once, two, one, and less than the three images of one."""
    once, chunked = untrained(few_digits), untrained(few_digits)
    total, parts = a_step(few_digits, once, WEIGHTS)
    total.backward()
    several, of_chunks = a_step(few_digits, chunked, WEIGHTS, images_at_once=images_at_once)
    several.backward()
    assert parts.keys() == of_chunks.keys()
    for name, part in parts.items():
        torch.testing.assert_close(of_chunks[name], part, atol=1e-6, rtol=1e-5, msg=name)  # sums in another order
    for (name, one), other in zip(once.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_chunk_is_synthesized_with_its_own_classes_only(few_digits: LabeledImages) -> None:
    """And a class with more images than fit is made a part at a time, each part once more for its gradient."""
    condensed, made = untrained(few_digits), []
    condensed.register_forward_pre_hook(lambda module, inputs: made.append(len(inputs[0])))
    weights = WEIGHTS | {"representative": 0.0}
    a_step(few_digits, condensed, weights, images_at_once=6)[0].backward()
    assert made == [6 + 2, 6 + 1]  # two classes, and of three anchored images two and one
    made.clear()
    a_step(few_digits, condensed, weights, images_at_once=2)[0].backward()
    assert max(made) == 2 and sum(made) == 2 * (12 + 3)


def test_real_images_of_a_batch_count_where_memory_is_bounded(few_digits: LabeledImages) -> None:
    extractors, _ = a_real_side(tiny_recipe(), few_digits)
    draw = Draw(0, torch.tensor([1, 4, 5, 8]), 0, (1,), extractors.pool[1], torch.Generator(), torch.empty(0).long())
    real, none = BatchSide(few_digits, 6, torch.device("cpu")), Augmentation("none", 8)
    objective = Objective(untrained(few_digits), real, none, tied_images(few_digits), {"mmd": 1.0}, images_at_once=12)
    step = objective.at(draw)
    assert [(one.start, one.stop) for one in step.chunks] == [(0, 2), (2, 4)]  # of one synthetic image a class


def test_a_step_of_several_prefixes_has_the_mean_of_the_losses_of_each(few_digits: LabeledImages) -> None:
    """All images looked at, the draw of the augmentation is that of the longest; so it is left out here."""

    def loss_of(*lengths: int) -> torch.Tensor:
        recipe = tiny_recipe("condense.augmentation=none")
        extractors, real = a_real_side(recipe, few_digits)
        rng, none = torch.Generator().manual_seed(7), torch.empty(0).long()
        draw = Draw(0, torch.tensor([1, 4, 5, 8]), 0, lengths, extractors.pool[1], rng, none)
        weights = {"mean": 1.0, "mmd": 1.0, "center": 1.0}
        augmentation = Augmentation("none", 8, *few_digits.mean_std)
        return whole(Objective(untrained(few_digits), real, augmentation, tied_images(few_digits), weights).at(draw))[0]

    torch.testing.assert_close(loss_of(1, 3, 4), (loss_of(1) + loss_of(3) + loss_of(4)) / 3)


@pytest.mark.parametrize(
    ("at_most", "shares"), [(None, [1, 9, 40]), (12, [1, 9, 2]), (24, [1, 9, 14]), (2, [1, 1, 1]), (99, [1, 9, 40])]
)
def test_the_images_between_two_lengths_stand_for_all_of_them(at_most: int | None, shares: list[int]) -> None:
    lengths = (1, 10, 50)
    assert shares_of(lengths, at_most) == shares
    weights = weights_of_sets(lengths, shares, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    slot = torch.arange(3).repeat_interleave(torch.tensor(shares) * 4)  # which stretch an image is of
    of_stretch = torch.stack([weights[:, slot == number].sum(1) for number in range(3)], 1)
    torch.testing.assert_close(of_stretch, torch.tensor([[1, 0, 0], [0.1, 0.9, 0], [0.02, 0.18, 0.8]]))


def test_terms_of_weight_zero_are_not_computed(few_digits: LabeledImages) -> None:
    _, parts = a_step(few_digits, untrained(few_digits), {name: 0.0 for name in WEIGHTS} | {"mmd": 1.0})
    assert list(parts) == ["mmd"]


def test_gradients_reach_the_codes_of_the_prefix_and_no_others(few_digits: LabeledImages) -> None:
    condensed = untrained(few_digits)
    a_step(few_digits, condensed, {"mean": 1.0}, lengths=(2,))[0].backward()
    touched = condensed.codes.learned.grad.view(10, 4, -1).abs().sum(-1) > 0
    expected = torch.zeros(10, 4, dtype=torch.bool)
    expected[[1, 4, 5, 8], :2] = True
    assert torch.equal(touched, expected)


def test_representatives_are_real_images_of_their_class_in_nested_order(few_digits: LabeledImages) -> None:
    tied = tied_images(few_digits)
    assert isinstance(tied, Representatives) and len(tied.labels) == 40
    for row in (0, 17, 39):
        own = few_digits.images[few_digits.labels == tied.labels[row]].float() / 127.5 - 1
        assert (own - tied.images[row]).flatten(1).abs().sum(1).min() < 1e-5


def test_a_class_smaller_than_the_codebook_keeps_the_slots_it_has_no_image_for(few_digits: LabeledImages) -> None:
    tied = tied_images(few_digits, "codes.num_slots=50", "codes.representative_sizes=[1,50]")
    assert len(tied.labels) == 120 and tied.slots.max() == 11


def test_fifty_steps_lower_the_loss(few_digits: LabeledImages, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        "pretrain.num_steps=0", "codes.encode_steps=0", "condense.num_steps=60", "condense.prefix_lengths=[2]",
        "condense.stream_probability=0", "features.snapshot_steps=[3]", "features.num_random=0", "generator.width=16",
        "save_every_steps=100",
    )  # fmt: skip
    condense(recipe, few_digits, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


def test_the_run_folder_holds_all_that_is_promised(
    few_digits: LabeledImages, finished: tuple[Path, CondensedDataset]
) -> None:
    run, condensed = finished
    names = {path.name for path in run.iterdir()}
    assert {"recipe.yaml", "data.json", "pretrained", "condensed", "log.jsonl", "samples"} <= names
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]
    made = condensed.config.provenance
    assert made["data"]["fingerprint"] == few_digits.fingerprint and made["recipe"]["name"] == "demo"
    assert (
        made["versions"]["torch"] == torch.__version__.split("+")[0] or made["versions"]["torch"] in torch.__version__
    )
    card = (run / "condensed" / "README.md").read_text()
    assert "library_name: gencond" in card and "gencond.load" in card and few_digits.fingerprint in card
    assert torch.equal(gencond.load(run).sample(6)[0], condensed.sample(6)[0])


def test_the_same_run_twice_gives_the_same_bits_and_other_seeds_others(
    few_digits: LabeledImages, finished: tuple[Path, CondensedDataset], tmp_path: Path
) -> None:
    for name, seed in (("b", 0), ("c", 1)):
        condense(tiny_recipe(f"seed={seed}"), few_digits, tmp_path / name)
    assert artefact_bits(finished[0]) == artefact_bits(tmp_path / "b") != artefact_bits(tmp_path / "c")


def test_each_stage_says_in_one_line_what_it_does_and_how_much_before_it_begins(
    few_digits: LabeledImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    condense(tiny_recipe("real.num_passes=2"), few_digits, tmp_path / "run")
    assert caplog.messages == [
        "pretrain: 4 steps teach a generator to make images like the 120 real ones",
        "extractors: a pool of networks to compare images with, 2 of all ages of training and 1 random",
        "statistics: 3 networks look at 120 real images twice and keep what they see of each class",
        "representatives: up to 4 real images of each class are chosen for its codes to start from",
        "encode: 4 steps fit 40 codes and the generator to their real images",
        "condense: 6 steps change 40 codes and the generator until networks see in samples what they see in real "
        "images",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "dm:digits",
            [
                "a new random network every step to compare images with",
                "4 random real images of each class are read in every step",
                "2 random real images of each class are chosen to start from",
            ],
        ),
        (
            "dream:digits",
            [
                "a new random network every 20 steps to compare images with, trained on real images along the way",
                "the 4 most typical real images of each class are chosen anew every 10 steps",
                "2 typical real images of each class are chosen to start from",
            ],
        ),
    ],
)
def test_recipes_of_pixels_say_what_their_stages_do(few_digits: LabeledImages, name: str, said: list[str]) -> None:
    small = ["features.width=8", "pixels.ipc=2", "condense.num_steps=5", "real.batch_size=4"]
    parts = build(load_recipe(name, small, "digits"), few_digits, CPU)
    found = [entry.says(parts) for entry in STAGES if entry.name in ("extractors", "statistics", "representatives")]
    assert found == said
    assert STAGES[-1].says(parts).startswith("5 steps change 20 images until networks see in samples")


class Killed(BaseException):
    pass


def test_a_run_that_starts_from_what_can_be_learned_says_how_much_that_is_and_ends_in_the_same_bits_after_a_kill(
    few_digits: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    labels = torch.where(torch.arange(120) % 10 == 0, (few_digits.labels + 5) % 10, few_digits.labels)
    data = replace(few_digits, labels=labels)  # one in ten is false
    monkeypatch.setattr(difficulty, "MOST_PASSES", 100)  # of so few images
    recipe = tiny_recipe(
        "codes.learnable_first=true", "codes.ranking_steps=60", "codes.num_slots=2", "codes.representative_sizes=[1,2]"
    )
    made = condense(recipe, data, tmp_path / "whole")
    said = re.search(r"images that a network knows after 60 step.s., (\d+) of 120, and from others", caplog.text)
    assert said is not None and 80 < int(said[1]) < 115  # of the true ones it knows nearly all, of the others few
    assert "first those that a network knows after a brief training" in caplog.text
    assert made.config.provenance["num_known"] == int(said[1])
    card = (tmp_path / "whole/condensed/README.md").read_text()
    assert f"knows after a brief training ({said[1]} of 120), and others where" in card

    def dies_after_a_state(self: RunFolder, states, name: str, *others) -> None:
        save(self, states, name, *others)
        raise Killed

    save = RunFolder.save_state
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "save_state", dies_after_a_state)
        condense(recipe, data, tmp_path / "killed")
    monkeypatch.setenv("GENCOND_CACHE", str(tmp_path / "other cache"))  # what was asked is asked again
    condense(recipe, data, tmp_path / "killed")
    assert artefact_bits(tmp_path / "killed") == artefact_bits(tmp_path / "whole")


@pytest.mark.parametrize("stage", ["pretrain", "encode", "condense"])
@pytest.mark.parametrize("moment", ["between states", "while a state is written", "after a state"])
def test_resume_equals_uninterrupted_run(
    few_digits: LabeledImages,
    finished: tuple[Path, CondensedDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    moment: str,
) -> None:
    caplog.set_level("INFO", logger="gencond")
    recipe = tiny_recipe()
    save, rng = RunFolder.save_state, step_rng

    def dies_saving(self, states, name, step, *advice):
        if name == stage and step == 4 and moment == "while a state is written":
            (self.path / "state" / stage / ".step_00000004.tmp").mkdir(parents=True)
            raise Killed
        save(self, states, name, step, *advice)
        if name == stage and step == 2 and moment == "after a state":
            raise Killed

    def dies_drawing(seed, name, step):
        if name == stage and step == 3 and moment == "between states":
            raise Killed
        return rng(seed, name, step)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_state", dies_saving)
        for module in ("pretrain", "encode", "match"):
            patch.setattr(f"gencond.condensing.{module}.step_rng", dies_drawing)
        with pytest.raises(Killed):
            condense(recipe, few_digits, tmp_path / "killed")
    assert not (tmp_path / "killed" / "condensed").exists()
    caplog.clear()
    condense(recipe, few_digits, tmp_path / "killed")
    assert f"{stage}: resumed at step 2" in caplog.text
    assert artefact_bits(tmp_path / "killed") == artefact_bits(finished[0])
    log = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in log if entry["stage"] == stage and "event" not in entry]
    assert steps == sorted(set(steps)) and any(entry.get("event") == "resumed" for entry in log)


@pytest.mark.slow
def test_kill_nine_at_any_moment_ends_in_the_same_bits(digits: tuple, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(tiny_recipe("pretrain.num_steps=30", "condense.num_steps=60")))

    def start(out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "gencond.cli", "condense", "--recipe", str(tmp_path / "recipe.yaml")]
        environment = os.environ | {"GENCOND_CACHE": str(out.with_suffix(".cache"))}
        return subprocess.Popen(
            [*command, "--data", "digits", "--out", str(out)], env=environment, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    assert start(tmp_path / "whole").wait() == 0
    kills = 0
    for _ in range(60):
        process = start(tmp_path / "killed")
        begun = time.monotonic()
        while process.poll() is None and time.monotonic() - begun < 5 + 0.37 * kills:
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2
    assert artefact_bits(tmp_path / "killed") == artefact_bits(tmp_path / "whole")


def test_a_finished_run_is_reused_and_says_so(
    few_digits: LabeledImages,
    finished: tuple[Path, CondensedDataset],
    copied: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="gencond")
    again = condense(tiny_recipe(), few_digits, copied)
    assert "is complete, reusing it" in caplog.text
    assert state_fingerprint(finished[1]) == state_fingerprint(again)


def test_a_second_run_with_the_same_data_reuses_extractors_and_statistics(
    few_digits: LabeledImages,
    finished: tuple[Path, CondensedDataset],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(finished[0].with_name("cache"), cache_dir(), dirs_exist_ok=True)
    assert len(list((cache_dir() / "statistics").iterdir())) == 1
    caplog.set_level("INFO", logger="gencond")
    condense(tiny_recipe("condense.num_steps=3"), few_digits, tmp_path / "b")
    assert "reusing the pool" in caplog.text and "statistics: reusing" in caplog.text


def test_another_recipe_or_other_data_in_the_same_folder_is_refused(
    few_digits: LabeledImages, copied: Path, tmp_path: Path
) -> None:
    run = copied
    before = artefact_bits(run)
    with pytest.raises(InputError, match=r"another recipe \(condense.num_steps: 6 there, 7 here\)"):
        condense(tiny_recipe("condense.num_steps=7"), few_digits, run)
    condense(tiny_recipe("save_every_steps=5"), few_digits, run)  # nor does the rhythm of the states change a bit
    with pytest.raises(InputError, match="are not those"):
        condense(tiny_recipe(), few_digits.subset(torch.arange(100)), run)
    condense(tiny_recipe("evaluate.num_seeds=5"), few_digits, run)  # how it is judged may change
    assert artefact_bits(run) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match="no run folder"):
        condense(tiny_recipe(), few_digits, tmp_path / "full")


def test_a_run_killed_in_its_first_moments_starts_again(few_digits: LabeledImages, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    left = run / ".data.json.a1b2c3d4.tmp"
    left.mkdir()
    (left / "data.json").write_text("{")
    (left / "writer").touch()  # what a writer of ours marks its folder with
    os.utime(left, (0, 0))
    (run / "data.json").write_text("{}")
    condense(tiny_recipe(), few_digits, run)
    assert (run / "condensed").is_dir() and not left.exists()


def test_half_a_log_line_is_dropped(few_digits: LabeledImages, tmp_path: Path) -> None:
    run = RunFolder.prepare(tmp_path / "run", tiny_recipe(), few_digits)
    run.log(stage="pretrain", step=10)
    with run.log_file.open("a") as file:
        file.write('{"stage": "pretr')
    again = RunFolder.prepare(tmp_path / "run", tiny_recipe(), few_digits)
    again.log(stage="pretrain", step=20)
    assert [entry["step"] for entry in again.read_log()] == [10, 20]


def test_a_second_process_is_kept_out_of_a_run_folder(few_digits: LabeledImages, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    hold = f"import fcntl, time; f = open({str(run / '.lock')!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process works in"):
            condense(tiny_recipe(), few_digits, run)
        other.kill()
    condense(tiny_recipe(), few_digits, run)


def test_a_diverged_run_stops_and_keeps_its_last_state(few_digits: LabeledImages, tmp_path: Path) -> None:
    recipe = tiny_recipe("objective.mean_weight=1e39")  # more than float32 holds
    with pytest.raises(InputError, match="is not finite: lower condense.generator_lr or"):
        condense(recipe, few_digits, tmp_path / "run")
    assert not (tmp_path / "run" / "condensed").exists()


def killed_before_its_artefact(
    recipe: Recipe, data: LabeledImages, run: Path, monkeypatch: pytest.MonkeyPatch, pretrained: Path | None = None
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gencond.condensing.run.write_artefact", lambda *args: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            condense(recipe, data, run, pretrained)


def test_a_damaged_state_is_named(few_digits: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    killed_before_its_artefact(tiny_recipe(), few_digits, run, monkeypatch)
    damaged = next((run / "state" / "condense").glob("step_*"))
    content = bytearray((damaged / "state.safetensors").read_bytes())
    content[-5] ^= 1  # a bit of a weight
    (damaged / "state.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is damaged .*: remove it to redo the condense stage"):
        condense(tiny_recipe(), few_digits, run)
    shutil.rmtree(damaged)
    condense(tiny_recipe(), few_digits, run)


class Harmless:
    """What is pickled as a call, here of `Path.touch`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def test_going_on_with_a_run_folder_of_somebody_elses_calls_nothing_that_is_pickled_there(
    few_digits: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, marker = tmp_path / "run", tmp_path / "called"
    killed_before_its_artefact(tiny_recipe(), few_digits, run, monkeypatch)
    (state,) = (run / "state" / "condense").iterdir()
    assert not [file for file in state.iterdir() if file.read_bytes()[:2] in (b"PK", b"\x80\x02")]  # zip, pickle
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl", "state.safetensors"):
        torch.save(Harmless(marker), state / name)
    with pytest.raises(InputError, match="is damaged"):
        condense(tiny_recipe(), few_digits, run)
    (state / "sha256").write_text(file_sha256(state / "state.safetensors"))
    with pytest.raises(InputError, match="cannot be read .*: remove it to redo the condense stage"):
        condense(tiny_recipe(), few_digits, run)
    (state / "state.safetensors").unlink()  # as an older gencond left it
    with pytest.raises(InputError, match="older gencond, which are not read: remove it to redo the condense stage"):
        condense(tiny_recipe(), few_digits, run)
    assert not marker.exists()
    shutil.rmtree(state)
    condense(tiny_recipe(), few_digits, run)
    assert not marker.exists()


def test_no_code_of_the_package_unpickles() -> None:
    """Of what torch and numpy read as pickles unless they are told otherwise."""
    for file in Path(gencond.__file__).parent.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            called, options = ast.unparse(call.func), {keyword.arg: keyword.value for keyword in call.keywords}
            if called == "torch.load":
                assert ast.unparse(options["weights_only"]) == "True", file
            if called == "np.load":
                assert ast.unparse(options.get("allow_pickle", ast.Constant(False))) == "False", file
            assert called not in ("pickle.load", "pickle.loads", "accelerator.load_state", "torch.hub.load"), file


def test_the_weights_that_a_run_starts_from_are_a_part_of_what_it_is(
    few_digits: LabeledImages,
    finished: tuple[Path, CondensedDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, given, run = tiny_recipe(), tmp_path / "given", tmp_path / "run"
    generator = build(recipe, few_digits, CPU).generators.new()
    generator.save_pretrained(given)
    build(tiny_recipe("seed=1"), few_digits, CPU).generators.new().save_pretrained(tmp_path / "other")
    killed_before_its_artefact(recipe, few_digits, run, monkeypatch, given)
    for weights in (tmp_path / "other", None):
        with pytest.raises(InputError, match="was started with pretrained weights [0-9a-f]{16}, and is now asked for"):
            condense(recipe, few_digits, run, weights)
    moved = given.rename(tmp_path / "moved")
    condensed = condense(recipe, few_digits, run, moved)  # their content counts
    assert condensed.config.provenance["weights"] == {"pretrained": state_fingerprint(generator)}
    assert condensed.config.provenance["recipe"]["pretrain"]["num_steps"] == 4  # which were not made
    before = artefact_bits(run)
    with pytest.raises(InputError, match="given cannot be loaded as a pretrained generator"):
        condense(recipe, few_digits, run, given)  # although the run is finished
    condense(recipe, few_digits, run, moved)
    assert artefact_bits(run) == before
    shutil.copytree(finished[0], tmp_path / "own")
    with pytest.raises(InputError, match="without pretrained weights .or by gencond 0.1.0.*is now asked for with"):
        condense(recipe, few_digits, tmp_path / "own", moved)


def test_published_weights_whose_content_changed_are_other_weights(tmp_path: Path) -> None:
    file, folder = tmp_path / "weights.pth", tmp_path / "folder"
    folder.mkdir()
    file.write_bytes(b"one")
    (folder / "weights.pth").write_bytes(b"one")
    before = [weights_hash(path) for path in (file, folder)]
    file.rename(tmp_path / "moved.pth")
    folder.rename(tmp_path / "moved")
    assert [weights_hash(tmp_path / name) for name in ("moved.pth", "moved")] == before
    (tmp_path / "moved.pth").write_bytes(b"two")
    (tmp_path / "moved" / "weights.pth").write_bytes(b"two")
    assert not {weights_hash(tmp_path / name) for name in ("moved.pth", "moved")} & set(before)
    assert weights_hash("owner/name") == "name"


@pytest.mark.parametrize("stage", ["encode", "condense"])
def test_weights_that_are_not_finite_are_no_state_and_the_advice_works(
    few_digits: LabeledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    run = tmp_path / "run"
    number = {"encode": "codes.encode_steps=40", "condense": "condense.num_steps=40"}[stage]
    rate = {"encode": "codes.encode_generator_lr", "condense": "condense.generator_lr"}[stage]
    backward, adam, made = torch.Tensor.backward, gencond.condensing.encode.adam, []
    steps = iter(range(100))

    def overflows(self: torch.Tensor, *args, **options) -> None:
        """In the fourth step: its loss is finite, and what it learns is not."""
        backward(self, *args, **options)
        if (run / "state" / stage / "step_00000002").exists() and next(steps) == 1:
            made[-1].param_groups[0]["params"][0].grad.fill_(torch.nan)

    def noted(*args) -> torch.optim.Adam:
        made.append(adam(*args))
        return made[-1]

    for module in ("encode", "build"):
        monkeypatch.setattr(f"gencond.condensing.{module}.adam", noted)
    monkeypatch.setattr("torch.Tensor.backward", overflows)
    with pytest.raises(InputError, match=f"{stage}: a weight at step 4 is not finite: lower .*{rate}") as raised:
        condense(tiny_recipe(number), few_digits, run)
    assert [state.name for state in (run / "state" / stage).iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    advised = Path(re.search(r"--pretrained (\S+) ", str(raised.value))[1])
    condense(tiny_recipe(number, f"{rate}=1e-5"), few_digits, tmp_path / "again", advised)
    assert not (tmp_path / "again" / "pretrained").exists()  # it goes on from there
    condense(tiny_recipe(number), few_digits, run)  # what was not the recipe's fault: from the state before


def test_what_a_kill_left_of_finished_stages_is_gone_after_the_next_call(
    few_digits: LabeledImages, copied: Path
) -> None:
    run = copied
    assert not (run / "state").exists()
    left = [run / "state" / "condense" / "step_00000006", run / "samples" / ".step_000006.png.a1b2c3d4.tmp"]
    for folder in left:
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    (run / "samples" / ".mine.tmp").touch()
    condense(tiny_recipe(), few_digits, run)
    assert not (run / "state").exists() and not left[1].exists() and (run / "samples" / ".mine.tmp").exists()


FULL = """
import resource, sys
from gencond.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as a full disk: no file grows larger
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="has no such limit")
def test_a_full_disk_while_a_state_is_saved_is_one_line_and_the_run_goes_on_once_there_is_space(
    digits: tuple, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(to_yaml(tiny_recipe()))
    command = ["condense", "--recipe", str(tmp_path / "recipe.yaml"), "--data", "digits", "--out", str(run)]
    said = subprocess.run([sys.executable, "-c", FULL, *command], capture_output=True, text=True)
    lines = [line for line in re.split("[\r\n]+", said.stderr) if "gencond:" in line]
    assert said.returncode == 2 and "Traceback" not in said.stderr, said.stderr
    assert len(lines) == 1 and lines[0].startswith("gencond: the state of pretrain at step 2 could not be written into")
    assert not list(run.glob("state/*/*"))
    condense(tiny_recipe(), digits[0], run)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("features.depth=5", "5 blocks cannot halve 8 px"),
        ("generator.num_blocks=3", "cannot make 8 px"),
        ("pretrain.augmentation=blur", "'blur'"),
    ],
)
def test_what_does_not_fit_the_images_fails_before_any_work(
    few_digits: LabeledImages, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        condense(tiny_recipe(override), few_digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_classes_with_two_images_each_are_enough(few_digits: LabeledImages, tmp_path: Path) -> None:
    rows = torch.cat([few_digits.rows_of(label)[:2] for label in (0, 1)])
    tiny = LabeledImages(few_digits.images[rows], few_digits.labels[rows], ("0", "1"))
    condensed = condense(tiny_recipe("objective.center_weight=0.1"), tiny, tmp_path / "run")
    assert condensed.sample(7)[0].shape == (14, 1, 8, 8)


def test_recipe_in_the_run_folder_is_plain_yaml(finished: tuple[Path, CondensedDataset]) -> None:
    assert yaml.safe_load((finished[0] / "recipe.yaml").read_text())["condense"]["num_steps"] == 6
