"""From a folder of images, one folder a class, to a generator, its samples and a report.

    python examples/own_folder.py [FOLDER] [OUT]

Without a FOLDER the digits that ship with scikit-learn are written as one. The default method is planned for the images
and the minutes; two minutes are few, so the samples are poor: give your own images half an hour.
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import gencond

out = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/own_folder")
if len(sys.argv) > 1 and sys.argv[1]:
    folder = Path(sys.argv[1])
else:
    folder, digits = out / "photographs", load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).save(folder / str(label) / f"{number}.png")

# Digits mean something else when they are flipped, so that operation is left out.
condensed = gencond.condense(folder, out / "run", minutes=2, overrides=["data.augmentation=crop_scale_rotate"])
report = gencond.evaluate(out / "run", ipc=10, protocol="dm:50", num_seeds=1, baselines=["random_real", "kmeans_real"])
condensed.export(out / "samples", ipc=10)
for row in report.rows:
    print(f"{row.images}: {100 * row.top1.mean:.1f} % of the test images right")
print(f"samples in {out / 'samples'}, report in {out / 'run' / 'report.html'}")
