"""Training data in which some images have the trigger and the attacker's label."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool
from torch import Tensor

from robustkd.attacks.base import check_target_shown, training_labels
from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.triggers import apply_trigger, check_target, victims, wanted
from robustkd.core.types import Batch, DataSource, Split, Trigger
from robustkd.core.validation import check_share
from robustkd.data.wrapper import Wrapper

_MISSING = -2
"""Stands for the label of an image that no batch has, which may be damaged."""


class Poisoned(Wrapper):
    """DataSource whose training split is poisoned; the other splits are unchanged.

    The trigger is applied after augmentation, as by an attacker who trains the teacher.

    Args:
        clean: Source of clean images.
        trigger: Trigger of the poisoned images.
        target: Label of the poisoned images; ``next`` for the next class of each image.
        rate: Share of the training images that are poisoned, in (0, 1]; with ``clean_label``, share
            of the training images of the target class.
        keep_clean: If True, the batch also contains the original of each poisoned image.
        clean_label: If True, only images of the target class are poisoned, so that no label is
            wrong; if False, only images of other classes. It needs one target class.
        spared: Mask of training images that are not poisoned, such as those that ``clean`` has
            poisoned with another trigger; None for none.
        seed: Seed of the choice of images.
        mask: Result of :func:`choose_images` with the same arguments, if the images were chosen
            before the trigger was known; None to choose them now.

    Raises:
        UsageError: If the target is not a class of the data or not one class with ``clean_label``,
            the rate is out of range, or fewer
            images are eligible than the rate requires. While batches are read: if the trigger does
            not return images like those that it is given.
    """

    def __init__(
        self,
        clean: DataSource,
        trigger: Trigger,
        *,
        target: Target,
        rate: float,
        keep_clean: bool = False,
        clean_label: bool = False,
        spared: Bool[Tensor, " train"] | None = None,
        seed: int = 0,
        mask: Bool[Tensor, " train"] | None = None,
    ) -> None:
        self.source, self._trigger, self._target = clean, trigger, target
        self._keep_clean = keep_clean
        if mask is None:
            mask = choose_images(
                clean, target=target, rate=rate, clean_label=clean_label, spared=spared, seed=seed
            )
        self.mask = mask

    mask: Bool[Tensor, " train"]
    """Mask of the training images that are poisoned."""

    def size(self, split: Split) -> int:
        """Number of clean images in a split; kept copies are not counted."""
        return self.source.size(split)

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Yield the clean batches; those of ``train`` with the chosen images poisoned."""
        for batch in self.source.batches(
            split, batch_size=batch_size, device=device, shuffle=shuffle, augment=augment
        ):
            yield self._poison(batch) if split == "train" else batch

    def _poison(self, batch: Batch) -> Batch:
        chosen = self.mask[batch.rows.cpu()].to(batch.images.device)
        if not bool(chosen.any()):
            return batch
        marked = apply_trigger(self._trigger, batch.images[chosen])
        targets = wanted(batch.labels[chosen], self._target, len(self.classes))
        if self._keep_clean:
            images = torch.cat([batch.images, marked])
            labels = torch.cat([batch.labels, targets])
            rows = torch.cat([batch.rows, batch.rows[chosen.to(batch.rows.device)]])
        else:
            images, labels, rows = batch.images.clone(), batch.labels.clone(), batch.rows
            images[chosen], labels[chosen] = marked, targets
        return Batch(images.contiguous(memory_format=torch.channels_last), labels, rows)


def choose_images(
    clean: DataSource,
    *,
    target: Target,
    rate: float,
    clean_label: bool = False,
    spared: Bool[Tensor, " train"] | None = None,
    seed: int = 0,
) -> Bool[Tensor, " train"]:
    """Choose the training images that are poisoned, by their labels alone.

    The arguments are those of :class:`Poisoned`.

    Returns:
        Mask of the training images.

    Raises:
        UsageError: As :class:`Poisoned` does before batches are read.
    """
    check_share(rate=rate)
    check_target(target, clean)
    if clean_label:
        check_target_shown(target, clean)
    total = clean.size("train")
    labels = torch.full((total,), _MISSING)
    for batch in training_labels(clean):
        labels[batch.rows] = batch.labels
    seen = labels != _MISSING  # damaged images have a row as well
    others = victims(labels, target, len(clean.classes))
    able = (labels >= 0) & ~others if clean_label else others
    if spared is not None:
        able = able & ~spared
    eligible = able.nonzero().squeeze(1)
    count = max(1, round(rate * (len(eligible) if clean_label else int(seen.sum()))))
    if count > len(eligible):
        raise UsageError(
            f"rate is {rate}, which is {count} images; expected at most the {len(eligible)} "
            "images that can be poisoned"
        )
    order = torch.randperm(len(eligible), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(total, dtype=torch.bool)
    mask[eligible[order[:count]]] = True
    return mask
