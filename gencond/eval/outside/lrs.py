"""DD-Ranking's label-robust score of hard labels: how near a set comes to the whole set, how far above random images.

The package runs in an environment of its own, on the same real images that we judge with. Source: DD-Ranking:
Rethinking the Evaluation of Dataset Distillation (2505.13300).
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gencond.common.errors import InputError
from gencond.common.files import read_json
from gencond.common.progress import progress
from gencond.common.ranges import to_signed, to_unit
from gencond.data.images import LabeledImages
from gencond.eval.outside import runner
from gencond.eval.outside.environment import made_python, named_python, run_logged
from gencond.eval.records import Scores, read_record
from gencond.generator.exporting import ddranking_set, normalised_for_ddranking

VERSION = "0.2.0"
REQUIREMENTS = (f"ddranking=={VERSION}", "numpy<2", "torch", "torchvision")
LAST_MINOR = 12  # of Python 3, that there are wheels of numpy below 2 for
NETWORKS = ("ConvNet-3", "ConvNet-3-BN")  # it has settings for the whole set with these only
TEST_EVERY = 10  # epochs; it looks at no other
SEARCHED_RATES = 5
WEIGHT = 0.5  # of IOR in the score, as on the leaderboard
AUGMENTATION = {
    "flip": 0.5, "rotate": 15.0, "scale": 1.2, "crop": 0.125, "cutout": 0.5, "saturation": 2.0, "brightness": 1.0,
    "contrast": 0.5,
}  # fmt: skip
MEASURED = ("condensed", "whole_set", "random_real", "hlr", "ior", "lrs")
PATCHES = (
    "its saving of results is left out, as it raises after the last training (lists of unequal lengths)",
    "torchvision's checksums of the real images are left out, as the files are written by gencond",
    "the score is computed by gencond from fractions, as the paper has it; the package puts per cent into the formula",
)


@dataclass(frozen=True)
class Settings:
    """How DD-Ranking trains. What is not here is what its leaderboard used for DM: DSA, SGD, batches of 256, a tenth of
    the learning rate after half of the epochs.

    Args:
        epochs: of every training, the whole set's too.
        network: one of NETWORKS.
        num_eval: evaluations, each with random real images of its own.
        learning_rate: for the condensed set; None searches it among five on the test set, as is always done for
            random real images.
    Raises:
        InputError: settings that it fails with.
    """

    epochs: int = 300
    network: str = NETWORKS[0]
    num_eval: int = 5
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < TEST_EVERY:
            raise InputError(f"DD-Ranking tests every {TEST_EVERY} epochs: {self.epochs} are too few")
        if self.network not in NETWORKS:
            raise InputError(f"DD-Ranking cannot judge by {self.network!r} here; known: {', '.join(NETWORKS)}")
        if self.num_eval < 1:
            raise InputError("--seeds must be at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputError(f"--judge-lr must be above 0, not {self.learning_rate}")

    @property
    def num_trainings(self) -> int:
        """Condensed, whole set and random real images, with the searches."""
        return self.num_eval * ((SEARCHED_RATES if self.learning_rate is None else 1) + 1 + SEARCHED_RATES)

    @property
    def words(self) -> str:
        """All of it in one line."""
        rate = self.learning_rate or "searched"
        return ", ".join(
            [f"learning rate of the condensed set {rate}"]
            + [f"{name.replace('_', ' ')} {value}" for name, value in self.arguments.items()]
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `LabelRobustScoreHard`, beside the IPC."""
        return {
            "model_name": self.network,
            "num_epochs": self.epochs,
            "num_eval": self.num_eval,
            "data_aug_func": "dsa",
            "aug_params": AUGMENTATION,
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "lr_scheduler": "step",
            "step_size": self.epochs // 2,
            "real_batch_size": 256,
            "syn_batch_size": 256,
            "im_size": [32, 32],
            "num_workers": 0,  # random real images lie on the GPU, where workers cannot reach them
            "eval_full_data": True,  # of CIFAR it has no accuracies of its own
        }


@dataclass(frozen=True, kw_only=True)
class OutsideScores:
    """What DD-Ranking said of a condensed set at one IPC; an entry of `outside` in report.json.

    Args:
        judge: its name and version.
        ipc: stored images of each class, and random real ones.
        network, epochs, num_eval, learning_rate: see `Settings`.
        learning_rates: that it chose, for each evaluation.
        condensed, whole_set, random_real: accuracies, fractions.
        hlr, ior, lrs: see `label_robust_score`.
        dataset: that the real images are passed off as.
        num_images: real ones, of `train` and `test`.
        images_per_slot: that each stored image is cut into.
        settings: all of them, in words.
        patches: what is changed in the judge.
        device, versions: where and by what it ran.
        seconds: it took.
        command: that asked for it.
    """

    judge: str
    ipc: int
    network: str
    epochs: int
    num_eval: int
    learning_rate: float | None
    learning_rates: Sequence
    condensed: Scores
    whole_set: Scores
    random_real: Scores
    hlr: Scores
    ior: Scores
    lrs: Scores
    dataset: str
    num_images: Mapping[str, int]
    images_per_slot: int
    settings: str
    patches: tuple[str, ...]
    device: str
    versions: Mapping[str, str]
    seconds: float
    command: str = ""

    @property
    def asked(self) -> tuple:
        """What the judge was asked; the later answer takes the place of the earlier one."""
        return self.network, self.epochs, self.learning_rate or 0.0, self.ipc

    def to_json(self) -> dict[str, Any]:
        """An entry of `outside` in report.json."""
        return {
            name: {"mean": value["mean"], "std": value["std"], "each": value["each"]} if name in MEASURED else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "OutsideScores":
        """What `to_json` wrote."""

        def scores(told: Mapping[str, Any]) -> Scores:
            return read_record(Scores, told, each=tuple)

        return read_record(cls, content, patches=tuple, **dict.fromkeys(MEASURED, scores))


def label_robust_score(hlr: float, ior: float, weight: float = WEIGHT) -> float:
    """DD-Ranking's score in [0, 1], higher is better; (1 - e^-1) / (e - e^-1) = 0.27 where HLR and IOR are both 0.

        LRS = (e^a - e^-1) / (e - e^-1),   a = weight * IOR - (1 - weight) * HLR

    Args:
        hlr: hard-label recovery, accuracy of the whole set less that of the condensed one, a fraction.
        ior: improvement over random, accuracy of the condensed set less that of random real images, a fraction.
    Source: 2505.13300, section on the label-robust score.
    """
    exponent = weight * ior - (1 - weight) * hlr
    return (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))


