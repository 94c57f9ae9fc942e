"""Export samples as parquet and read them with Hugging Face `datasets`; condense what `datasets` saved.

pip install 'gencond[hf,parquet]'
python examples/with_datasets.py [OUT]
"""

import sys
from pathlib import Path

import datasets

import gencond

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/with_datasets")
condensed = gencond.load(Path(__file__).parent.parent / "checkpoints" / "digits")
condensed.export(out / "parquet", ipc=20, format="parquet")

samples = datasets.load_dataset(str(out / "parquet"), split="train", cache_dir=str(out / "cache"))
print(samples.features, f"{len(samples)} rows, the first is of class {samples[0]['label']}")

# Any table with a column of images and one of classes can be condensed again: saved, parquet, or a set of the Hub.
samples.train_test_split(0.2, seed=0).save_to_disk(str(out / "saved"))
again = gencond.condense(out / "saved", out / "run", "dm:digits", overrides=["pixels.ipc=1", "condense.num_steps=20"])
print(f"{again.num_classes} classes, condensed to one image each: {out / 'run'}")
