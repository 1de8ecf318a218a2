"""One measurement of ``benchmarks/growth.py``, in a process of its own: time and peak memory.

The images are random bytes of the right shape. The networks have fresh weights, and the members of
the families that the default method finds on the teacher are not learned, since neither changes
what a step costs. Everything else is what ``robustkd distill`` calls. ``bare`` is the loop that a
method is compared with: the output of the teacher and a step of the student on labels, with the
same batches.

Memory is that of the process on Linux. Before it is measured, a small training has loaded all code,
and freed memory is returned to the operating system.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import plain_distillation as plain
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from robustkd import models
from robustkd.core.allocator import keep_freed_memory
from robustkd.core.methods import find_method
from robustkd.core.types import Batch, DataSource, Split
from robustkd.data import InMemory, Labelled, Reading, load_folder
from robustkd.models.features.stages import stages
from robustkd.pipeline.hardening import find_for
from robustkd.student.distillation import distill
from robustkd.student.families import make_family
from robustkd.student.found import STRENGTHS, FoundPerturbations
from robustkd.student.hardening import UniversalPerturbations
from robustkd.training.checkpoint import State, save_state

BARE, SEARCH = "bare", "search"
_VALIDATION, _LARGE, _FEW = 256, 64, 64
"""Validation images, fewer for sides above 64."""
_VARIANTS, _LINKS = 50, 20_000
"""Numbers of different images in files, and of links to one file, which file systems limit."""


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        method: A method of RobustKD; ``bare`` for the loop that it is compared with; ``search`` for
            one step at each strength of the search of the teacher.
        teacher: Architecture of the teacher.
        student: Architecture of the student.
        classes: Number of classes.
        channels: Channels of the images.
        side: Height and width of the images.
        batch: Images of a step.
        images: Training images; 0 for as many as the steps need.
        streamed: If True, images are read from files in every step.
        stages: Number of stages whose features are compared; 0 for all.
        families: Number of learned families of the method that are used; -1 for all.
        accumulate: Number of parts of a batch that are processed one after another.
        steps: Number of steps, of which the first is not timed.
    """

    method: str = BARE
    teacher: str = "wrn-16-2"
    student: str = "wrn-16-1"
    classes: int = 10
    channels: int = 3
    side: int = 32
    batch: int = 64
    images: int = 0
    streamed: bool = False
    stages: int = 0
    families: int = -1
    accumulate: int = 1
    steps: int = 4


