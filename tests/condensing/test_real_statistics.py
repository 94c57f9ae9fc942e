import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gencond.common.ranges import to_signed
from gencond.condensing.real_statistics import (
    RealStatistics,
    _batches,
    cached_statistics,
    images_at_once,
    real_statistics,
    summing_device,
)
from gencond.data.augment import Augmentation
from gencond.data.images import LabeledImages
from gencond.losses.kernels import fourier_embedding
from gencond.networks.convnet import ConvNet
from gencond.networks.extractor import Embedding, Extractor


@pytest.fixture
def extractors(few_digits: LabeledImages) -> list[Extractor]:
    return [Extractor(ConvNet(1, 10, 8, width=4, depth=2), *few_digits.mean_std) for _ in range(2)]


def compute(data: LabeledImages, extractors: list[Extractor], batch_size: int = 7, passes: int = 1) -> RealStatistics:
    return real_statistics(
        data, extractors, augmentation=Augmentation("none", 8), num_passes=passes, num_frequencies=12, seed=0,
        batch_size=batch_size,
    )  # fmt: skip


def cached_twice(data: LabeledImages, cache: Path) -> list[float]:
    """Of one network, as numbers; from the cache where they are in it."""
    torch.manual_seed(0)
    statistics = cached_statistics(
        data, [Extractor(ConvNet(1, 10, 8, width=4, depth=2), *data.mean_std)], "pool", cache,
        augmentation=Augmentation("crop", 8), num_passes=1, num_frequencies=12, seed=0,
    )  # fmt: skip
    return torch.cat([statistics.mean.flatten(), statistics.embedding.flatten(), statistics.gap]).tolist()


