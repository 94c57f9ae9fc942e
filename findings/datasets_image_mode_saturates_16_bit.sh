#!/usr/bin/env bash
# `datasets` (Hugging Face) 5.2.0 with pillow 13.0.0: an image column that is asked for as RGB or grey makes 16-bit PNGs
# white, without a warning.
#
# `Image(mode="RGB")` (or "L") of a column is documented as converting images to that mode. A 16-bit grey PNG, as
# microscopes, X-ray sets and depth cameras write them, is opened as `I;16`; converting cuts every value above 255 to 255
# instead of scaling 0..65535 to 0..255. A ramp of 16 values from 0 to 65535 becomes one black pixel and 15 white ones, and
# 12-bit data (0..4095) keeps its lowest sixteenth. A classifier trained on such a column sees white squares.
#
# Expected before it was run: the same, since the conversion is Pillow's; that nothing is said, not even for a whole set,
# is what surprised. Without a mode the image stays `I;16` and nothing is lost.
#
# Printed below: the ramp as stored, as RGB, as L and without a mode. Exits with 1 when the behaviour is another one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_DATASETS_DISABLE_PROGRESS_BARS=1
cat > look.py <<'PY'
import warnings
from pathlib import Path

import datasets
import numpy as np
import PIL
from PIL import Image

warnings.simplefilter("error")
ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
for name in ("healthy", "ill"):
    Path("scans", name).mkdir(parents=True)
    Image.fromarray(ramp).save(f"scans/{name}/0.png")
scans = datasets.load_dataset("imagefolder", data_dir="scans", split="train")
print(f"datasets {datasets.__version__}, pillow {PIL.__version__}\n  stored {ramp.flatten().tolist()}")
seen = {}
for mode in ("RGB", "L", None):
    image = scans.cast_column("image", datasets.Image(mode=mode))[0]["image"]
    values = np.asarray(image)
    seen[mode] = (values[..., 0] if values.ndim == 3 else values).flatten().tolist()
    print(f"  mode={mode}: {image.mode} {seen[mode]}")
white = [0] + [255] * 15
assert seen["RGB"] == seen["L"] == white, "another behaviour: values are no longer cut at 255"
assert seen[None] == ramp.flatten().tolist(), "another behaviour without a mode"
PY
env/bin/python look.py
