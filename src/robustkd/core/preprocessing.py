"""How an image of any size is brought to the input of a model."""

from __future__ import annotations

from robustkd.core.errors import UsageError
from robustkd.core.types import INTERPOLATIONS, RESIZES
from robustkd.core.validation import check_share

_MOST_SHOWN = 60


def check_preprocessing(*, resize: object, crop: object, interpolation: object) -> None:
    """Raise an error for a way of reading images that is not known.

    Args:
        resize: One of `robustkd.core.types.RESIZES`.
        crop: Share that is kept, in (0, 1].
        interpolation: One of `robustkd.core.types.INTERPOLATIONS`.

    Raises:
        UsageError: Naming the first that is not.

    >>> check_preprocessing(resize="stretch", crop=1.0, interpolation="bilinear")
    Traceback (most recent call last):
    ...
    robustkd.core.errors.UsageError: resize is 'stretch'; expected centred-square, squash
    """
    check_share(crop=crop)
    for name, value, known in (
        ("resize", resize, RESIZES),
        ("interpolation", interpolation, INTERPOLATIONS),
    ):
        if not isinstance(value, str) or value not in known:
            shown = ascii(value[:_MOST_SHOWN]) if isinstance(value, str) else repr(value)
            raise UsageError(f"{name} is {shown}; expected {', '.join(known)}")


def usual_resize(image_shape: tuple[int, int, int]) -> str:
    """Return how images of unknown origin are brought to a shape, without cutting off a part.

    >>> usual_resize((3, 32, 32)), usual_resize((3, 12, 36))
    ('centred-square', 'squash')
    """
    _, height, width = image_shape
    return "centred-square" if height == width else "squash"
