"""Mistakes in data sources of users end in one line, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkd import data, models, save
from robustkd.core.errors import InputError, UsageError
from robustkd.core.types import Batch, Split
from robustkd.data import InMemory, Labelled
from robustkd.evaluation.measurement import measure
from robustkd.evaluation.verification import Thresholds, verify
from robustkd.pipeline.api import run
from robustkd.student.distillation import distill
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.training.sources import LEARNING, check_source
from tests.unlabelled import Unlabelled

PIXELS = torch.arange(20 * 3 * 4 * 6).remainder(256).to(torch.uint8).view(20, 3, 4, 6)
HELD = InMemory("held", ("a", "b"), *(Labelled(PIXELS, torch.arange(20) % 2),) * 3)


MANY = InMemory(
    "many", ("a", "b"), *(Labelled(PIXELS.repeat(4, 1, 1, 1), torch.arange(80) % 2),) * 3
)


class Own:
    """A source of the user, which changes the batches of one split."""

    name, classes, image_shape = "own", ("a", "b"), (3, 4, 6)

    def __init__(self, change: Callable[[Batch], Any], split: Split = "train") -> None:
        self._change, self._split = change, split

    def size(self, split: Split) -> int:
        return HELD.size(split)

    def batches(self, split: Split, **how: Any) -> Iterator[Any]:
        for batch in HELD.batches(split, **how):
            yield self._change(batch) if split == self._split else batch


def of(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Batch], Batch]:
    return lambda batch: batch._replace(**{part: change(getattr(batch, part))})


IMAGES = "expected torch.float32 of N x 3 x 4 x 6, with pixels in [0, 1]"
MISTAKES = {
    "bytes": (
        of("images", lambda images: (images * 255).byte()),
        UsageError,
        f"images are torch.uint8 of shape (20, 3, 4, 6); {IMAGES}",
    ),
    "doubles": (
        of("images", Tensor.double),
        UsageError,
        f"images are torch.float64 of shape (20, 3, 4, 6); {IMAGES}",
    ),
    "another shape": (
        of("images", lambda images: images.permute(0, 2, 3, 1)),
        UsageError,
        f"images are torch.float32 of shape (20, 4, 6, 3); {IMAGES}",
    ),
    "up to 255": (
        of("images", lambda images: images * 255),
        InputError,
        "pixels reach from 0 to 255; expected 0 to 1: divide bytes by 255, and do not normalise",
    ),
    "normalised": (
        of("images", lambda images: 2 * images - 1),
        InputError,
        "pixels reach from -1 to 1; expected 0 to 1: ",
    ),
    "no numbers": (
        of("images", lambda images: torch.where(images > 0.9, torch.nan, images)),
        InputError,
        "pixels are not finite; expected values in [0, 1]",
    ),
    "short labels": (
        of("labels", Tensor.int),
        UsageError,
        "labels are torch.int32 of shape (20,); expected torch.int64 of shape (20,)",
    ),
    "a column of labels": (
        of("labels", lambda labels: labels[:, None]),
        UsageError,
        "labels are torch.int64 of shape (20, 1); expected torch.int64 of shape (20,)",
    ),
    "labels from 1": (of("labels", lambda labels: labels + 1), InputError, "labels reach from 1 "),
    "labels below -1": (
        of("labels", lambda labels: labels - 2),
        InputError,
        "labels reach from -2 to -1; expected 0 to 1",
    ),
    "too few rows": (
        of("rows", lambda rows: rows[:3]),
        UsageError,
        "rows are torch.int64 of shape (3,); expected torch.int64 of shape (20,)",
    ),
    "a pair": (
        lambda batch: (batch.images, batch.labels),
        UsageError,
        "a batch is of type tuple; expected robustkd.core.types.Batch with the tensors images, ",
    ),
    "no image": (
        lambda batch: Batch(*(part[:0] for part in batch)),
        InputError,
        "a batch has no images, expected at least one",
    ),
}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_one_line(mistake, split):
    change, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=f"^{re.escape(f'own {split}: {message}')}") as caught:
        check_source(Own(change, split))
    assert "\n" not in str(caught.value)


def test_training_images_may_have_no_label():
    unlabelled = of("labels", lambda labels: torch.full_like(labels, -1))
    check_source(Own(unlabelled))
    check_source(Unlabelled(HELD))
    with pytest.raises(InputError, match=r"labels reach from -1 to -1; expected 0 to 1$"):
        check_source(Own(unlabelled, "validation"))


def test_pixels_of_the_type_of_the_network_are_accepted():
    doubled = of("images", Tensor.double)
    with pytest.raises(UsageError, match=r"own validation: images are torch\.float32 of shape"):
        check_source(Own(doubled), dtypes=(torch.float64,))


@pytest.mark.parametrize("change", [lambda x: 1.0000007 * x, lambda x: x - 0.0012])
def test_pixels_may_be_rounded(change):
    """Resizing and changes of the hue give values a little outside of [0, 1]."""
    check_source(Own(of("images", change)))


def test_the_range_of_pixels_has_enough_digits():
    with pytest.raises(InputError, match=r"pixels reach from 0 to 1\.0108; expected 0 to 1: "):
        check_source(Own(of("images", lambda images: 1.0108 * images)))


def test_networks_of_bfloat16_take_images_of_their_type():
    images = of("images", lambda images: images.bfloat16())
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 2)).bfloat16()
    assert measure(network, Own(images, "test")).acc.n == 20
    either = r"images are torch\.float64 .*; expected torch\.float32 or torch\.bfloat16 of N x 3"
    with pytest.raises(UsageError, match=either):
        measure(network, Own(of("images", Tensor.double), "test"))


class TestImages(Own):
    """A source with test images alone."""

    __test__ = False

    def size(self, split: Split) -> int:
        return HELD.size(split) if split == "test" else 0

    def batches(self, split: Split, **how: Any) -> Iterator[Any]:
        return super().batches(split, **how) if split == "test" else iter(())


def test_measuring_reads_test_images_alone():
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    source = TestImages(lambda batch: batch)
    assert measure(network, source).acc.n == 20
    found = verify(network, source, thresholds=Thresholds(), audited=False)
    assert found.accuracy.n == 20
    with pytest.raises(InputError, match=r"^own train: no images, expected at least one$"):
        verify(network, source, thresholds=Thresholds())


@pytest.mark.parametrize("use", [measure, partial(verify, thresholds=Thresholds(), audited=False)])
@pytest.mark.parametrize("mistake", ["up to 255", "labels from 1"])
def test_test_images_that_are_measured_are_checked(mistake, use):
    change, kind, message = MISTAKES[mistake]
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(kind, match=f"^own test: {re.escape(message)}"):
        use(network, Own(change, "test"))


def test_a_run_begins_with_the_check_of_its_test_images(tmp_path):
    path = tmp_path / "t.safetensors"
    save(models.build(models.Spec("resnet-8", 2, (3, 4, 6)), seed=0), path)
    with pytest.raises(InputError, match=r"^own test: pixels reach from 0 to 255; "):
        run(path, Own(MISTAKES["up to 255"][0], "test"), "resnet-8", out=tmp_path / "run")


class Spoilt(Own):
    """A source whose images are wrong only far behind those that are checked at first."""

    def __init__(self, change: Callable[[Tensor], Tensor], split: Split) -> None:
        super().__init__(lambda batch: batch._replace(images=change(batch.images)), split)

    def size(self, split: Split) -> int:
        return 8 * MANY.size(split)

    def batches(self, split: Split, **how: Any) -> Iterator[Any]:
        for turn in range(8):
            for batch in MANY.batches(split, **how):
                yield self._change(batch) if split == self._split and turn == 7 else batch


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: 255 * x, InputError, r"pixels reach from \S+ to 2\d\d"),
        (lambda x: x * torch.nan, InputError, "pixels are not finite; expected values in"),
        (lambda x: x[..., :4], UsageError, r"images are torch.float32 of shape \(\d+, 3, 4, 4\)"),
        (
            lambda x: x.mul(255).byte(),
            UsageError,
            r"images are torch.uint8 of shape \(\d+, 3, 4, 6\); expected floating-point numbers",
        ),
    ],
)
def test_wrong_images_are_told_wherever_they_are(split, change, error, message):
    student = models.build(models.Spec("resnet-8", 2, (3, 4, 6)), seed=0)
    check_source(Spoilt(change, split))  # which would have to read all images
    with pytest.raises(error, match=f"^own {split}: {message}"):
        distill(student, Spoilt(change, split), epochs=1)


class Once(Own):
    """A source that can be read once, or whose first batches can."""

    def __init__(self, *, empty: bool) -> None:
        super().__init__(lambda batch: batch)
        self._empty = empty
        self._passes = {split: MANY.batches(split, batch_size=8) for split in LEARNING}

    def batches(self, split: Split, **_how: Any) -> Iterator[Any]:
        return self._rest(split) if self._empty else self._passes[split]

    def _rest(self, split: Split) -> Iterator[Any]:
        yield from self._passes[split]


@pytest.mark.parametrize("empty", [True, False])
def test_a_source_that_can_be_read_only_once_is_refused(empty):
    student = models.build(models.Spec("resnet-8", 2, (3, 4, 6)), seed=0)
    text = r"^own \w+: the images cannot be read again from the first one; expected a new iterator"
    for use in (partial(distill, epochs=1), partial(detoxify, steps=1)):
        with pytest.raises(InputError, match=text):
            use(student, Once(empty=empty))


class Late(Own):
    """A source with a wrong label far behind the images that are checked at first."""

    def __init__(self, split: Split, label: int) -> None:
        super().__init__(lambda batch: batch._replace(labels=self._mislabelled(batch)), split)
        self._label = label

    def size(self, split: Split) -> int:
        return MANY.size(split)

    def batches(self, split: Split, **how: Any) -> Iterator[Any]:
        for batch in MANY.batches(split, **how):
            yield self._change(batch) if split == self._split else batch

    def _mislabelled(self, batch: Batch) -> Tensor:
        return torch.where(batch.rows == 79, self._label, batch.labels)


@pytest.mark.parametrize(
    ("split", "label", "message"),
    [
        ("train", 2, r"labels reach from \d to 2; expected 0 to 1, or -1"),
        ("validation", 2, r"labels reach from 0 to 2; expected 0 to 1$"),
        ("validation", -1, r"labels reach from -1 to 1; expected 0 to 1$"),
    ],
)
def test_a_wrong_label_is_told_wherever_it_is(split, label, message):
    student = models.build(models.Spec("resnet-8", 2, (3, 4, 6)), seed=0)
    uses = [lambda source: distill(student, source, epochs=1)]
    if split == "train":
        uses.append(lambda source: detoxify(student, source, steps=9, batch_size=40))
    for use in uses:
        with pytest.raises(InputError, match=f"^own {split}: {message}"):
            use(Late(split, label))
    check_source(Late(split, label))  # which would have to read all images


def test_a_wrong_label_is_no_false_answer():
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    with pytest.raises(InputError, match=r"^own test: labels reach from -5 to 1; expected 0 to 1$"):
        measure(network, Late("test", -5))


def test_what_is_no_source_is_told():
    class Half:
        batches, name = HELD.batches, "half"

    with pytest.raises(UsageError, match="of type Half without classes, image_shape, size; expec"):
        check_source(Half())

    empty = Own(lambda batch: batch)
    empty.batches = lambda *_, **__: iter(())
    with pytest.raises(InputError, match=r"^own train: no images, expected at least one$"):
        check_source(empty)


def test_our_own_sources_are_not_read(monkeypatch):
    """They are checked when they are made, and a large folder would be decoded."""
    source = data.load("digits", train=40)

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(InMemory, "batches", never)
    check_source(source)


@pytest.mark.parametrize("mistake", ["up to 255", "labels from 1", "short labels"])
def test_every_use_begins_with_the_check(mistake, tmp_path):
    change, kind, message = MISTAKES[mistake]
    source, spec = Own(change), models.Spec("resnet-8", 2, (3, 4, 6))
    path = Path(tmp_path / "t.safetensors")
    save(models.build(spec, seed=0), path)
    for use in (
        lambda: distill(models.build(spec, seed=0), source, epochs=1),
        lambda: detoxify(models.build(spec, seed=0), source, steps=1),
        lambda: run(path, source, "resnet-8", out=tmp_path / "run"),
    ):
        with pytest.raises(kind, match=f"^own train: {re.escape(message)}"):
            use()
    assert not (tmp_path / "run").exists()
