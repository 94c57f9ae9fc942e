import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "1")  # which the Hub's library reads once, below

import pytest
import torch

from gencond.condensing.step import CondenseStep
from gencond.config import Recipe, load_recipe
from gencond.data.images import LabeledImages
from gencond.data.load import load_real
from gencond.data.select import random_subset

TINY = (
    "generator.width=8", "generator.chunk_dim=4", "generator.class_embed_dim=8", "pretrain.num_steps=4",
    "pretrain.batch_size=8", "pretrain.discriminator_width=8", "features.width=8", "features.snapshot_steps=[1,3]",
    "features.num_trajectories=1", "features.num_random=1", "features.batch_size=16", "real.num_passes=1",
    "real.num_frequencies=12", "codes.num_slots=4", "codes.representative_sizes=[1,4]", "codes.encode_steps=4",
    "codes.encode_batch_size=16", "condense.num_steps=6", "condense.prefix_lengths=[1,2]",
    "condense.stream_length=2", "condense.representative_batch_size=8", "save_every_steps=2",
    "evaluate.ipc=[1,2]", "evaluate.networks=[convnet2w8]", "evaluate.num_seeds=2",
    "evaluate.protocol='dm:10'",
)  # fmt: skip


def pytest_collection_finish() -> None:
    """Keep what imports made out of every later search for garbage: accelerate searches at each stage of a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Statistics of one test are never another's."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GENCOND_CACHE", str(path))
    return path


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> tuple[LabeledImages, LabeledImages]:
    return load_real("digits", test_fraction=0.3333)


@pytest.fixture(scope="session")
def few_digits(digits: tuple[LabeledImages, LabeledImages]) -> LabeledImages:
    """Twelve real images of each digit."""
    return random_subset(digits[0], 12, seed=0)


def tiny_recipe(*overrides: str) -> Recipe:
    """The demo at a size that runs in a second: every stage, a few steps each."""
    return load_recipe("demo", [*TINY, *overrides])


def whole(step: CondenseStep) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(total, parts) of all chunks of a step, with gradient."""
    totals, parts = zip(*map(step.loss, step.chunks), strict=True)
    return sum(totals), {name: sum(one[name] for one in parts) for name in parts[0]}
