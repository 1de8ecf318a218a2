"""Layouts: which axis holds the channels, and tokens as maps, by hand."""

from __future__ import annotations

import pytest
import torch

from robustkd.models.features.layout import Layout, layout_of

SQUARE = (224, 224)


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((64, 56, 56), SQUARE, Layout("NCHW", 64, (56, 56))),
        ((56, 56, 96), SQUARE, Layout("NHWC", 96, (56, 56))),
        # Both readings fit: channels first.
        ((8, 8, 8), (32, 32), Layout("NCHW", 8, (8, 8))),
        # Sides rounded up and down: 50 / 8 and 33 / 8.
        ((16, 7, 5), (50, 33), Layout("NCHW", 16, (7, 5))),
        ((6, 4, 16), (50, 33), Layout("NHWC", 16, (6, 4))),
        ((1000, 1, 1), SQUARE, Layout("NCHW", 1000, (1, 1))),
        ((196, 192), SQUARE, Layout("NTC", 192, (14, 14), 0)),
        ((197, 192), SQUARE, Layout("NTC", 192, (14, 14), 1)),
        ((198, 192), SQUARE, Layout("NTC", 192, (14, 14), 2)),
        ((201, 192), SQUARE, Layout("NTC", 192, (14, 14), 5)),
        ((9, 8), (64, 32), Layout("NTC", 8, (4, 2), 1)),
        ((1, 8), (64, 32), Layout("NTC", 8, (1, 1), 0)),
        ((3, 8), (64, 64), Layout("NTC", 8, (3, 1), 0)),
        ((10,), SQUARE, None),
        ((2, 3, 4, 4), SQUARE, None),
    ],
)
def test_the_layout_follows_from_the_proportions(shape, image, expected):
    assert layout_of(shape, image) == expected


def test_every_layout_gives_the_same_maps():
    maps = torch.rand(2, 3, 4, 4)
    for layout, features in (
        (Layout("NCHW", 3, (4, 4)), maps),
        (Layout("NHWC", 3, (4, 4)), maps.permute(0, 2, 3, 1)),
        (Layout("NTC", 3, (4, 4)), maps.flatten(2).transpose(1, 2)),
    ):
        assert torch.equal(layout.maps(features), maps)
        assert layout.shape == (3, 4, 4)


def test_further_tokens_are_added_to_every_position():
    patches, further = torch.rand(2, 4, 3), torch.rand(2, 2, 3)
    maps = Layout("NTC", 3, (2, 2), 2).maps(torch.cat([further, patches], dim=1))
    for position in range(4):
        expected = patches[:, position] + (further[:, 0] + further[:, 1]) / 2
        torch.testing.assert_close(maps[:, :, position // 2, position % 2], expected)
