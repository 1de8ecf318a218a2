"""Running a model over a split of a DataSource."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import starmap

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import InputError
from robustkd.core.types import DataSource, Images, Labels, Logits, Places, Split
from robustkd.data.portions import portions
from robustkd.models.features.taps import frozen_modes
from robustkd.training.metrics import Proportion, accuracy
from robustkd.training.processes import ONE, Processes
from robustkd.training.sources import check_batch

AT_ONCE = 250
"""Number of images of up to 64 x 64 pixels that pass a network at once in a search."""
_BATCH, _LARGEST = 256, 64 * 64
_FEWEST = 8
_SOME = 64
_MOST_BROKEN = 0.1
"""Share of images whose gradients may be broken; the others are enough for a search."""
_SEED = 0


def predict(
    model: nn.Module,
    data: DataSource,
    split: Split,
    *,
    transform: Callable[[Images], Images] | None = None,
) -> tuple[Logits, Labels]:
    """Compute the logits of a split; return them with the labels, in order, on the CPU.

    The model runs in eval mode without gradients; afterwards its modes are restored.

    Args:
        model: Any classifier of images in [0, 1].
        data: The images.
        split: The split; images are not augmented.
        transform: Function that is applied to every batch of images first.

    Returns:
        N x classes logits, and N labels.

    Raises:
        UsageError: If a batch of a user's own source has other shapes than the data.
        InputError: If pixels of a user's own source are not in [0, 1], or a label is no class.
    """
    with torch.inference_mode(), frozen_modes(model):
        found = list(_outputs(model, data, split, transform))
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits).float(), torch.cat(labels)


def accuracy_on(
    model: nn.Module, data: DataSource, split: Split, processes: Processes = ONE
) -> Proportion:
    """Compute the clean accuracy of a model on a split, batch by batch.

    Args:
        model: Any classifier of images in [0, 1].
        data: The images.
        split: The split.
        processes: Processes that divide the batches; all receive the result.
    """
    with torch.inference_mode(), frozen_modes(model):
        outputs = (
            _outputs(model, data, split)
            if processes.count == 1
            else _own_outputs(model, data, split, processes)
        )
        own = sum(starmap(accuracy, outputs), start=Proportion(0, 0))
    if processes.count == 1:
        return own
    counts = torch.tensor([own.hits, own.n], device=device_of(model))
    processes.add_up(counts)
    return Proportion(*counts.tolist())


def accuracy_on_some(
    model: nn.Module, data: DataSource, split: Split, *, images: int, augment: bool
) -> Proportion:
    """Compute the accuracy of a model on some images of a split, which are always the same.

    Args:
        model: Any classifier of images in [0, 1].
        data: The images.
        split: The split.
        images: Number of images, rounded up to whole batches; at most all.
        augment: If True, the images are augmented as in training.
    """
    chosen = torch.Generator().manual_seed(_SEED)
    drawn = torch.Generator().manual_seed(_SEED) if augment else None
    found = Proportion(0, 0)
    with torch.inference_mode(), frozen_modes(model):
        for batch in data.batches(
            split, batch_size=_SOME, device=device_of(model), shuffle=chosen, augment=drawn
        ):
            check_batch(batch, data, split)
            labels = batch.labels.cpu()
            found += accuracy(model(batch.images).cpu(), labels)
            if found.n >= images:
                break
    return found


def accuracy_by_class(model: nn.Module, data: DataSource, split: Split) -> tuple[Proportion, ...]:
    """Compute the clean accuracy of a model on the images of each class, batch by batch.

    The sum over classes is the result of :func:`accuracy_on`. A class without images has
    ``Proportion(0, 0)``.

    Raises:
        InputError: If an output is not finite.
    """
    classes = len(data.classes)
    images = torch.zeros(classes, dtype=torch.int64)
    hits = torch.zeros(classes, dtype=torch.int64)
    with torch.inference_mode(), frozen_modes(model):
        for logits, labels in _outputs(model, data, split):
            check_finite(logits, f"{split} images")
            images += labels.bincount(minlength=classes)
            hits += labels[logits.argmax(1) == labels].bincount(minlength=classes)
    return tuple(map(Proportion, hits.tolist(), images.tolist()))


class Searched(nn.Module):
    """Wrapper that counts non-finite outputs and gradients while a network is searched.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # On the device of the network, so that no call waits for it.
        self._broken_outputs: Tensor | int = 0
        self._broken_gradients: Tensor | int = 0
        self._gradients = 0

    def forward(self, images: Images) -> Logits:
        """Return the logits."""
        if images.requires_grad:
            images = images.view_as(images)  # whose gradient is that of this network alone
            images.register_hook(self._look_at)
        logits: Logits = self.network(images)
        self._broken_outputs = self._broken_outputs + _broken(logits.detach())
        return logits

    def _look_at(self, gradient: Tensor | None) -> None:
        if gradient is None:  # a part of the network, such as a quantised one, passes none
            return
        self._gradients += len(gradient)
        self._broken_gradients = self._broken_gradients + _broken(gradient)

    @property
    def trouble(self) -> str:
        """Why the search so far means nothing; empty if it means something."""
        if self._broken_outputs:
            return "its outputs on transformed images are not finite"
        if self._broken_gradients > _MOST_BROKEN * self._gradients:
            return "its gradients are not finite"
        return ""


