"""Trial of networks on a few images of the data, before they are used."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from robustkd.core.devices import device_of, forked_generators
from robustkd.core.errors import InputError, UsageError, first_line
from robustkd.core.first_batch import first_batch
from robustkd.core.types import DataSource, Images, Split
from robustkd.core.usual_state import types_for
from robustkd.models.checks import has_finite_weights
from robustkd.models.classifier import check_logits
from robustkd.models.features.taps import frozen_modes
from robustkd.training.sources import LEARNING, check_source

_FEW = 2


def check_classifier(
    model: nn.Module,
    data: DataSource,
    *,
    name: str,
    any_classes: bool = False,
    trained: bool = False,
    splits: Sequence[Split] = LEARNING,
    images: Images | None = None,
) -> Images:
    """Check, with a few images, the data, and that a model maps them to logits of the classes.

    Args:
        model: The model.
        data: The images.
        name: What the model is, for the message, such as "the teacher".
        any_classes: If True, it may have been trained for other classes.
        trained: If True, it will be trained, so that a copy of it is tried in train mode as well.
        splits: The splits of the data that the caller reads; the model is tried on the last one.
        images: Images that this function returned for another model, so that the data is not
            checked and read again; None to do it.

    Returns:
        The images on which the model was tried.

    Raises:
        UsageError: If it is no such model, does not work with the images, or the data is no data
            source.
        InputError: If pixels are not in [0, 1], labels are no classes, or a model that will be
            trained is not finite.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{name} is of type {type(model).__name__}; expected an nn.Module: load and "
            "load_teacher read files"
        )
    where = device_of(model)
    if images is None:
        check_source(data, dtypes=types_for(model), splits=splits)
        images = first_batch(data, splits[-1], batch_size=_FEW, device=where).images
    images = images.to(where)
    classes = None if any_classes else len(data.classes)
    check_logits(_tried(model, images, name), len(images), classes, name)
    if trained:
        finite = has_finite_weights(model)
        if finite and len(images) > 1:  # BatchNorm needs two
            with forked_generators(where):
                outputs = _tried(copy.deepcopy(model), images, name, training=True)
            logits = check_logits(outputs, len(images), classes, f"{name} in train mode")
            finite = bool(logits.isfinite().all())
        if not finite:
            raise InputError(
                f"the weights of {name}, or its logits on images of {data.name}, are not finite "
                "before the training; expected finite initial weights"
            )
    return images


def check_works(model: nn.Module, images: Images, *, name: str) -> None:
    """Check that a model returns something for some images.

    Args:
        model: The model.
        images: N x C x H x W; their content does not matter.
        name: What the model is, for the message.

    Raises:
        UsageError: If it raises an error, or changes the images in place.
    """
    _tried(model, images, name)


def _tried(model: nn.Module, images: Images, name: str, *, training: bool = False) -> object:
    """Return the outputs of a model.

    Raises:
        UsageError: If it does not work with the images, or changes them in place, so that other
            networks would see other images, and no gradient could reach them.
    """
    try:
        # Not in inference mode: what the model keeps of this call may be needed for gradients.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            frozen_modes(model, training=training),
        ):
            images = images.clone()
            before = images._version
            outputs: object = model(images)
            changed = images._version != before
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a shape or type; networks raise errors of any kind
        shape = " x ".join(map(str, images.shape))
        raise UsageError(
            f"{name} does not work with images of shape {shape} and type {images.dtype}: "
            f"{first_line(error)}"
        ) from error
    if changed:
        raise UsageError(
            f"{name} changes its input in place; expected a network that leaves it as it is: give "
            "one that calls it with a copy, images.clone()"
        )
    return outputs
