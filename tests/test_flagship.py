"""The published comparison as one command: what is checked before it, what stops it, and how it goes on."""

import argparse
import importlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gencond.cli import run_cleanly

SCRIPTS = Path(__file__).parent.parent / "scripts"
OWN = """
data: {test_fraction: 0.3333, augmentation: crop_scale_rotate}
generator: {num_blocks: 1}
pretrain: {num_steps: 1}
features: {depth: 2}
objective: {mean_weight: 1.0}
variants:
  digits: {}
  quick: {}
  stream-small: {}
  stream: {codes: {num_slots: 3}}
  stream-large: {}
  stream-xlarge: {}
"""
ALL = ("pretrain", "condense", "quality", "fixed", "storage", "page")


@pytest.fixture
def flagship(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("flagship")


@pytest.fixture
def smoke(tmp_path: Path) -> list[str]:
    """Arguments of a comparison of seconds, by a recipe that no tuning changes."""
    (tmp_path / "own.yaml").write_text(OWN)
    recipe = str(tmp_path / "own.yaml")
    return ["digits", "--out", str(tmp_path / "out"), "--recipe", f"{recipe}:digits", "--budget", "smoke"]


def planned(text: str) -> list[tuple[str, str]]:
    """(stage, command) of each line of a dry run that names one."""
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if not line.startswith(" ")]


# --- before anything runs --------------------------------------------------------------------------------------------


