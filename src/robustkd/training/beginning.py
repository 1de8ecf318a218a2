"""Checks of networks before a training or a search, with the real cause in the message.

Without them, values that are not finite would be found only in a loss, where they look like a
learning rate that is too large, and PyTorch would refuse some networks in its own words.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import InputError, UsageError
from robustkd.core.first_batch import first_batch
from robustkd.core.types import DataSource, Images
from robustkd.models.features.taps import frozen_modes
from robustkd.training.inference import batch_size_for

_SOME = 16
"""Number of images that are tried."""


def check_readable(model: nn.Module, *, name: str) -> None:
    """Check that a network is one of Python, whose features can be read and which can be frozen.

    Args:
        model: The network.
        name: What the network is, for the message, such as "the teacher".

    Raises:
        UsageError: If it is a TorchScript module.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"{name} is a TorchScript module; expected the nn.Module that it was made from, since "
            "features of TorchScript cannot be read"
        )


def check_gradients(model: nn.Module, *, name: str) -> None:
    """Check that PyTorch can compute gradients with a network itself, and not only with a copy.

    Args:
        model: The network.
        name: What the network is, for the message.

    Raises:
        UsageError: If it was made in inference mode.
    """
    if any(tensor.is_inference() for tensor in _tensors(model)):
        raise UsageError(
            f"{name} was made in torch.inference_mode(), so it takes no part in "
            "gradients; expected one that was made outside: give copy.deepcopy of it"
        )


def check_trained(student: nn.Module, teacher: nn.Module | None) -> None:
    """Check that a student has weights to train, which are not those of its teacher.

    Raises:
        UsageError: If it has none, or shares some with the teacher.
    """
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    if not trained:
        raise UsageError(
            "the student has no trainable weight; expected some with requires_grad: call "
            "student.requires_grad_()"
        )
    if teacher is None:
        return
    statistics = [getattr(module, "running_mean", None) for module in student.modules()]
    changed = {_place(each) for each in (*trained, *statistics) if isinstance(each, Tensor)}
    if changed & {_place(each) for each in _tensors(teacher)} - {0}:
        raise UsageError(
            "student and teacher share weights, and the teacher must stay as it is; expected two "
            "networks: give copy.deepcopy of one of them"
        )


def first_images(data: DataSource, device: torch.device) -> Images:
    """Return the first training images, on which networks are tried."""
    size = batch_size_for(data.image_shape, _SOME)
    return first_batch(data, "train", batch_size=size, device=device).images


def check_finite_start(teacher: nn.Module, images: Images, *, data: str) -> None:
    """Check that the logits of a teacher are finite before a training.

    Args:
        teacher: The network, which is tried in eval mode.
        images: Images that were checked, such as those of :func:`first_images`.
        data: Name of their source, for the message.

    Raises:
        InputError: If they are not.
    """
    with torch.no_grad(), frozen_modes(teacher):
        logits = teacher(images.to(device_of(teacher)))
    if not logits.isfinite().all():
        raise InputError(
            f"the logits of the teacher are not finite on images of {data}; expected weights that "
            "were trained on such images"
        )


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _place(tensor: Tensor) -> int:
    """Return where the values are in memory; 0 for tensors that have none."""
    return tensor.untyped_storage().data_ptr()
