"""A model of images says how they were read, whatever holds or wraps them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustkd.attacks.parts.poisoned_data import Poisoned
from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource
from robustkd.data import InMemory, Labelled, Reading, load, load_folder
from robustkd.evaluation.audit.references import Limited
from robustkd.models import Spec, spec_for
from robustkd.pipeline.dry_run import _Few

READING = Reading(image_size=12, resize="squash", crop=0.8, interpolation="bicubic")
FORM = ("squash", 0.8, "bicubic")


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Images of 36 x 20 pixels."""
    folder, random = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    for name in ("left", "right"):
        (folder / name).mkdir()
        for number in range(12):
            pixels = random.integers(0, 256, (20, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def form_of(data: DataSource) -> tuple[str, float, str]:
    spec = spec_for("resnet-8", data)
    return spec.resize, spec.crop, spec.interpolation


SOURCES = {
    "a folder": lambda wide: load_folder(wide, READING),
    "in memory": lambda wide: load(wide, reading=READING),
    "a subset": lambda wide: load(wide, reading=READING, train=4),
    "a subset of a subset": lambda wide: load(wide, reading=READING, train=8).subset(train=4),
    "another augmentation": lambda wide: load(wide, reading=READING).with_augmentation(
        READING.augmentation(12)
    ),
    "fewer images": lambda wide: Limited(load(wide, reading=READING), 4),
    "measured batches": lambda wide: _Few(load(wide, reading=READING), 4),
    "poisoned": lambda wide: Poisoned(
        load_folder(wide, READING), torch.zeros_like, target=1, rate=0.2
    ),
    "fewer poisoned images": lambda wide: Limited(
        Poisoned(load(wide, reading=READING), torch.zeros_like, target=1, rate=0.2), 4
    ),
}


@pytest.mark.parametrize("kind", list(SOURCES))
def test_a_model_says_how_its_images_were_read(kind, wide):
    assert form_of(SOURCES[kind](wide)) == FORM


def test_files_that_are_read_as_the_model_says_give_the_images_of_the_training(wide):
    data = load(wide, reading=READING)
    spec = spec_for("resnet-8", data)
    read = Reading(
        image_size=spec.image_shape[1],
        resize=spec.resize,
        crop=spec.crop,
        interpolation=spec.interpolation,
    )
    found, expected = (
        next(iter(source.batches("test", batch_size=99))).images
        for source in (load_folder(wide, read), data)
    )
    assert torch.equal(found, expected)


def held(*shape: int) -> InMemory:
    parts = (Labelled(torch.zeros(4, *shape, dtype=torch.uint8), torch.arange(4) % 2),) * 3
    return InMemory("toy", ("a", "b"), *parts)


def test_no_part_of_images_that_are_not_square_is_cut_off_by_default():
    """As a centred square of 12 x 12 pixels would."""
    assert form_of(held(3, 12, 36)) == ("squash", 1.0, "bilinear")
    assert form_of(held(3, 12, 12)) == ("centred-square", 1.0, "bilinear")
    assert Spec("resnet-8", 2, (3, 36, 12)).resize == "squash"
    assert form_of(replace(held(3, 12, 36), resize="centred-square"))[0] == "centred-square"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "stretch"}, "resize is 'stretch'; expected centred-square, squash"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; expected bilinear, bicubic, "),
        ({"crop": 1.5}, "crop is 1.5; expected above 0 and at most 1"),
    ],
)
def test_an_unknown_way_of_reading_is_refused(change, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        replace(held(3, 8, 8), **change)
