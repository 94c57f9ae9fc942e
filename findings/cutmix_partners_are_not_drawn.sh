#!/usr/bin/env bash
# torchvision 0.29.1 and timm 1.0.31: CutMix and MixUp do not draw an image's partner. In batches with one class after the
# other torchvision mixes hardly any classes, and timm the same few pairs always.
#
# Guessed before: partners are a permutation drawn for each batch, as in the papers (1710.09412, 1905.04899), so in a batch
# of ten classes of ten images nine of ten images get a partner of another class, and in time every class meets every
# other. Found: torchvision's `v2.CutMix` and `v2.MixUp` take the image before, so 10 of 100 images are mixed with another
# class, always a neighbouring one (10 of the 45 pairs of classes), and 90 keep a label of one class. `timm.data.Mixup`
# takes the batch from behind: all 100 are mixed with another class, and only 5 of the 45 pairs ever meet; with an odd
# number of classes the middle one would keep its labels.
#
# Whoever shuffles does not notice. Condensed sets, samplers of m images a class and folders read in order give such
# batches; nothing warns. Shuffling the batch mends it: 45 pairs, and about 90 of 100 images.
# Exits with 1 when the behaviour is another one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet --no-cache-dir torch==2.14.1 torchvision==0.29.1 timm==1.0.31
cat > look.py <<'PY'
import numpy as np
import timm
import torch
import torchvision
from timm.data import Mixup
from torchvision.transforms import v2

CLASSES, EACH, BATCHES = 10, 10, 200
labels = torch.arange(CLASSES).repeat_interleave(EACH)


def met(mix, shuffled):
    """(images of a batch that are mixed with another class, on average; pairs of classes that ever meet)"""
    torch.manual_seed(0)
    np.random.seed(0)
    mixed, pairs = [], set()
    for _ in range(BATCHES):
        own = labels[torch.randperm(len(labels))] if shuffled else labels
        images = own.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).float().clone()
        targets = mix(images, own)[1]
        two = [tuple(row.nonzero().flatten().tolist()) for row in targets if (row > 0).sum() == 2]
        if not two and targets.max() == 1:  # the share that was drawn left the images as they were
            continue
        mixed.append(len(two))
        pairs.update(two)
    return round(float(np.mean(mixed))), len(pairs)


ways = {
    "torchvision v2.CutMix": v2.CutMix(num_classes=CLASSES),
    "torchvision v2.MixUp": v2.MixUp(num_classes=CLASSES),
    "timm Mixup(cutmix_alpha=1)": Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=CLASSES),
    "timm Mixup(mixup_alpha=1)": Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, label_smoothing=0.0, num_classes=CLASSES),
}
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}")
print(f"{CLASSES} classes of {EACH} images: images mixed with another class, pairs of classes that meet (of 45)")
for name, mix in ways.items():
    in_order, shuffled = met(mix, False), met(mix, True)
    print(f"{name:<28} one class after the other {in_order}, shuffled {shuffled}")
    expected = (10, 10) if name.startswith("torchvision") else (100, 5)
    assert in_order == expected, f"another behaviour: {in_order}, not {expected}"
    assert 88 <= shuffled[0] <= 94 and shuffled[1] == 45, shuffled
PY
env/bin/python look.py