def require_known(train: LabeledImages, ipcs: Sequence[int]) -> None:
    """Raises InputError for real images that DD-Ranking cannot take, or that hold no `ipcs` random ones of a class."""
    ddranking_set(train.num_classes, train.channels, train.image_size)
    smallest = int(train.counts.min())
    if max(ipcs) > smallest:
        name = train.class_names[int(train.counts.argmin())]
        raise InputError(f"class {name!r} has only {smallest} training images: lower --ipc {max(ipcs)}")


def ddranking_python(named: str | None) -> str:
    """The Python that has DD-Ranking: the user's, or one made in the cache. Raises InputError."""
    return named_python(named) if named else made_python(f"ddranking-{VERSION}", REQUIREMENTS, LAST_MINOR)


def score_by_ddranking(
    condensed: LabeledImages,
    ipc: int,
    train: LabeledImages,
    test: LabeledImages,
    settings: Settings,
    python: str,
    log: Path,
    command: str = "",
) -> OutsideScores:
    """HLR, IOR and LRS with the accuracies they come from, all fractions.

    Args:
        condensed: class-major; more than `ipc` of each class where stored images are cut.
        ipc: stored images of each class, and random real ones.
        python: has DD-Ranking, see `ddranking_python`.
        log: what it prints, kept.
        command: that asked for it, for the report.
    Raises:
        InputError: DD-Ranking failed; one line with its last words.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    dataset = ddranking_set(train.num_classes, train.channels, train.image_size)
    request = {
        "version": VERSION,
        "dataset": dataset,
        "arguments": settings.arguments | {"ipc": ipc},
        "syn_lr": settings.learning_rate,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        arrays = _arrays(condensed, train, test)
        np.savez(folder / "arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]  # none is its `allow_pickle`
        shutil.copy(runner.__file__, folder / "run.py")  # alone, so that no file beside it is taken for a package
        tested = settings.epochs // TEST_EVERY * TEST_EVERY
        with progress(
            description=f"DD-Ranking, IPC {ipc}", total=settings.num_trainings * tested, unit="epoch"
        ) as bar:  # fmt: skip
            run_logged(
                f"DD-Ranking, by {python},",
                [python, "run.py"],
                log,
                folder,
                lambda line: bar.update(TEST_EVERY * line.startswith("Test Acc@1")),
            )
        result = read_json(folder / "result.json")
    hlr, ior = ([value / 100 for value in result[name]] for name in ("hlr", "ior"))
    scores = [label_robust_score(*pair) for pair in zip(hlr, ior, strict=True)]
    accuracies = {
        name: [values[place] / 100 for values in result["accuracies"]]
        for place, name in enumerate(("condensed", "whole_set", "random_real"))
    }
    measured = accuracies | {"hlr": hlr, "ior": ior, "lrs": scores}
    return OutsideScores(
        judge=f"DD-Ranking {VERSION}",
        ipc=ipc,
        network=settings.network,
        epochs=settings.epochs,
        num_eval=settings.num_eval,
        learning_rate=settings.learning_rate,
        learning_rates=result["learning_rates"],
        **{name: Scores.of(own) for name, own in measured.items()},
        dataset=dataset,
        num_images={"train": len(train), "test": len(test)},
        images_per_slot=len(condensed) // (ipc * train.num_classes),
        settings=settings.words,
        patches=PATCHES,
        device=result["device"],
        versions=result["versions"],
        seconds=round(time.monotonic() - started, 1),
        command=command,
    )


def _arrays(condensed: LabeledImages, train: LabeledImages, test: LabeledImages) -> dict[str, np.ndarray]:
    """What the runner reads, all of it in memory: `[:]` also reads a set that is kept in a file."""
    images = normalised_for_ddranking(to_unit(to_signed(condensed.images[:])))
    return {
        "images": images.float().numpy(),
        "labels": condensed.labels.numpy(),
        "x_train": train.images[:].numpy(),
        "y_train": train.labels.numpy(),
        "x_test": test.images[:].numpy(),
        "y_test": test.labels.numpy(),
        "names": np.array(train.class_names),
    }