def status(key: str) -> float:
    """Return a value of ``/proc/self/status`` in MiB: VmRSS is current memory, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def forget_peak() -> None:
    """Set the peak memory of this process to its current memory."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Watched:
    """Data source that ends an epoch after some steps, and notes time and memory at each of them.

    Its size is that of the whole source, so that the schedules are those of a whole training.
    """

    def __init__(self, source: DataSource, steps: int) -> None:
        self._source, self._steps = source, steps
        self.name, self.classes, self.image_shape = source.name, source.classes, source.image_shape
        self.began: list[float] = []
        self.set_up_peak = self.step_peak = 0.0

    def size(self, split: Split) -> int:
        """Return the number of images of a split."""
        return self._source.size(split)

    def batches(
        self,
        split: Split,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[Batch]:
        """Iterate over a split, as :meth:`robustkd.core.types.DataSource.batches` describes."""
        found = self._source.batches(
            split, batch_size=batch_size, device=device, shuffle=shuffle, augment=augment
        )
        return found if augment is None else self._noted(found)

    def _noted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        self.set_up_peak = status("VmHWM")
        forget_peak()
        self.began.append(time.process_time())
        for batch in itertools.islice(batches, self._steps):
            yield batch
            self.began.append(time.process_time())
        self.step_peak = status("VmHWM")
        forget_peak()


def prepared(case: Case, folder: Path) -> tuple[DataSource, nn.Module, nn.Module]:
    """Return images, teacher and student of a case.

    Args:
        case: What is measured.
        folder: Empty folder for the files of streamed images.
    """
    source = _files(case, folder) if case.streamed else _bytes(case)
    spec = models.Spec("", case.classes, (case.channels, case.side, case.side))
    teacher, student = (
        models.build(replace(spec, arch=arch), seed=seed)
        for seed, arch in enumerate((case.teacher, case.student))
    )
    return source, teacher.eval(), student


def _bytes(case: Case) -> InMemory:
    """Return random images in memory; validation and test images are few."""
    random = torch.Generator().manual_seed(0)
    count = case.images or case.steps * case.batch

    def split(size: int) -> Labelled:
        shape = (size, case.channels, case.side, case.side)
        pixels = torch.empty(shape, dtype=torch.uint8).random_(generator=random)
        return Labelled(pixels, torch.arange(size) % case.classes)

    few = split(_VALIDATION if case.side <= _LARGE else _FEW)
    names = tuple(map(str, range(case.classes)))
    augmentation = Reading().augmentation(case.side)
    return InMemory("random", names, split(count), few, few, augmentation)


def _files(case: Case, folder: Path) -> DataSource:
    """Return images in files, most of which are hard links to a few."""
    pixels = _bytes(replace(case, images=_VARIANTS)).train.images.permute(0, 2, 3, 1).numpy()
    counts = {"train": case.images, "validation": _VALIDATION, "test": case.classes}
    for split, count in counts.items():
        for label in range(case.classes):
            (folder / "data" / split / f"{label:04}").mkdir(parents=True)
        for number in range(count):
            model = folder / f"{number // _LINKS}-{number % _VARIANTS}.png"
            if not model.exists():
                Image.fromarray(pixels[number % _VARIANTS]).save(model)
            label = f"{number % case.classes:04}"
            os.link(model, folder / "data" / split / label / f"{number:08}.png")
    return load_folder(folder / "data", Reading(streaming=True, workers=0))


def bare(source: DataSource, teacher: nn.Module, student: nn.Module, batch_size: int) -> None:
    """Train the student on labels, and compute the output of the teacher for every batch."""
    steps = plain.optimiser(student.parameters())
    order, crops = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    student.train()
    for images, labels, _ in source.batches(
        "train", batch_size=batch_size, shuffle=order, augment=crops
    ):
        with torch.no_grad():
            teacher(images)
        loss = F.cross_entropy(student(images), labels)
        steps.zero_grad()
        loss.backward()
        steps.step()


def hardening_of(case: Case, source: DataSource) -> UniversalPerturbations | None:
    """Return the perturbations of the method of a case, with members that are not learned."""
    settings = find_method(case.method).hardening
    if settings is None:
        return None
    classes, shape, random = case.classes, source.image_shape, torch.Generator().manual_seed(0)
    given = asdict(settings)
    found = given.pop("found")
    if case.families >= 0:
        given["families"] = settings.families[: case.families]
    fixed = None
    if found:
        members = tuple(
            nn.ModuleList(make_family(name, classes, shape, random) for name in found)
            for _ in STRENGTHS
        )
        fixed = FoundPerturbations(members, torch.ones(len(members), len(found), classes))
    return UniversalPerturbations(classes, shape, fixed=fixed, **given)


class Stored:
    """Keeper that writes a checkpoint after the epoch."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def last(self) -> None:
        """Return no state to resume from."""

    def is_due(self) -> bool:
        """Return that no checkpoint is due between two steps."""
        return False

    def save(self, state: State) -> None:
        """Write the state."""
        save_state(state, self._file)


def train(
    case: Case, source: DataSource, teacher: nn.Module, student: nn.Module, folder: Path
) -> None:
    """Train the student of a case, as ``robustkd distill`` does, with a checkpoint at the end."""
    how = find_method(case.method)
    taps = {}
    if case.stages:
        images = next(source.batches("validation", batch_size=4)).images
        for side, network in (("teacher", teacher), ("student", student)):
            taps[f"{side}_taps"] = stages(network, images)[-case.stages :]
    distill(
        student,
        source,
        teacher=teacher,
        losses=how.losses,
        until=how.until,
        hardening=hardening_of(case, source),
        epochs=1,
        batch_size=case.batch,
        accumulate=case.accumulate,
        keeper=Stored(folder / "checkpoint.safetensors"),
        **taps,
    )


def load_code() -> None:
    """Run a small training of the default method, so that all code is loaded."""
    small = Case("default", "wrn-10-1", "wrn-10-1", side=8, batch=8, steps=2)
    with tempfile.TemporaryDirectory() as folder:
        train(small, *prepared(small, Path(folder)), Path(folder))


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Measure a case in this process.

    Returns:
        Memory in MiB: ``images``, that of images and networks before the training; ``set-up``,
        ``steps`` and ``validation`` (with the checkpoint), the peak of each part above this state;
        ``process``, the peak of the whole process. CPU time: ``milliseconds`` of a step, the
        median, and ``set-up seconds``.
    """
    load_code()
    settle()
    before = status("VmRSS")
    source, teacher, student = prepared(case, folder)
    watched = Watched(source, case.steps)
    settle()
    ready = status("VmRSS")
    keep_freed_memory()
    forget_peak()
    started = time.process_time()
    if case.method == SEARCH:
        find_for(find_method("default"), teacher, watched, seed=0, steps=1)
        seconds, peak = time.process_time() - started, status("VmHWM") - ready
        return {"set-up seconds": seconds, "set-up": peak, "process": peak + ready}
    if case.method == BARE:
        bare(watched, teacher, student, case.batch)
    else:
        train(case, watched, teacher, student, folder)
    validation = status("VmHWM")
    spent = [after - before for before, after in itertools.pairwise(watched.began)]
    return {
        "images": ready - before,
        "set-up": watched.set_up_peak - ready,
        "steps": watched.step_peak - ready,
        "validation": validation - ready,
        "process": max(watched.set_up_peak, watched.step_peak, validation),
        "milliseconds": 1000 * statistics.median(spent[1:]),
        "set-up seconds": watched.began[0] - started,
    }


def settle() -> None:
    """Return freed memory to the operating system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """Measure the case that is the argument, in JSON, and print the result as JSON."""
    torch.set_num_threads(1)
    case = Case(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(case, Path(folder))
    sys.stdout.write(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
