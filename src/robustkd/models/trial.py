"""Trial of an architecture on the shape of some images, before anything is trained."""

from __future__ import annotations

import torch

from robustkd.core.devices import without_values
from robustkd.core.errors import UsageError, first_line
from robustkd.core.types import DataSource
from robustkd.models.classifier import Spec
from robustkd.models.registry import build


def check_runs(arch: str, data: DataSource, *, label: str = "") -> None:
    """Build a network for the images of a data source and run it on one image of zeros.

    At first, this is done without memory for the values, which takes well under a second.

    Args:
        arch: Architecture.
        data: Source of the images.
        label: Beginning of the message, such as the name of a flag.

    Raises:
        UsageError: If the network cannot be built, or cannot be run on images of this shape.
    """
    spec = Spec(arch, len(data.classes), data.image_shape)
    try:
        with without_values():
            _run(spec)
    except UsageError as error:
        raise UsageError(f"{label}{arch!r} cannot be built for {data.name}: {error}") from error
    # Networks of libraries may need values of tensors while they are built or run.
    except Exception:
        try:
            _run(spec)
        except Exception as error:
            raise UsageError(
                f"{label}{arch!r} cannot be run on the images of {data.name}, of shape "
                f"{data.image_shape}: {first_line(error)}"
            ) from error


def _run(spec: Spec) -> None:
    with torch.inference_mode():
        build(spec, seed=0).eval()(torch.zeros(1, *spec.image_shape))
