#!/usr/bin/env bash
# `datasets` (Hugging Face) 5.2.0: a WebDataset shard with a text file beside it is read as a set of lines of text.
#
# A folder that holds one shard, 000000.tar with png + cls, and a classes.txt with the names of its three classes gives
# three rows of one column, `text`, and no image: which reader is taken is decided by the file extension that most files
# have, and one .txt is as many as one .tar. With three shards beside the same file, the three classes are images again.
#
# A README.md with `configs: data_files: "*.tar"` mends it. Printed below: what is found with one shard, with three, and
# with one and that README.md. Exits with 1 when the behaviour is another one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet datasets==5.2.0 pillow==12.0.0
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" HF_DATASETS_DISABLE_PROGRESS_BARS=1
cat > look.py <<'PY'
import io
import tarfile
from pathlib import Path

import datasets
from PIL import Image

README = '---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "*.tar"\n---\n'


def found(name, num_shards, readme=None):
    root = Path(name)
    root.mkdir()
    (root / "classes.txt").write_text("ant\nbee\ncat\n")
    for shard in range(num_shards):
        with tarfile.open(root / f"{shard:06d}.tar", "w") as tar:
            for label in range(3):
                png = io.BytesIO()
                Image.new("RGB", (8, 8), (80 * label, 0, 0)).save(png, "png")
                for suffix, content in (("png", png.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{3 * shard + label:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    if readme:
        (root / "README.md").write_text(readme)
    rows = datasets.load_dataset(str(root))["train"]
    return len(rows), sorted(rows.features)


shards = ["__key__", "__url__", "cls", "png"]
for what, arguments, expected in (
    ("one shard", (1,), (3, ["text"])),
    ("three shards", (3,), (9, shards)),
    ("one shard and README.md", (1, README), (3, shards)),
):
    seen = found(what, *arguments)
    print(f"datasets {datasets.__version__}: {what} and classes.txt: {seen}")
    assert seen == expected, f"another behaviour: {seen}, not {expected}"
PY
env/bin/python look.py
