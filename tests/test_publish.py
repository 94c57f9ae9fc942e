"""Artefacts on the Hub, against a stand-in that answers its HTTP API on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_recipe
from hub_stand_in import TOKEN, Hub, hub
from huggingface_hub import ModelCard

import gencond
from gencond.common.errors import InputError
from gencond.condensing.run_folder import provenance as provenance_of
from gencond.config import load_recipe
from gencond.data.images import LabeledImages
from gencond.eval.results import GENCOND
from gencond.publish import hub_card, push

NAME = "somebody/digits"


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Hub]:
    with hub() as server:
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was judged."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENCOND_CACHE", str(folder.parent / "cache"))
        gencond.condense("digits", folder, tiny_recipe())
        gencond.evaluate(folder, ipc=[1, 2], num_seeds=1, baselines=["random_real"])
    return folder


def elsewhere(code: str, server: Hub, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, since the Hub's client reads where the Hub is once; `home` is its cache."""
    settings = {
        "HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **settings, **environment}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def fingerprint(path: str | Path) -> str:
    return gencond.load(path).fingerprint


def test_what_is_pushed_comes_back_at_any_revision_and_then_without_a_network(
    stand_in: Hub, run: Path, tmp_path: Path
) -> None:
    pushing = f"from gencond.cli import main; main(['push', {str(run)!r}, {NAME!r}, '--license', 'mit'])"
    (first, *_) = said(elsewhere(pushing, stand_in, tmp_path))
    revision = stand_in.repos[f"models/{NAME}"][-1][0]
    assert first.endswith(f"/{NAME}/commit/{revision}") and not stand_in.private[NAME]
    shipped = Path("checkpoints/digits").resolve()
    said(elsewhere(f"import gencond; gencond.push({str(shipped)!r}, {NAME!r})", stand_in, tmp_path))
    loading = f"import gencond; [print(gencond.load(name).fingerprint) for name in ({NAME!r}, '{NAME}@{revision}')]"
    expected = [fingerprint(shipped), fingerprint(run)]
    assert said(elsewhere(loading, stand_in, tmp_path)) == expected
    assert said(elsewhere(loading, stand_in, tmp_path, HF_HUB_OFFLINE="1")) == expected


def test_the_card_has_metadata_that_the_hub_reads_and_the_measured_scores(
    stand_in: Hub, run: Path, tmp_path: Path
) -> None:
    name = "somebody/judged"
    said(
        elsewhere(
            f"import gencond; gencond.push({str(run)!r}, {name!r}, private=True, license='mit')", stand_in, tmp_path
        )
    )
    files = stand_in.repos[f"models/{name}"][-1][1]
    assert stand_in.private[name] and files["samples.png"].startswith(b"\x89PNG")
    assert set(files) == {
        ".gitattributes", "README.md", "config.json", "diffusion_pytorch_model.safetensors", "samples.png",
    }  # fmt: skip
    card = ModelCard(files["README.md"].decode())
    about = card.data.to_dict()
    assert about["license"] == "mit" and about["library_name"] == "gencond" and "dataset-distillation" in about["tags"]
    (model,) = about["model-index"]
    (result,) = model["results"]
    metrics = {one["name"]: one["value"] for one in result["metrics"]}
    report = gencond.evaluate(run, ipc=[1, 2], num_seeds=1, baselines=["random_real"])  # all is known already
    measured = [row for row in report.rows if row.images == GENCOND]
    assert sorted(metrics.values()) == sorted(round(row.top1.mean, 4) for row in measured) and len(measured) == 2
    assert result["dataset"]["name"] == "digits" and result["task"]["type"] == "image-classification"
    assert f'gencond.load("{name}")' in card.text and "## Results" in card.text and "samples.png" in card.text


@pytest.mark.parametrize(
    ("source", "expected", "called"),
    [
        ("cifar10", ["uoft-cs/cifar10"], "cifar10"),
        ("hf:owner/set", ["owner/set"], "hf:owner/set"),
        ("hf:owner/set:fine@main", ["owner/set"], "hf:owner/set:fine@main"),
        ("/somewhere/cifar10", None, "cifar10"),
    ],
)
def test_the_card_names_a_set_of_the_hub_and_no_folder_that_is_called_like_one(
    source: str, expected: list[str] | None, called: str, few_digits: LabeledImages
) -> None:
    made_by = load_recipe("dm:digits", source=source)
    provenance = provenance_of(made_by, few_digits)
    assert provenance["data"]["source"] == provenance["recipe"]["data"]["source"] == called
    condensed = gencond.CondensedPixels(few_digits.class_names, 1, 8, 1, provenance=provenance)
    assert hub_card(condensed, NAME, None, None).data.to_dict().get("datasets") == expected


def test_a_report_of_another_artefact_is_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gencond.load("checkpoints/digits").save_pretrained(tmp_path / "other" / "condensed")
    (tmp_path / "other" / "report.json").write_bytes((run / "report.json").read_bytes())
    kept: list[str] = []
    monkeypatch.setattr(
        "gencond.publish._uploaded",
        lambda folder, name, private: kept.append((folder / "README.md").read_text()) or "url",
    )
    push(tmp_path / "other", NAME)
    assert "report.json is of another artefact and is left out" in caplog.text and "## Results" not in kept[0]


def test_what_cannot_be_pushed_is_a_line(stand_in: Hub, run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'digits' names no repository of the Hub: expected owner/name"):
        push(run, "digits")
    with pytest.raises(InputError, match="no folder .*nothing: expected a run folder or an artefact folder"):
        push(tmp_path / "nothing", NAME)
    pushing = f"from gencond.cli import main; main(['push', {str(run)!r}, 'somebody/new'])"
    for environment, why in (
        ({"HF_TOKEN": "hf_wrong"}, "somebody/new: the Hub answers 401"),
        ({"HF_TOKEN": ""}, "`hf auth login`, or set HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "1"}, "somebody/new: HF_HUB_OFFLINE is set, so nothing is pushed"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "somebody/new: the Hub is not reached (ConnectError"),
    ):
        done = elsewhere(pushing, stand_in, tmp_path, **environment)
        assert done.returncode == 2 and why in done.stderr.splitlines()[-1], done.stderr
    assert "models/somebody/new" not in stand_in.repos


def test_a_revision_that_is_not_there_is_a_line(stand_in: Hub, run: Path, tmp_path: Path) -> None:
    stand_in.commit("models/somebody/empty", {"README.md": b""})
    code = "import gencond\ntry: gencond.load('somebody/empty@v1')\nexcept gencond.InputError as error: print(error)"
    (line,) = said(elsewhere(code, stand_in, tmp_path))
    assert line.startswith("somebody/empty@v1 cannot be loaded as a condensed dataset") or "v1 is not a valid" in line
