"""Runs DD-Ranking. It is executed by a Python that has `ddranking` and not gencond, of which it imports nothing.

In its working folder: `request.json` (version; dataset: its name of the real images; arguments of its hard-label
scorer; syn_lr) and `arrays.npz` (images: normalised floats [n, 3, 32, 32], labels [n]; x_train, x_test: bytes
[n, 3, 32, 32], y_train, y_test; names). It leaves `result.json`: a list each of `hlr` and `ior`, per cent, and of
`accuracies` and `learning_rates` (condensed, whole set, random real), one entry an evaluation.
"""

import json
import pickle
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

CIFAR_FILES = {  # torchvision's: folder, training files, test files, file of names, key of labels, key of names
    "CIFAR10": (
        "cifar-10-batches-py", [f"data_batch_{number}" for number in range(1, 6)], ["test_batch"], "batches.meta",
        "labels", "label_names",
    ),
    "CIFAR100": ("cifar-100-python", ["train"], ["test"], "meta", "fine_labels", "fine_label_names"),
}  # fmt: skip


def write_cifar(root, dataset, arrays):
    """Real images as torchvision's CIFAR10 and CIFAR100 read them, pickled by the numpy that will unpickle them."""
    folder, train_files, test_files, meta, label_key, names_key = CIFAR_FILES[dataset]
    (root / folder).mkdir(parents=True)
    for split, files in (("train", train_files), ("test", test_files)):
        rows = np.array_split(np.arange(len(arrays[f"y_{split}"])), len(files))
        for file, chosen in zip(files, rows, strict=True):
            flat = np.ascontiguousarray(arrays[f"x_{split}"][chosen].reshape(len(chosen), -1))
            content = {"data": flat, label_key: arrays[f"y_{split}"][chosen].tolist()}
            (root / folder / file).write_bytes(pickle.dumps(content, protocol=2))
    (root / folder / meta).write_bytes(pickle.dumps({names_key: arrays["names"].tolist()}, protocol=2))


def without_checksums(known):
    """torchvision knows the files of the published sets by their checksums, which ours do not have."""
    known.train_list = [[file, None] for file, _ in known.train_list]
    known.test_list = [[file, None] for file, _ in known.test_list]
    known.meta = dict(known.meta, md5=None)


def main():
    request = json.loads(Path("request.json").read_text(encoding="utf-8"))
    found = metadata.version("ddranking")
    if found != request["version"]:
        sys.exit(f"ddranking {found} is installed, {request['version']} is what was tried")
    import torch
    from ddranking.metrics import hard_label  # pyright: ignore[reportMissingImports]  # of the environment that runs it
    from torchvision import datasets

    with np.load("arrays.npz") as file:
        arrays = dict(file)
    write_cifar(Path("real"), request["dataset"], arrays)
    without_checksums(getattr(datasets, request["dataset"]))
    accuracies, learning_rates, scores = [], [], {}
    hard_label.save_results = lambda results, path: scores.update(results)  # its own raises: lists of unequal lengths

    class Scorer(hard_label.LabelRobustScoreHard):
        def _compute_hard_label_metrics_helper(self, **arguments):
            accuracy, learning_rate = super()._compute_hard_label_metrics_helper(**arguments)
            accuracies.append(float(accuracy))
            learning_rates.append(learning_rate)
            return accuracy, learning_rate

    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = Scorer(dataset=request["dataset"], real_data_path="real", device=device, **request["arguments"])
    scorer.compute_metrics(
        image_tensor=torch.from_numpy(arrays["images"]),
        hard_labels=torch.from_numpy(arrays["labels"]),
        syn_lr=request["syn_lr"],
    )
    result = {
        "hlr": [float(value) for value in scores["hard_label_recovery"]],
        "ior": [float(value) for value in scores["improvement_over_random"]],
        "accuracies": [accuracies[first : first + 3] for first in range(0, len(accuracies), 3)],
        "learning_rates": [learning_rates[first : first + 3] for first in range(0, len(accuracies), 3)],
        "device": device,
        "versions": {name: metadata.version(name) for name in ("ddranking", "torch", "numpy")},
    }
    Path("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
