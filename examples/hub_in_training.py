"""A training script that takes its images from torch.hub, on one process or many.

    accelerate launch examples/hub_in_training.py [STEPS]
    torch.hub.load("OWNER/gencond", "condensed", "digits")      # the same from GitHub, without a clone

Each process draws a share of the stream of its own, so nothing is trained on twice.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
accelerator = Accelerator()
repository = str(Path(__file__).resolve().parent.parent)
condensed = torch.hub.load(repository, "condensed", "digits", source="local", device=accelerator.device)
batches = iter(condensed.stream(batch_size=64))

network = torch.nn.Sequential(
    torch.nn.Conv2d(condensed.channels, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    torch.nn.Linear(64, condensed.num_classes),
)  # fmt: skip
network, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), lr=3e-3))
for step in range(steps):
    images, labels = next(batches)
    logits = network(images.to(accelerator.device))
    loss = torch.nn.functional.cross_entropy(logits, labels.to(accelerator.device))
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    if (step + 1) % max(1, steps // 5) == 0:
        accelerator.print(f"step {step + 1}: loss {loss.item():.2f} on process 0 of {accelerator.num_processes}")

images, labels = condensed.sample(ipc=5)  # learned codes: the stream begins after them
right = network(images.to(accelerator.device)).argmax(1) == labels.to(accelerator.device)
accelerator.print(f"{100 * right.float().mean():.1f} % of {len(labels)} samples that it never saw right")
accelerator.end_training()