def test_a_dry_run_lists_every_command_in_order_and_trains_nothing(
    flagship: ModuleType, smoke: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flagship.main([*smoke, "--dry-run"])
    plan = planned(capsys.readouterr().out)
    assert [stage for stage, _ in plan] == [*ALL[:4], *["storage"] * 5, "page"]
    assert dict(plan)["quality"] == "nothing: without --quality"
    gan = f"{tmp_path}/out/gan/pretrained"
    assert all(f"--pretrained {gan}" in command for stage, command in plan if stage in ("condense", "fixed"))
    assert "random_real kmeans_real dm:digits m3d:digits dream:digits" in dict(plan)["fixed"]
    runs = [f"{tmp_path}/out/{name}" for name in flagship.STREAMS]
    stored = " ".join(f"{run} {run}@float16 {run}@int8 {run}@coded" for run in runs)
    assert f"storage_curve.py {stored} --data digits" in dict(plan)["storage"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("budget", ["full", "quick"])
def test_the_shipped_recipe_and_the_papers_fit_the_images_of_cifar10(
    flagship: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture, budget: str
) -> None:
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (6100, 32, 32, 3), dtype=np.uint8)  # 600 a class for training
    labels = np.arange(6100) % 10
    np.savez(
        tmp_path / "some.npz", x_train=images[100:], y_train=labels[100:], x_test=images[:100], y_test=labels[:100]
    )
    data, out = str(tmp_path / "some.npz"), str(tmp_path / "out")
    flagship.main(["cifar10", "--data", data, "--out", out, "--budget", budget, "--dry-run"])
    plan = dict(planned(capsys.readouterr().out))
    fixed = plan["fixed"]
    end = "" if budget == "full" else ":quick"
    assert " ".join(f"{name}:cifar10{end}" for name in ("dm", "m3d", "dream", "gencond")) in fixed
    assert "--ipc 1 10 50" in fixed and ("--seeds 5" if budget == "full" else "--seeds 3") in fixed
    assert plan["storage"].endswith("--published cifar10")


def test_a_recipe_that_pretrains_nothing_has_no_such_stage(
    flagship: ModuleType, smoke: list[str], capsys: pytest.CaptureFixture
) -> None:
    flagship.main([*smoke, "--dry-run", "--set", "pretrain.num_steps=0"])
    plan = planned(capsys.readouterr().out)
    assert plan[0] == ("pretrain", "nothing: the recipe pretrains nothing")
    assert not any("--pretrained" in command for _, command in plan)


def test_the_smallest_budget_fits_the_shipped_recipe_too(
    flagship: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flagship.main(["digits", "--out", str(tmp_path / "out"), "--budget", "smoke", "--dry-run"])
    assert "storage_curve.py" in capsys.readouterr().out


def test_table_bs_generators_differ_in_size_at_every_budget(flagship: ModuleType) -> None:
    for dataset, budget in itertools.product(("fashion_mnist", "cifar10"), ("full", "quick")):
        args = argparse.Namespace(recipe=f"gencond:{dataset}", data=dataset, set=[])
        made = [flagship._recipe(args, flagship.BUDGETS[budget], f":{stream}") for stream in flagship.STREAMS]
        assert [recipe.generator.quantization_step for recipe in made] == [0.87, 0.42, 0.38, 0.38]
        assert [recipe.codes.num_slots for recipe in made] == [120, 250, 600, 3000]


def test_generators_that_no_class_can_fill_are_left_out_of_table_b(
    flagship: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["digits", "--out", str(tmp_path / "out"), "--budget", "quick", "--dry-run", "--only", "storage", "--set"]
    flagship.main([*command, "data.test_fraction=0.3333"])  # 116 images or more of each class
    assert planned(capsys.readouterr().out) == [
        ("storage", "nothing: the smallest class has fewer images than a generator of table B starts from")
    ]
    flagship.main([*command, "data.test_fraction=0.2"])  # 139 or more: enough for the smallest alone
    plan = [command for _, command in planned(capsys.readouterr().out)]
    assert ["stream-small " in command for command in plan] == [True, True] and "stream-large" not in " ".join(plan)


def test_a_recipe_without_streams_goes_through_the_other_stages(
    flagship: ModuleType, smoke: list[str], capsys: pytest.CaptureFixture
) -> None:
    flagship.main([*smoke, "--recipe", "demo", "--dry-run", "--only", "page", "fixed", "pretrain"])
    assert [stage for stage, _ in planned(capsys.readouterr().out)] == ["pretrain", "fixed", "page"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "/nowhere.npz"), "no such data: '/nowhere.npz'"),
        (("--recipe", "unheard"), "no recipe 'unheard"),
        (("--recipe", "demo"), "recipe demo has no variant 'stream-small'"),
        (("--recipe", "dm:digits"), "recipe dm:digits learns pixels"),
        (("--budget", "half"), "unknown budget 'half'; known: full, quick, smoke"),
        (("--only", "fxed"), "unknown stage 'fxed'; known: pretrain"),
        (("--only", "condense"), "gan/pretrained, which is not there: choose its stage too"),
        (("--only", "quality"), "name one with --quality"),
        (("--quality", "unheard"), "unheard"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--set", "pretrain.num_step=3"), "did you mean 'num_steps'"),
        (("--set", "data.augmentation=crop", "--ipc"), "unrecognized arguments: --ipc"),
        (("--set", "-1"), "override '-1'"),
    ],
)
def test_what_cannot_run_is_said_before_anything_does(
    flagship: ModuleType,
    smoke: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as end:
        run_cleanly(lambda: flagship.main([*smoke, *arguments]))
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("data:")]
    assert end.value.code == 2 and message in lines[-1] and not (tmp_path / "out").exists()


def test_an_unknown_data_set_names_the_known_ones(
    flagship: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        run_cleanly(lambda: flagship.main(["cats", "--out", str(tmp_path / "out")]))
    assert end.value.code == 2
    assert capsys.readouterr().err == "gencond: unknown data set 'cats'; known: digits, fashion_mnist, cifar10\n"


# --- commands --------------------------------------------------------------------------------------------------------


def commands_of(flagship: ModuleType, out: Path, *programs: str) -> dict:
    """Python programs as commands with keys; each makes a file of its number from what it prints."""
    return {
        flagship.Command("fixed", ("-c", program), out / f"{number}.txt", ()): f"key {number}"
        for number, program in enumerate(programs)
    }


def test_a_command_is_run_once_and_again_where_what_it_made_is_gone_or_its_key_is_another(
    flagship: ModuleType, tmp_path: Path
) -> None:
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x'); print('told')"
    keys = commands_of(flagship, tmp_path, count)
    for expected in ("x", "x"):
        flagship.run_all(keys, flagship.Notes(tmp_path), None)
        assert (tmp_path / "count").read_text() == expected and (tmp_path / "0.txt").read_text() == "told\n"
    (tmp_path / "0.txt").unlink()
    flagship.run_all(keys, flagship.Notes(tmp_path), None)
    flagship.run_all({command: "other" for command in keys}, flagship.Notes(tmp_path), None)
    assert (tmp_path / "count").read_text() == "xxx"
    assert "done before" in (tmp_path / "flagship.log").read_text()


@pytest.mark.parametrize(("status", "expected"), [(2, 2), (1, 1), (130, 1)])
def test_a_command_that_fails_ends_the_run_with_its_last_words(
    flagship: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture, status: int, expected: int
) -> None:
    program = f"import sys; print('why', file=sys.stderr); print('half'); sys.exit({status})"
    keys = commands_of(flagship, tmp_path, program, "print('never')")
    with pytest.raises(SystemExit) as end:
        flagship.run_all(keys, flagship.Notes(tmp_path), None)
    assert end.value.code == expected and not list(tmp_path.glob("*.txt"))
    told, said = capfd.readouterr()
    assert said.splitlines()[-1] == "why" and "never" not in told.partition("failed")[2]
    assert re.search(rf"fixed: failed after .* s with status {status}: python -c", told)


def test_when_time_is_over_the_command_is_stopped_and_the_status_says_that_more_is_to_do(
    flagship: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # hears no Ctrl-C, as a process that a shell has started in the background, and takes its time over SIGTERM
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"def end(*_): open({str(tmp_path / 'saved')!r}, 'w').write('x'); raise SystemExit(130)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(flagship, "PATIENCE_SECONDS", 0.5)
    keys, notes = commands_of(flagship, tmp_path, deaf), flagship.Notes(tmp_path)
    for seconds in (3.0, -1.0):
        with pytest.raises(SystemExit) as end:
            flagship.run_all(keys, notes, flagship.time.monotonic() + seconds)
        assert end.value.code == 75
        assert capsys.readouterr().out.splitlines()[-1].endswith("not done: run the same command again to go on")
    assert (tmp_path / "saved").is_file() and not (tmp_path / "0.txt").exists()
    (known,) = json.loads((tmp_path / "flagship.json").read_text()).values()
    assert known["done"] is False and known["seconds"] >= 3


# --- the page --------------------------------------------------------------------------------------------------------


def test_tables_are_taken_with_the_line_over_them(flagship: ModuleType) -> None:
    printed = "seed 0: 3\n\nnet, 5 seeds\n\n| a | b |\n|---|---|\n| c | 1 |\n\nNote: no\n"
    assert flagship.tables_in(printed) == "net, 5 seeds\n\n| a | b |\n|---|---|\n| c | 1 |"
    assert flagship.tables_in("seed 0: 3\n| a |\n|---|\n") == "| a |\n|---|"
    assert flagship.tables_in("nothing\n") == ""


# --- the whole -------------------------------------------------------------------------------------------------------


def called(*arguments: str) -> int:
    done = subprocess.run([sys.executable, str(SCRIPTS / "flagship.py"), *arguments], capture_output=True, text=True)
    assert done.returncode in (0, 75), done.stderr
    return done.returncode


@pytest.mark.slow
def test_a_comparison_goes_on_after_its_time_was_over_and_is_done_once(smoke: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert called(*smoke, "--minutes", "0.05") == 75 and not (out / "flagship.md").exists()
    assert called(*smoke) == 0
    page = (out / "flagship.md").read_text()
    assert "| trained on | dm:1, IPC 1 | dm:1, IPC 2 |" in page
    assert len(re.findall(r"\| \d+\.\d \| \d+\.\d \|$", page, re.MULTILINE)) == 6  # rows of table A
    assert "![first_images](fixed/first_images.png)" in page and "gencond.cli pretrain --recipe" in page
    assert "| trained on | stored images a class | bits a class | top-1 |" in page and "1,984 images seen" in page
    assert page.count("stream-small, ") == 4 and "![storage_curve](storage/storage_curve.png)" in page
    assert "# storage, " in page and "torch " in page and "name: own:digits" in page
    files = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.suffix != ".log"}
    assert called(*smoke) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.suffix != ".log"} == files
    again = (out / "flagship.log").read_text().splitlines()[-8:]  # of storage there are five
    assert all("done before" in line for line in again)
