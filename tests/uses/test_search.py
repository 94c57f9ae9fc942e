"""A network is chosen by training on a condensed set."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_distributed import accelerate_launch

import gencond
import gencond.uses.search
from gencond.cli import main
from gencond.data.images import LabeledImages
from gencond.data.select import random_subset
from gencond.eval.classifier import RepeatedImages

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "checkpoints" / "digits")
NETWORKS = ("convnet1w4-relu-batch-avg", "convnet1w8-relu-nonorm-max", "convnet2w4-sigmoid-layer-avg", "convnet2w8")
TINY = {"ipc": [1, 2], "networks": NETWORKS, "protocol": "dm:2", "top": 2}
PROXIES = [
    ("gencond", 1), ("random_real", 1), ("kmeans_real", 1), ("gencond", 2), ("random_real", 2), ("kmeans_real", 2),
    ("early_stopping", None),
]  # fmt: skip


class Trainer:
    """Instead of training: says what each network reaches, and keeps what it was asked.

    Args:
        reached: network -> top-1 on held-out images and on test images.
        num_test_images: by which these are told apart.
    """

    def __init__(self, reached: dict[str, tuple[float, float]], num_test_images: int) -> None:
        self.reached, self.num_test_images, self.asked = reached, num_test_images, []

    def __call__(
        self, train: Sequence[LabeledImages] | RepeatedImages, test: LabeledImages, **options: object
    ) -> list[float]:
        self.asked.append((train, test, options))
        return [self.reached[options["network"]][len(test) == self.num_test_images]] * len(options["seeds"])


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, digits: tuple[LabeledImages, LabeledImages]) -> Trainer:
    reached = dict(zip(NETWORKS, [(0.9, 0.5), (0.8, 0.7), (0.1, 0.9), (0.2, 0.1)], strict=True))
    fake = Trainer(reached, len(digits[1]))
    monkeypatch.setattr("gencond.uses.trainings.train_and_test", fake)
    return fake


def test_a_search_writes_a_table_a_page_a_picture_and_every_score(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found = gencond.search(DIGITS, tmp_path, **TINY, num_seeds=2, whole_epochs=1)
    content = json.loads((tmp_path / "search.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert [(one["images"], one["ipc"]) for one in content["rankings"]] == [*PROXIES, ("num_parameters", None)]
    for ranking in content["rankings"][:-1]:
        assert set(ranking["scores"]) == set(NETWORKS)
        assert all(len(each) == 2 and 0 <= min(each) <= max(each) <= 1 for each in ranking["scores"].values())
        assert ranking["seconds"] > 0
    assert [one["num_stored"] for one in content["rankings"]] == [10] * 3 + [20] * 3 + [959, 0]
    # four networks, two seeds, two epochs of one batch; the last of a whole batch of 256 as often
    assert [one["num_seen"] for one in content["rankings"]] == [160] * 3 + [320] * 3 + [4 * 2 * 2 * 256, 0]
    assert 2 <= len(content["whole"]) <= 4 and content["whole_protocol"]["epochs"] == 1
    assert content["versions"]["gencond"] and content["measured"]["train"] == "8d762dddca8ccb9b"
    table = [line for line in (tmp_path / "search.md").read_text().splitlines() if line.startswith("| ")]
    printed = capsys.readouterr().out
    assert all(line in printed for line in table[:9])  # the second table is of the networks
    assert f"| gencond (ours), IPC 2 | {found.verdicts[3].picked}" in printed and "Spearman" in printed
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "search.html").read_text()
    assert page.count("<svg") == 1 and not re.search('(src|href)="http', page)
    assert all(network in page for network in found.whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scores", "search.html", "search.json", "search.md", "search.png",
    ]  # fmt: skip


def test_only_the_best_of_the_rankings_are_trained_on_the_whole_set_and_judge_the_picks(
    tmp_path: Path, trainer: Trainer
) -> None:
    found = gencond.search(DIGITS, tmp_path, **TINY)
    assert set(found.whole) == {*NETWORKS[:2], NETWORKS[1], NETWORKS[3]}  # the two best, and the two largest
    for verdict in found.verdicts[:-1]:
        assert (verdict.picked, verdict.top1) == (NETWORKS[0], 0.5) and verdict.distance == pytest.approx(-0.2)
        assert verdict.over_top.spearman == pytest.approx(-1) and verdict.over_union.num_networks == 3
    assert found.verdicts[-1].picked == max(NETWORKS, key=lambda network: found.networks[network])


def test_no_proxy_sees_a_test_image_and_none_of_real_images_a_held_out_one(
    tmp_path: Path, trainer: Trainer, digits: tuple[LabeledImages, LabeledImages]
) -> None:
    gencond.search(DIGITS, tmp_path, **TINY, num_seeds=2)
    train, test = (set(part.digests()) for part in digits)
    of_proxies = [one for one in trainer.asked if len(one[1]) != len(digits[1])]
    whole = [one for one in trainer.asked if len(one[1]) == len(digits[1])]
    assert len(of_proxies) == len(NETWORKS) * len(PROXIES)
    (held_out,) = {frozenset(one[1].digests()) for one in of_proxies}
    assert (
        held_out < train
        and not held_out & test
        and len(held_out) == sum(round(0.2 * int(count)) for count in digits[0].counts)
    )
    for images, _, options in of_proxies:
        sets = [images.of_seed(0)] if isinstance(images, RepeatedImages) else images
        for one in sets:
            seen = set(one.digests())
            assert not seen & held_out and not seen & test
            assert isinstance(images, RepeatedImages) or len(one) in (10, 20)
        assert options["protocol"].name == "dm:2" and options["seeds"] == [0, 1]
    assert [set(one[0][0].digests()) == train and set(one[1].digests()) == test for one in whole] == [True] * len(whole)


def test_early_stopping_takes_the_steps_of_the_largest_ipc(tmp_path: Path, trainer: Trainer) -> None:
    gencond.search(DIGITS, tmp_path, **{**TINY, "ipc": [1, 30], "protocol": "dm:7"})
    (budget,) = {(one.batch_size, one.num_steps) for one, *_ in trainer.asked if isinstance(one, RepeatedImages)}
    assert budget == (256, 7 * 2)  # 300 images are two batches


def test_random_real_images_are_drawn_anew_for_each_seed_and_are_the_same_for_every_network(
    tmp_path: Path, trainer: Trainer
) -> None:
    gencond.search(DIGITS, tmp_path, **{**TINY, "ipc": 2}, num_seeds=2)
    drawn = [one for one, *_ in trainer.asked if not isinstance(one, RepeatedImages) and len(one[0]) == 20]
    pairs = {tuple(each.fingerprint for each in one) for one in drawn}
    assert len(drawn) == 3 * len(NETWORKS) and len(pairs) == 3  # ours, random, k-means
    assert sorted(len(set(pair)) for pair in pairs) == [1, 2, 2]  # ours is the same for both seeds


def test_a_search_that_was_killed_goes_on_and_one_of_more_networks_trains_the_new_ones_alone(
    tmp_path: Path, trainer: Trainer
) -> None:
    fewer = {**TINY, "networks": NETWORKS[:3]}

    def killed(*arguments: object, **options: object) -> list[float]:
        if len(trainer.asked) == 9:
            raise KeyboardInterrupt
        return trainer(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gencond.uses.trainings.train_and_test", killed)
        gencond.search(DIGITS, tmp_path, **fewer)
    found = gencond.search(DIGITS, tmp_path, **fewer)
    once = 3 * len(PROXIES) + len(found.whole)
    assert len(trainer.asked) == once
    more = gencond.search(DIGITS, tmp_path, **TINY)
    new = [options["network"] for *_, options in trainer.asked[once:]]
    assert set(new) <= {NETWORKS[3], *set(more.whole) - set(found.whole)}
    assert len(new) == len(PROXIES) + len(set(more.whole) - set(found.whole))
    gencond.search(DIGITS, tmp_path, **TINY, num_seeds=2)
    assert {tuple(options["seeds"]) for *_, options in trainer.asked[once + len(new) :]} == {(1,)}


def test_real_networks_are_not_trained_twice_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {**TINY, "ipc": 1, "networks": NETWORKS[:2], "top": 1}
    found = gencond.search(DIGITS, tmp_path, **few)
    monkeypatch.setattr("gencond.uses.trainings.train_and_test", pytest.fail)
    assert gencond.search(DIGITS, tmp_path, **few) == found


def npz_of(images: LabeledImages, file: Path) -> str:
    np.savez(file, images=images.images.numpy(), labels=images.labels.numpy(), names=list(images.class_names))
    return str(file)


def test_anybodys_set_is_searched_with_and_one_that_is_cut_has_packed_rivals(
    tmp_path: Path, trainer: Trainer, digits: tuple[LabeledImages, LabeledImages]
) -> None:
    theirs = npz_of(random_subset(digits[0], 2, seed=0), tmp_path / "theirs.npz")
    found = gencond.search(
        theirs, tmp_path / "out", "digits", **{**TINY, "ipc": 2}, factor=2
    )  # the digits' default split is another one
    assert [(one.images, one.num_stored) for one in found.rankings] == [
        ("theirs: theirs.npz", 20), ("random_real", 20), ("kmeans_real", 20), ("random_real_packed", 20),
        ("kmeans_real_packed", 20), ("early_stopping", found.rankings[5].num_stored), ("num_parameters", 0),
    ]  # fmt: skip
    seen = [one.num_seen for one in found.rankings]
    assert seen[0] == seen[3] == seen[4] == 4 * seen[1]  # each image is cut into four
    assert "--factor 2" in found.command and "--data digits" in found.command


def test_real_images_that_are_too_few_are_left_out_and_said(tmp_path: Path, trainer: Trainer) -> None:
    found = gencond.search(DIGITS, tmp_path, **{**TINY, "ipc": [1, 98]})
    assert [(one.images, one.ipc) for one in found.rankings if one.ipc] == [*PROXIES[:3], ("gencond", 98)]
    assert [note.partition(":")[0] for note in found.notes[1:]] == [
        "no random_real at IPC 98",
        "no kmeans_real at IPC 98",
    ]


def test_networks_that_do_not_fit_are_left_out_in_one_line(
    tmp_path: Path, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    gencond.search(DIGITS, tmp_path, **{**TINY, "networks": [*NETWORKS, "convnet4w4", "convnet5w4"]})
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("search:")]
    assert said == [
        "search: 2 networks do not take the images and are left out, first network convnet4w4: 4 blocks cannot halve 8 "
        "px images",
        "search: 4 networks, 7 proxies that train, 1 seed(s): 28 trainings; then 2 to 4 of the networks on the whole "
        "set",
    ]
    assert "2 networks do not take the images" in (tmp_path / "search.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ["convnot"]}, "unknown network 'convnot'"),
        ({"networks": []}, "the space of networks is empty"),
        ({"networks": ["convnet4"]}, "not one network takes the images"),
        ({"norms": ["batch"]}, "norms are of a space of ConvNets: leave out these or the networks by name"),
        ({"networks": None, "widths": []}, "the space of networks is empty"),
        ({"networks": None, "poolings": "min"}, "unknown pooling 'min'"),
        ({"top": 5}, "--top 5 of 4 network(s): lower it"),
        ({"top": 0}, "--top must be at least 1"),
        ({"num_seeds": 0}, "--seeds must be in 1 .. 1000, not 0"),
        ({"ipc": 0}, "at least 1"),
        ({"protocol": "slow"}, "unknown protocol 'slow'"),
        ({"protocol": "soft"}, "learns a teacher's answers"),
        ({"whole_epochs": 0}, "--whole-epochs must be at least 1, not 0"),
        ({"protocol": "quick", "whole_epochs": 5}, "protocol quick takes 500 steps at most"),
        ({"data": "/nowhere"}, "no such data: '/nowhere'"),
        ({"factor": 2}, "leave --normalised-by and --factor out"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained_and_leaves_nothing(
    tmp_path: Path, trainer: Trainer, changes: dict, message: str
) -> None:
    with pytest.raises(gencond.InputError, match=re.escape(message)):
        gencond.search(DIGITS, tmp_path / "out", **{**TINY, **changes})
    assert not trainer.asked and not (tmp_path / "out").exists()


def test_more_images_than_a_set_holds_are_refused(
    tmp_path: Path, trainer: Trainer, digits: tuple[LabeledImages, LabeledImages]
) -> None:
    theirs = npz_of(random_subset(digits[0], 2, seed=0), tmp_path / "theirs.npz")
    with pytest.raises(gencond.InputError, match="holds 2 images of each class: lower --ipc 3"):
        gencond.search(theirs, tmp_path / "out", "digits", **{**TINY, "ipc": [1, 3]})
    assert not trainer.asked


def test_a_folder_that_holds_something_else_is_left_alone(
    tmp_path: Path, trainer: Trainer, digits: tuple[LabeledImages, LabeledImages]
) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(gencond.InputError, match="is not empty and holds no search: choose another --out"):
        gencond.search(DIGITS, tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"] and not trainer.asked
    theirs = npz_of(random_subset(digits[0], 2, seed=0), tmp_path / "theirs.npz")
    gencond.search(DIGITS, tmp_path / "out", **TINY)
    before = (tmp_path / "out" / "search.json").read_bytes()
    with pytest.raises(gencond.InputError, match="holds a search with another condensed set or real images"):
        gencond.search(theirs, tmp_path / "out", "digits", **TINY)
    assert (tmp_path / "out" / "search.json").read_bytes() == before


def test_two_searches_into_one_folder_do_not_meet(tmp_path: Path, trainer: Trainer) -> None:
    hold = (
        "import sys; from pathlib import Path; from gencond.common.files import alone_in\n"
        f"with alone_in(Path(sys.argv[1]), {gencond.uses.search.LOCK!r}):\n    print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(gencond.InputError, match=f"another process works in {tmp_path}"):
            gencond.search(DIGITS, tmp_path, **TINY)
        other.communicate("\n")


def test_the_command_searches_a_space_and_says_where_to_look(
    tmp_path: Path, trainer: Trainer, capsys: pytest.CaptureFixture
) -> None:
    trainer.reached = {
        f"convnet{depth}w8-relu-{norm}-avg": (0.5, 0.5) for depth in (1, 2) for norm in ("batch", "nonorm")
    }
    main([
        "search", DIGITS, "--out", str(tmp_path), "--ipc", "1", "--widths", "8", "--depths", "1", "2", "--activations",
        "relu", "--norms", "batch", "none", "--poolings", "avg", "--protocol", "dm:3", "--whole-epochs", "2", "--top",
        "1", "--seeds", "2",
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.endswith(f"\nLook at   {tmp_path}/search.html\n")
    assert "convnet1w8-relu-batch-avg (one of 4 that tie)" in printed and "- (all tie)" in printed
    assert {options["protocol"].name for *_, options in trainer.asked} == {"dm:3", "dm:2"}
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    assert "sigmoid relu leaky_relu" in " ".join(capsys.readouterr().out.split())


def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "search.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "picks convnet" in done.stdout and (tmp_path / "out" / "search.html").is_file()


@pytest.mark.slow
def test_two_processes_share_the_networks_and_find_what_one_finds(tmp_path: Path) -> None:
    asked = ["--ipc", "1", "--networks", *NETWORKS, "--protocol", "dm:2", "--top", "2"]
    main(["search", DIGITS, "--out", str(tmp_path / "one"), *asked])
    command = [
        sys.executable, "-m", *accelerate_launch(), "-m", "gencond.cli", "search", DIGITS, "--out",
        str(tmp_path / "two"), *asked,
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("| ranked by |") == 1 and done.stderr.count("16 trainings") == 1
    )  # the main process says it
    one, two = (json.loads((tmp_path / name / "search.json").read_text()) for name in ("one", "two"))
    assert [ranking["scores"] for ranking in one["rankings"]] == [ranking["scores"] for ranking in two["rankings"]]
    assert one["whole"] == two["whole"]