def test_they_match_a_loop_over_classes_and_images(few_digits: LabeledImages, extractors: list[Extractor]) -> None:
    statistics = compute(few_digits, extractors)
    for k, extractor in enumerate(extractors):
        means = []
        for label in range(10):
            images = to_signed(few_digits.images[few_digits.labels == label])
            features = torch.cat([extractor(image[None]) for image in images])
            means.append(features.mean(0))
            torch.testing.assert_close(statistics.mean[k, label], means[-1], atol=1e-5, rtol=1e-4)
            embedded = fourier_embedding(features, statistics.frequencies[k]).mean(0)
            torch.testing.assert_close(statistics.embedding[k, label], embedded, atol=1e-5, rtol=1e-4)
        gaps = [(means[i] - means[j]).square().sum() for i in range(10) for j in range(i)]
        torch.testing.assert_close(statistics.gap[k], torch.stack(gaps).mean(), atol=1e-4, rtol=1e-3)
    images = to_signed(few_digits.images[few_digits.labels == 3])
    torch.testing.assert_close(statistics.contrast[3], images.flatten(2).std(2, unbiased=False).mean(0))
    thumbnails = images.view(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(statistics.pooled[3], thumbnails.mean(0))


class DeviceWithoutFloat64(TorchDispatchMode):
    """Takes `meta` for such a device: float64 on it is refused, and what is copied from it arrives as zeros."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        options = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and options.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=options.get("dtype") or args[0].dtype)
        made = func(*args, **options)
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype == torch.float64:
                raise TypeError("this device has no float64")
        return made


def test_a_device_without_float64_embeds_and_the_cpu_adds_up(
    few_digits: LabeledImages, extractors: list[Extractor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert summing_device(torch.device("mps")) == torch.device("cpu")
    assert summing_device(torch.device("cuda")) == torch.device("cuda")
    expected = compute(few_digits, extractors)
    monkeypatch.setattr(
        "gencond.networks.extractor.Embedding._autocast", lambda *args: nullcontext()
    )  # knows no such device
    for extractor in extractors:
        extractor.to("meta")
    with DeviceWithoutFloat64():
        with pytest.raises(TypeError, match="no float64"):
            torch.zeros(1, device="meta").double()
        monkeypatch.setattr("gencond.condensing.real_statistics.WITHOUT_FLOAT64", ("meta",))
        found = compute(few_digits, extractors)
    for name, tensor in vars(found).items():
        assert tensor.device.type == "cpu" and tensor.dtype == torch.float32, name
        assert tensor.shape == getattr(expected, name).shape


def test_the_batch_size_of_the_pass_does_not_matter(few_digits: LabeledImages, extractors: list[Extractor]) -> None:
    one, other = compute(few_digits, extractors, batch_size=7), compute(few_digits, extractors, batch_size=120)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.embedding, other.embedding)


def test_the_order_of_the_images_does_not_matter(few_digits: LabeledImages, extractors: list[Extractor]) -> None:
    shuffled = few_digits.subset(torch.randperm(len(few_digits)))
    torch.testing.assert_close(compute(few_digits, extractors).mean, compute(shuffled, extractors).mean)


def test_more_passes_under_no_augmentation_change_nothing(
    few_digits: LabeledImages, extractors: list[Extractor]
) -> None:
    once, thrice = compute(few_digits, extractors), compute(few_digits, extractors, passes=3)
    torch.testing.assert_close(once.mean, thrice.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(once.gap, thrice.gap, atol=1e-4, rtol=1e-4)


def test_a_second_run_reads_them_and_says_so_and_other_data_or_augmentation_does_not(
    few_digits: LabeledImages, extractors: list[Extractor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")

    def cached(data: LabeledImages, strategy: str = "crop") -> RealStatistics:
        caplog.clear()
        return cached_statistics(
            data, extractors, "pool", tmp_path, augmentation=Augmentation(strategy, 8), num_passes=1,
            num_frequencies=12, seed=0,
        )  # fmt: skip

    first = cached(few_digits)
    assert "reusing" not in caplog.text
    again = cached(few_digits)
    assert "reusing those of 120 images" in caplog.text
    assert torch.equal(first.mean, again.mean)
    entry = next((tmp_path / "statistics").iterdir())
    entry.write_bytes(entry.read_bytes()[:-50])
    assert torch.equal(cached(few_digits).mean, first.mean) and "damaged" in caplog.text
    cached(few_digits, "crop_rotate")
    assert "reusing" not in caplog.text
    cached(few_digits.subset((torch.arange(120) % 12 < 10).nonzero()[:, 0]))
    assert "reusing" not in caplog.text


class Killed(Exception):
    """What ends a pass from outside."""


def kill_after(extractor: Extractor, calls: int) -> Callable[[], None]:
    """Makes an extractor raise at some call; returns what mends it."""
    forward, seen = extractor.forward, []

    def mortal(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(seen) > calls:
            raise Killed
        return forward(images)

    extractor.forward = mortal
    return lambda: delattr(extractor, "forward")


def test_a_killed_pass_goes_on_and_ends_with_the_same_bits(
    few_digits: LabeledImages, extractors: list[Extractor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", logger="gencond")
    monkeypatch.setattr("gencond.condensing.real_statistics.SECONDS_BETWEEN_STATES", 0.0)

    def cached(cache: Path) -> RealStatistics:
        return cached_statistics(
            few_digits, extractors, "pool", cache, augmentation=Augmentation("crop_scale", 8), num_passes=3,
            num_frequencies=12, seed=0,
        )  # fmt: skip

    monkeypatch.setattr(
        "gencond.condensing.real_statistics.images_at_once", lambda side: 50
    )  # 3 batches a pass, all of them the probe
    whole = cached(tmp_path / "whole")
    for calls in (4, 5, 4):  # after 4, 6 and 7 of 9 batches
        mend = kill_after(extractors[1], calls)
        with pytest.raises(Killed):
            cached(tmp_path / "killed")
        mend()
    assert len(list((tmp_path / "killed" / "statistics").iterdir())) == 1
    caplog.clear()
    mend = kill_after(extractors[1], 3 + 2)
    resumed = cached(tmp_path / "killed")  # two batches are left
    mend()
    assert "resumed at 78 %" in caplog.text
    for name, value in vars(whole).items():
        assert torch.equal(value, getattr(resumed, name)), name
    assert [path.name for path in (tmp_path / "killed" / "statistics").iterdir()] == [
        path.name for path in (tmp_path / "whole" / "statistics").iterdir()
    ]


def test_a_long_pass_is_compiled_on_a_cpu_that_can_and_says_where_it_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="gencond")
    cpu, open_one = torch.device("cpu"), Embedding(compile=None)
    assert open_one.for_many(10**6, cpu) is open_one and not open_one.compile
    assert open_one.for_many(10**9, torch.device("cuda")) is open_one
    for told in (Embedding(compile=False), Embedding("bfloat16")):
        assert told.for_many(10**9, cpu) is told
    monkeypatch.setattr("gencond.networks.extractor.can_compile", lambda: True)
    compiled = Embedding("bfloat16", compile=None).for_many(10**9, cpu)
    assert compiled.compile and compiled.precision == "bfloat16"
    monkeypatch.setattr("gencond.networks.extractor.can_compile", lambda: False)
    assert open_one.for_many(10**9, cpu) is open_one
    assert caplog.text.count("no C++ compiler") == 1


def test_every_image_is_in_one_batch_and_a_random_part_comes_first() -> None:
    rng = torch.Generator().manual_seed(0)
    for count, size in ((7, 3), (500, 500), (501, 500), (1800, 400)):
        first, batches = _batches(count, size, rng)
        assert torch.equal(torch.cat(batches).sort().values, torch.arange(count))
        assert all(0 < len(rows) <= size for rows in batches)
        assert sum(map(len, batches[:first])) == min(count, 500)
        assert count < 1800 or batches[0].max() > 1000


def test_large_images_go_in_smaller_batches() -> None:
    assert [images_at_once(side) for side in (8, 64, 128, 224, 1024)] == [512, 512, 128, 41, 8]


def test_a_large_set_is_told_what_the_pass_will_take(
    few_digits: LabeledImages, extractors: list[Extractor], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", logger="gencond")
    compute(few_digits, extractors)
    assert not caplog.text
    monkeypatch.setattr("gencond.condensing.real_statistics.FORECAST_FROM_IMAGES", 100)
    compute(few_digits, extractors)
    assert re.search(r"120 images, 2 networks, 1 pass\(es\): about .* s, sums of 0.0 GB", caplog.text)
