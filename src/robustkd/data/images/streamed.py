"""Data source of encoded images, which are streamed or decoded once and kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from robustkd.core.errors import InputError
from robustkd.core.names import unfit
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource, Places, Plan, Split
from robustkd.data.augment import Augmentation, check_augmentation, part_of
from robustkd.data.images.content import content_sha256
from robustkd.data.images.holdout import Cut, as_json
from robustkd.data.images.listing import Listing, shown
from robustkd.data.images.loader import Decoded, Decoding, Form, Part, SomeRows, cut
from robustkd.data.images.options import Reading
from robustkd.data.in_memory import InMemory, pass_order, to_floats
from robustkd.data.labelled import Labelled, first_rows

MOST_UNDECODABLE = 0.01
"""Largest share of damaged images in a split; they are left out and reported."""

_NAMED = 5
_AT_ONCE = 64

_log = logging.getLogger(__name__)


class Held(NamedTuple):
    """A decoded split; the pixels of damaged images are zero and never used."""

    pixels: UInt8[Tensor, "n channels height width"]
    good: Bool[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Pictures:
    """A `robustkd.core.types.DataSource` of encoded images.

    Images that cannot be decoded are left out of the batches and reported. They are included in
    `size` and in the numbering of rows, so that a row always means the same image.

    Args:
        name: Short name, written into results.
        classes: Names of the classes.
        parts: The three splits.
        image_size: Height and width.
        reading: How images are read.
        augmentation: Augmentation that `batches` applies if it receives a generator for it.
        made: The held-out split, if the data set does not have its own.
        skipped: Number of files and folders that were left out, by kind.
        outputs: Number of the teacher's output for each class, if the teacher has more classes;
            see :func:`robustkd.data.images.class_names.read_class_names`.
        outputs_of: Number of the teacher's outputs, if it has more and their number is known.

    Raises:
        InputError: If there are fewer than two classes, a split is empty, or a label is not a
            class.
    """

    name: str
    classes: tuple[str, ...]
    parts: Mapping[Split, Part] = field(repr=False)
    image_size: int
    reading: Reading
    augmentation: Augmentation
    made: Cut | None = field(default=None, repr=False)
    skipped: Mapping[str, int] = field(default_factory=dict)
    outputs: tuple[int, ...] = ()
    outputs_of: int | None = None
    _held: dict[Split, Held] = field(default_factory=dict, init=False, repr=False)
    _failed: dict[Split, dict[int, str]] = field(default_factory=dict, init=False, repr=False)
    _content: list[str] = field(default_factory=list, init=False, repr=False)
    _decoding: Decoding = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_augmentation(self.augmentation)
        if (expected := unfit(self.name)) is not None:
            raise InputError(
                f"{shown(self.name)} is not a valid name for results; expected {expected}: rename "
                "the folder"
            )
        if len(self.classes) < 2:
            found = ", ".join(map(repr, self.classes)) or "none"
            raise InputError(
                f"{shown(self.name)}: expected at least two classes, found {found}; give a folder "
                "that holds one folder per class"
            )
        for split, part in self.parts.items():
            if not len(part):
                raise InputError(f"{shown(self.name)} {split}: no images; check the source")
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= len(self.classes):
                raise InputError(
                    f"{shown(self.name)} {split}: labels reach from {low} to {high}, expected 0 "
                    f"to {len(self.classes) - 1}; check that they belong to this data set"
                )
        reading = self.reading
        form = Form(
            self.image_size,
            reading.channels,
            reading.crop,
            reading.resize,
            reading.interpolation,
        )
        object.__setattr__(self, "_decoding", Decoding(self.parts, form))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        return self.reading.channels, self.image_size, self.image_size

    @property
    def crop(self) -> float:
        """Share of the shorter side of each image that is kept, as a centred square."""
        return float(self.reading.crop)

    @property
    def resize(self) -> str:
        """How an image is brought to a square: one of `robustkd.core.types.RESIZES`."""
        return self.reading.resize

    @property
    def interpolation(self) -> str:
        """Filter for resampling: one of `robustkd.core.types.INTERPOLATIONS`."""
        return self.reading.interpolation

    @property
    def streamed(self) -> bool:
        """Whether images are decoded again in every epoch."""
        return self.reading.streams(sum(map(len, self.parts.values())), self.image_size)

    def size(self, split: Split) -> int:
        """Return the number of images in ``split``, including damaged ones."""
        return len(self.parts[split])

    def undecodable(self, split: Split) -> dict[str, str]:
        """Return the names of the damaged images that were found so far, with the reasons."""
        part = self.parts[split]
        return {part.name(row): why for row, why in sorted(self._failed.get(split, {}).items())}

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate once over ``split``, as `robustkd.core.types.DataSource.batches` describes.

        Raises:
            UsageError: If ``batch_size`` is below 1.
            InputError: During the iteration, if too many images cannot be decoded.
        """
        order = pass_order(self.size(split), batch_size, shuffle).numpy()
        return self._pass(split, list(cut(order, batch_size)), device, augment)

    def portions(
        self,
        split: Split,
        *,
        batch_size: int,
        plan: Plan,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate over parts of the batches of `batches`; see `robustkd.data.portions.Divided`.

        Only the images of these parts are decoded. Images that are known to be damaged are left
        out of the batches before they are divided; all processes have to know the same ones,
        as they do after each has read the whole split.
        """
        order = pass_order(self.size(split), batch_size, shuffle).numpy()
        damaged = self._damaged(split)
        whole = [rows[~damaged[rows]] for rows in cut(order, batch_size)]
        whole = [rows for rows in whole if len(rows)]
        places = plan([len(rows) for rows in whole])
        own = [rows[chosen.numpy()] for rows, chosen in zip(whole, places, strict=True)]
        sizes = [len(rows) for rows in whole]
        return self._pass(split, own, device, augment, list(zip(places, sizes, strict=True)))

    def subset(
        self,
        *,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> Pictures:
        """Return a subset of the source; see `robustkd.data.InMemory.subset`.

        Raises:
            UsageError: If a number is out of range.
        """
        wanted: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
        return replace(
            self, parts={split: self._first(split, n, seed) for split, n in wanted.items()}
        )

    def with_augmentation(self, augmentation: Augmentation) -> Pictures:
        """Return a source of the same images with another augmentation; decoded ones are shared."""
        return self._sharing(replace(self, augmentation=augmentation))

    def renamed(self, name: str) -> Pictures:
        """Return a source of the same images with another name; decoded ones are shared."""
        return self._sharing(replace(self, name=name))

    def content(self) -> str | None:
        """Return the hash of names, classes and bytes of all images; None without a folder.

        It does not depend on the place and the name of the folder.
        """
        if not all(isinstance(part.files, Listing) for part in self.parts.values()):
            return None
        if not self._content:
            self._content.append(content_sha256(self.parts))
        return self._content[0]

    def _sharing(self, made: Pictures) -> Pictures:
        made._held.update(self._held)
        made._failed.update(self._failed)
        made._content.extend(self._content)
        object.__setattr__(made, "_decoding", self._decoding)
        return made

    def in_memory(self) -> InMemory:
        """Return the decoded images, without damaged ones, as a source in memory.

        Raises:
            InputError: If too many images cannot be decoded.
        """
        held: dict[str, Labelled] = {}
        for split, part in self.parts.items():
            pixels, good = self._hold(split)
            labels = torch.from_numpy(part.labels_at(np.flatnonzero(good)))
            held[split] = Labelled(pixels[torch.from_numpy(good)], labels)
        return InMemory(
            name=self.name,
            classes=self.classes,
            augmentation=self.augmentation,
            resize=self.resize,
            crop=self.crop,
            interpolation=self.interpolation,
            **held,
        )

    def _pass(
        self,
        split: Split,
        batches: Sequence[SomeRows],
        device: torch.device | str,
        augment: torch.Generator | None,
        portions: Sequence[tuple[Places, int]] | None = None,
    ) -> Iterator[Batch]:
        part = self.parts[split]
        found = self._stream if self.streamed else self._recall
        for number, (pixels, rows, _) in enumerate(found(split, batches)):
            if not len(rows) and portions is None:
                continue
            images = to_floats(torch.from_numpy(pixels), device)
            places, total = (None, len(rows)) if portions is None else portions[number]
            if places is not None and len(places) != len(rows):
                raise InputError(
                    f"{shown(self.name)} {split}: an image that could be decoded before the "
                    "training cannot be decoded any more; check the disk"
                )
            if augment is not None:
                images = part_of(self.augmentation, images, augment, places, total)
            chosen = (torch.from_numpy(part.labels_at(rows)), torch.from_numpy(rows))
            yield Batch(images, *(numbers.to(device, torch.int64) for numbers in chosen))

    def _stream(self, split: Split, batches: Sequence[SomeRows]) -> Iterator[Decoded]:
        workers = self.reading.workers_for(sum(map(len, batches)))
        for batch in self._decoding.decode(split, batches, workers=workers):
            self._note(split, batch.failures)
            yield batch

    def _recall(self, split: Split, batches: Sequence[SomeRows]) -> Iterator[Decoded]:
        pixels, good = self._hold(split)
        for rows in batches:
            rows = rows[good[rows]]
            yield Decoded(pixels[torch.from_numpy(rows)].numpy(), rows, [])

    def _damaged(self, split: Split) -> Bool[np.ndarray, " n"]:
        damaged = np.zeros(self.size(split), dtype=np.bool_)
        damaged[list(self._failed.get(split, {}))] = True
        return damaged

    def _hold(self, split: Split) -> Held:
        """Decode a split on first use and keep it."""
        if split not in self._held:
            n = self.size(split)
            held = Held(
                torch.zeros((n, *self.image_shape), dtype=torch.uint8), np.zeros(n, dtype=np.bool_)
            )
            try:
                with track(f"read {split}", -(-n // _AT_ONCE)) as update:
                    for pixels, rows, _ in self._stream(split, list(cut(np.arange(n), _AT_ONCE))):
                        held.pixels[torch.from_numpy(rows)] = torch.from_numpy(pixels)
                        held.good[rows] = True
                        update()
            finally:
                self._decoding.end()  # its processes have nothing more to do
            self._held[split] = held
        return self._held[split]

    def _note(self, split: Split, failures: Iterable[tuple[int, str]]) -> None:
        """Report damaged images, and raise an error if there are too many."""
        part, known = self.parts[split], self._failed.setdefault(split, {})
        for row, why in failures:
            if row in known:
                continue
            known[row] = why
            name = shown(part.name(row))
            if len(known) > MOST_UNDECODABLE * len(part):
                raise InputError(
                    f"{shown(self.name)} {split}: {len(known)} of {len(part)} images cannot be "
                    f"decoded, the last {name} ({shown(why)}); expected at most "
                    f"{MOST_UNDECODABLE:.0%}: replace or remove them"
                )
            if len(known) <= _NAMED:
                _log.warning("%s is left out: it cannot be decoded (%s)", name, shown(why))

    def _first(self, split: Split, n: int | None, seed: int) -> Part:
        part = self.parts[split]
        if n is None:
            return part
        kept = first_rows(
            torch.from_numpy(part.labels.astype(np.int64)),
            n,
            split=split,
            name=self.name,
            classes=len(self.classes),
            seed=seed,
        )
        return Part(part.files, part.rows[kept.numpy()])


def split_text(source: DataSource) -> Iterator[str] | None:
    """Return the held-out split of a source as JSON; None if the data set has its own splits.

    A file with this text can be given as `Reading.split`. The text is generated in pieces, so that
    the names of a large split are never in memory together.
    """
    if not isinstance(source, Pictures) or source.made is None:
        return None
    return as_json(source.made, source.parts["train"].files)
