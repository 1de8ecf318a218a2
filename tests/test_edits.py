"""The fixed edits of `benchmarks/transformations.py` do what they say, and stay in [0, 1]."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def edits():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import transformations

        yield transformations.MADE_BY_HAND
    del sys.modules["transformations"]


IMAGE = torch.tensor(
    [[0.0, 0.2, 0.4, 0.6], [0.8, 1.0, 0.1, 0.3], [0.5, 0.7, 0.9, 0.2], [0.4, 0.6, 0.8, 1.0]]
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("posterise", [[0.0, 0, 0.5, 0.5], [1, 1, 0, 0.5], [0.5, 0.5, 1, 0], [0.5, 0.5, 1, 1]]),
        (
            "pixelate",
            [[0.5, 0.5, 0.35, 0.35], [0.5, 0.5, 0.35, 0.35],
             [0.55, 0.55, 0.725, 0.725], [0.55, 0.55, 0.725, 0.725]],
        ),
        (
            "erode",
            [[0.0, 0.1, 0.1, 0.3], [0.5, 0.1, 0.1, 0.2], [0.4, 0.6, 0.2, 0.2], [0.4, 0.6, 0.8, 1]],
        ),
        (
            "shadow",
            [[0.0, 0.2, 0.2, 0.3], [0.8, 1, 0.05, 0.15], [0.5, 0.7, 0.45, 0.1],
             [0.4, 0.6, 0.4, 0.5]],
        ),
        (
            "stripes",
            [[0.0, 0.12, 0.24, 0.36], [0.8, 1, 0.1, 0.3], [0.3, 0.42, 0.54, 0.12],
             [0.4, 0.6, 0.8, 1]],
        ),
    ],
)  # fmt: skip
def test_an_edit_of_an_image_by_hand(edits, name, expected):
    found = edits[name](IMAGE[None, None])
    torch.testing.assert_close(found[0, 0], torch.tensor(expected))


def test_rows_are_shifted_along_a_sine(edits):
    found = edits["wave"](IMAGE.repeat(2, 2)[None, None])[0, 0]
    # A period of four rows: not at all, to the right, not at all, to the left.
    torch.testing.assert_close(found[:, :4], torch.stack(
        [IMAGE[0], IMAGE[1].roll(1), IMAGE[2], IMAGE[3].roll(-1)]
    ).repeat(2, 1))  # fmt: skip


def test_edits_keep_shape_and_range_of_images_of_any_kind(edits):
    images = torch.rand((3, 3, 6, 8), generator=torch.Generator().manual_seed(0))
    for edit in edits.values():
        found = edit(images)
        assert found.shape == images.shape
        assert found.min() >= 0
        assert found.max() <= 1
        assert not torch.equal(found, images)