def _broken(values: Tensor) -> Tensor:
    """Return the number of rows with a value that is not finite."""
    return (~values.isfinite()).flatten(1).any(1).sum()


def check_finite(logits: Logits, images: str) -> None:
    """Raise an error if logits are not finite, since the class of such an output has no meaning.

    The largest of numbers that are not finite is often the first, so that class 0 would be counted.

    Args:
        logits: Logits of any number of images.
        images: Description of the images, for the message.

    Raises:
        InputError: If they are not all finite.

    >>> import torch
    >>> check_finite(torch.tensor([[0.0, float("nan")]]), "triggered images")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    robustkd.core.errors.InputError: the outputs of the model are not finite on triggered images...
    """
    if not logits.isfinite().all():
        raise InputError(
            f"the outputs of the model are not finite on {images}; check its weights and how the "
            "images are read"
        )


def finite_on(
    model: nn.Module, data: DataSource, split: Split, *, images: int | None = None
) -> bool:
    """Return whether all logits of a model on a split, and their squares, are finite.

    Losses square the logits, so a training with larger ones would fail.

    Args:
        model: Any classifier of images in [0, 1].
        data: The images.
        split: The split.
        images: Number of its first images, rounded up to whole batches; None for all.
    """
    seen = 0
    with torch.inference_mode(), frozen_modes(model):
        for logits, _ in _outputs(model, data, split):
            if not logits.square().isfinite().all():
                return False
            seen += len(logits)
            if images is not None and seen >= images:
                break
    return True


def finite_for(model: nn.Module, images: Images) -> bool:
    """Return whether all logits of a model for some images, and their squares, are finite."""
    with torch.inference_mode(), frozen_modes(model):
        parts = images.split(images_at_once(images))
        return all(bool(model(part).square().isfinite().all()) for part in parts if len(part))


def passes_gradient(network: nn.Module, images: Images) -> bool:
    """Return whether outputs of a network have a gradient with respect to the images.

    Rounding, ``argmax`` and ``detach`` let none through, so that no search by gradients finds what
    such a network reacts to.

    Args:
        network: Frozen network in eval mode.
        images: Some images.
    """
    seen = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = network(seen)
        if not logits.requires_grad:
            return False
        # Random weights, since the sum of all outputs may be constant, as that of a softmax is.
        weights = torch.rand(logits.shape, generator=torch.Generator().manual_seed(_SEED))
        total = (logits * weights.to(logits.device)).sum()
        (gradient,) = torch.autograd.grad(total, seen, allow_unused=True)
    return gradient is not None and bool(gradient.nan_to_num(0.0, 0.0, 0.0).any())


def batch_size_for(image_shape: tuple[int, int, int], most: int = _BATCH) -> int:
    """Return how many images pass a network at once, so that large ones fit into memory.

    Otherwise, a validation with images of 224 pixels would need more memory than the training.

    Args:
        image_shape: Channels, height and width.
        most: Number of images of up to 64 x 64 pixels.

    >>> batch_size_for((3, 32, 32)), batch_size_for((3, 224, 224))
    (256, 20)
    """
    _, height, width = image_shape
    return min(most, max(_FEWEST, most * _LARGEST // max(_LARGEST, height * width)))


def images_at_once(images: Tensor, most: int = AT_ONCE) -> int:
    """Return :func:`batch_size_for` for images like these, N x C x H x W of any type."""
    return batch_size_for((images.shape[1], images.shape[2], images.shape[3]), most)


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose weights do not require gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def _outputs(
    model: nn.Module,
    data: DataSource,
    split: Split,
    transform: Callable[[Images], Images] | None = None,
) -> Iterator[tuple[Logits, Labels]]:
    """Yield logits and labels of each batch, on the CPU."""
    size = batch_size_for(data.image_shape)
    for batch in data.batches(split, batch_size=size, device=device_of(model)):
        check_batch(batch, data, split)
        labels = batch.labels.cpu()
        images = batch.images if transform is None else transform(batch.images)
        yield model(images).cpu(), labels


def _own_outputs(
    model: nn.Module, data: DataSource, split: Split, processes: Processes
) -> Iterator[tuple[Logits, Labels]]:
    """Yield logits and labels of this process's part of each batch, on the CPU."""

    def own(size: int) -> Places:
        return torch.arange(size)[processes.rank :: processes.count]

    where, size = device_of(model), processes.count * batch_size_for(data.image_shape)
    for batch, _total in portions(data, split, own, batch_size=size, device=where):
        if len(batch.labels):
            check_batch(batch, data, split)
            labels = batch.labels.cpu()
            yield model(batch.images).cpu(), labels
