"""A float ONNX file in int8 by onnxruntime's static quantisation, by the recipe that fits it best.

Activations become unsigned and weights signed bytes, in QDQ form. Nobody knows beforehand which
recipe a network bears: depthwise networks can collapse under one scale a tensor, and a CPU without
VNNI adds pairs of products in 16 bits, which overflow unless weights keep to 7 bits. So a few are
tried, and the validation images decide.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from robustkd.core.errors import InputError
from robustkd.core.types import DataSource, Labels, Logits
from robustkd.export.installed import quiet
from robustkd.export.onnx import INPUT, stamp
from robustkd.export.parity import Parity, compare
from robustkd.export.session import OnnxClassifier
from robustkd.models.classifier import Spec
from robustkd.models.serialization import first_line
from robustkd.training.inference import predict
from robustkd.training.metrics import Proportion, accuracy

_MOST_IMAGES, _FEWEST_IMAGES = 256, 32
_PIXELS = 1 << 22
_AT_ONCE = 16


@dataclass(frozen=True)
class Recipe:
    """One way to choose scales.

    Attributes:
        per_channel: One scale for each output channel of a weight, not one for the tensor.
        reduce_range: Weights keep to 7 bits.
        calibration: How the range of an activation follows from the images.
        products_only: Only convolutions and matrix products are quantised.
    """

    per_channel: bool
    reduce_range: bool
    calibration: Literal["min-max", "percentile", "entropy"] = "min-max"
    products_only: bool = False

    @property
    def name(self) -> str:
        """In a few words, e.g. ``per-channel, 7-bit weights, min-max``."""
        scales = "per-channel" if self.per_channel else "per-tensor"
        bits = 7 if self.reduce_range else 8
        only = ", products only" if self.products_only else ""
        return f"{scales}, {bits}-bit weights, {self.calibration}{only}"


RECIPES: tuple[Recipe, ...] = (
    Recipe(per_channel=True, reduce_range=True),
    Recipe(per_channel=True, reduce_range=False),
    Recipe(per_channel=False, reduce_range=True),
    Recipe(per_channel=False, reduce_range=False),
    Recipe(per_channel=True, reduce_range=True, calibration="percentile"),
    Recipe(per_channel=True, reduce_range=True, calibration="entropy"),
    Recipe(per_channel=True, reduce_range=True, products_only=True),
)
"""Tried in this order; the first of equals is taken."""


@dataclass(frozen=True)
class Tried:
    """What became of a recipe on the validation images.

    Attributes:
        recipe: Its name.
        acc: Accuracy; None if onnxruntime could not follow the recipe.
        parity: Comparison with the student; None likewise.
        reason: Why it could not be followed; empty if it was.
    """

    recipe: str
    acc: Proportion | None
    parity: Parity | None
    reason: str = ""

    def record(self) -> dict[str, object]:
        """The figures as JSON values."""
        return {
            "recipe": self.recipe,
            "validation_acc": self.acc.value if self.acc else None,
            "agreement": self.parity.same.value if self.parity else None,
            "n": self.acc.n if self.acc else None,
            "reason": self.reason,
        }

    @property
    def rank(self) -> tuple[int, int]:
        """What is compared: images that are right, then images of the student's class."""
        return (self.acc.hits, self.parity.same.hits) if self.acc and self.parity else (-1, -1)


@dataclass(frozen=True)
class Quantised:
    """The recipe that was taken, those that were tried, and the images that set the scales."""

    chosen: Tried
    tried: tuple[Tried, ...]
    calibration_images: int

    def record(self) -> dict[str, object]:
        """The figures as JSON values."""
        return {
            "chosen": self.chosen.recipe,
            "calibration_images": self.calibration_images,
            "tried": [row.record() for row in self.tried],
        }


def quantise_best(
    source: Path,
    out: Path,
    spec: Spec,
    data: DataSource,
    *,
    student: tuple[Logits, Labels],
    recipes: Sequence[Recipe] = RECIPES,
) -> Quantised:
    """Quantise a float file by every recipe and keep the most accurate on validation images.

    Args:
        source: The float file.
        out: File to write.
        spec: Description of the model, which goes into the file.
        data: Clean images: ``train`` sets the scales, ``validation`` chooses.
        student: Logits of the student on ``validation``, and the labels.
        recipes: What to try, at least one.

    Raises:
        InputError: If onnxruntime can follow none of them.
    """
    images = calibration_images(data)
    with tempfile.TemporaryDirectory(prefix="robustkd-") as folder:
        prepared = _prepared(source, Path(folder) / "prepared.onnx")
        rows, best = [], None
        for number, recipe in enumerate(recipes):
            made = Path(folder) / f"{number}.onnx"
            rows.append(_try(prepared, made, images, recipe, data, student))
            if best is None or rows[-1].rank > best[0].rank:
                best = rows[-1], made
        if best is None or best[0].acc is None:
            reason = rows[0].reason if rows else "no recipe was given"
            raise InputError(f"{source.name} cannot be quantised: {reason}")
        out.write_bytes(best[1].read_bytes())
    stamp(out, spec)
    return Quantised(best[0], tuple(rows), len(images))


def calibration_images(data: DataSource) -> Float[np.ndarray, "m channels height width"]:
    """Clean training images, 32 to 256 by their size, the same in every run, not augmented."""
    wanted = _PIXELS // math.prod(data.image_shape)
    wanted = min(max(wanted, _FEWEST_IMAGES), _MOST_IMAGES, data.size("train"))
    order = torch.Generator().manual_seed(0)
    batch = next(data.batches("train", batch_size=wanted, shuffle=order))
    return np.ascontiguousarray(batch.images.cpu().numpy())


def _try(
    source: Path,
    out: Path,
    images: Float[np.ndarray, "m channels height width"],
    recipe: Recipe,
    data: DataSource,
    student: tuple[Logits, Labels],
) -> Tried:
    try:
        quantise(source, out, images, recipe)
        found, labels = predict(OnnxClassifier(out), data, "validation")
    # onnxruntime raises errors of no common kind where a network does not suit a recipe.
    except Exception as error:
        return Tried(recipe.name, None, None, first_line(error))
    return Tried(recipe.name, accuracy(found, labels), compare(student[0], found))


def quantise(
    source: Path,
    out: Path,
    images: Float[np.ndarray, "m channels height width"],
    recipe: Recipe,
) -> None:
    """Write a float file in int8 by one recipe.

    Args:
        source: The float file.
        out: File to write.
        images: Clean images in [0, 1] that set the ranges of activations.
        recipe: How.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {
        "min-max": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with quiet():
        quantize_static(
            source,
            out,
            _reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"] if recipe.products_only else None,
            per_channel=recipe.per_channel,
            reduce_range=recipe.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[recipe.calibration],
        )


def _reader(images: Float[np.ndarray, "m channels height width"]) -> object:
    class Reader:
        """A reader by its interface; onnxruntime asks for ``get_next`` alone."""

        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(
                [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
            )

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def _prepared(source: Path, out: Path) -> Path:
    """The file with shapes inferred and layers folded, as far as onnxruntime can do so."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    for options in ({}, {"skip_symbolic_shape": True}):
        try:
            with quiet():
                quant_pre_process(source, out, **options)
        except Exception:
            out.unlink(missing_ok=True)
        else:
            return out
    return source
