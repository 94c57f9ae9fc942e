"""Train a timm classifier on fresh samples of an artefact, no image seen twice.

    python examples/timm_on_a_stream.py [STEPS]

The stream never ends: the first samples of a class are its learned codes, these come after them. It is an
IterableDataset of whole batches, so a DataLoader takes it with batch_size=None and any number of workers.
"""

import sys
from pathlib import Path

import timm
import torch
from torch.utils.data import DataLoader

import gencond
from gencond.data.load import load_real

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
condensed = gencond.load(Path(__file__).parent.parent / "checkpoints" / "digits")
batches = iter(DataLoader(condensed.stream(batch_size=128), batch_size=None))
network = timm.create_model("resnet10t", in_chans=condensed.channels, num_classes=condensed.num_classes)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)

for step in range(steps):
    images, labels = next(batches)  # float [128, 1, 8, 8] in [0, 1]
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if (step + 1) % max(1, steps // 5) == 0:
        print(f"step {step + 1}: loss {loss.item():.2f}")

_, test = load_real("digits", test_fraction=0.3333)  # as the artefact's recipe held them out
network.eval()
with torch.no_grad():
    right = network(test.images / 255).argmax(1) == test.labels
print(f"{100 * right.float().mean():.1f} % of {len(test)} real test images right")
