#!/usr/bin/env bash
# `datasets` (Hugging Face) 5.2.0: an image folder with a class called `train`, `test_tube` or `bullet_train` loses
# images and labels, without a warning.
#
# A folder with one folder of images per class is what `load_dataset(folder)` documents for image classification. With ten
# classes of three images, one of them called `train`, it returns 3 images with no label column. With `bullet_train`,
# `test_tube` and `vase` it returns splits `train` (3) and `test` (3), and `vase` is gone. Names of folders are searched
# for split keywords between any of "-._ 0-9", and as soon as one is found only folders with a keyword are read.
#
# That folders called train and test are splits is documented. huggingface/datasets#7201 (open) has the same of a file
# train.png.
#
# A README.md with `configs: data_files: "**/*.png"` mends it. Printed below: what is found, then the same with README.md.
# Exits with 1 when the behaviour is another one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet datasets==5.2.0 pillow==12.0.0
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_DATASETS_DISABLE_PROGRESS_BARS=1
cat > look.py <<'PY'
import datasets
from pathlib import Path
from PIL import Image

README = '---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "**/*.png"\n---\n'


def found(name, classes, readme=None):
    root = Path(name)
    for number, one in enumerate(classes):
        (root / one).mkdir(parents=True)
        for image in range(3):
            Image.new("RGB", (8, 8), (20 * number, 80 * image, 0)).save(root / one / f"{image}.png")
    if readme:
        (root / "README.md").write_text(readme)
    loaded = datasets.load_dataset(str(root))
    return {split: (len(rows), sorted(rows.features)) for split, rows in loaded.items()}


cifar = ["apple", "bee", "castle", "dolphin", "elm", "fox", "girl", "house", "train", "whale"]
words = ["bullet_train", "test_tube", "vase"]
for classes, expected in (
    (cifar, {"train": (3, ["image"])}),
    (words, {"train": (3, ["image", "label"]), "test": (3, ["image", "label"])}),
):
    alone, mended = found(f"{classes[0]}_alone", classes), found(f"{classes[0]}_with_readme", classes, README)
    print(f"datasets {datasets.__version__}: {3 * len(classes)} images of {classes}\n  found {alone}\n  with README.md {mended}")
    assert mended == {"train": (3 * len(classes), ["image", "label"])}
    assert alone == expected, f"another behaviour: {alone}, not {expected}"
PY
env/bin/python look.py
