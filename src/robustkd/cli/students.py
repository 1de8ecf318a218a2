"""Small architectures with their size and speed, for ``robustkd list --students``."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator

import torch

from robustkd import models
from robustkd.core.errors import UsageError

STUDENTS = (
    "mobilenet-v2-0.25",
    "mobilenet-v1-0.25",
    "resnet-8",
    "wrn-10-1",
    "wrn-16-1",
    "resnet-14",
    "resnet-20",
    "wrn-10-2",
    "torchvision/shufflenet_v2_x0_5",
    "timm/mobilenetv3_small_050",
    "wrn-16-2",
    "torchvision/squeezenet1_1",
    "torchvision/mobilenet_v3_small",
    "mobilenet-v2",
    "timm/efficientnet_lite0",
    "timm/convnext_atto",
    "timm/deit_tiny_patch16_224",
    "resnet-18",
)
"""Architectures in the list. Any other architecture can be used as a student, too."""

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_CLASSES = 10
_WARM_UP, _RUNS = 3, 20


def number(text: str) -> float:
    """Convert a number with an optional unit.

    >>> number("1.5M"), number("300k")
    (1500000.0, 300000.0)

    Raises:
        UsageError: If the text is not a number.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", text.strip().upper())
    if found is None:
        raise UsageError(f"--max-params is {text!r}; expected a number such as 300k or 1.5M")
    return float(found[1]) * _UNITS[found[2]]


def students(
    image_shape: tuple[int, int, int], most: float | None = None
) -> Iterator[dict[str, object]]:
    """Yield name, parameters, operations and latency of each architecture that fits the images.

    The latency is the median of 20 forward passes of one image in PyTorch, with the threads that
    torch uses. ``robustkd export`` measures a finished student in onnxruntime.

    Args:
        image_shape: Channels, height and width.
        most: Largest number of parameters; None for all.

    Yields:
        ``student``, ``parameters``, ``mmacs`` (millions of MACs) and ``latency_ms``.
    """
    for arch in STUDENTS:
        try:
            model = models.build(models.Spec(arch, _CLASSES, image_shape), seed=0).eval()
            count, operations = models.parameters(model), models.macs(model, image_shape)
        except (UsageError, RuntimeError):
            continue  # images that are too small for this architecture
        if most is None or count <= most:
            yield {
                "student": arch,
                "parameters": count,
                "mmacs": round(operations / 1e6, 1),
                "latency_ms": round(_latency(model, image_shape), 2),
            }


def _latency(model: models.Classifier, image_shape: tuple[int, int, int]) -> float:
    """Return the median milliseconds of a forward pass of one image."""
    image = torch.zeros(1, *image_shape)
    seconds = []
    with torch.inference_mode():
        for _ in range(_WARM_UP + _RUNS):
            started = time.perf_counter()
            model(image)
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[_WARM_UP:])
