"""Measure the cost of a step of each method relative to a floor that no method can go below.

    python benchmarks/speed.py --out benchmarks/results/speed-ratio

The floor is what every distillation has to compute at least: the output of the teacher, whose
BatchNorm layers are folded into its convolutions, and one step of the student on its labels, both
on tensors that are ready in memory. A row is compared with the floor in pairs of blocks of steps,
which alternate, in one process with one thread. The processor time of a block is measured, so that
other processes disturb little. Rows run the functions that users call: loading and augmentation of
images, the losses, the optimiser and the records of the training are part of a step.

The process keeps freed memory, as the command ``robustkd`` does. This makes all rows faster, the
script of a user as well. All programs share one heap, that of the main thread: the C library would
give the other threads heaps of their own, whose free memory it returns to the operating system in
every step.

The rows of torchdistill and mdistiller need these libraries, which are no dependencies of RobustKD.
Without them, they are left out. mdistiller's networks take coloured images of 32 x 32 pixels alone.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import mdistiller_distillation as toolkit
import plain_distillation as plain
import torch
import torch.nn.functional as F
import torchdistill_distillation as library
from pacing import Pace, Paced, PacedSource, paced
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustkd import models
from robustkd.core.allocator import keep_freed_memory
from robustkd.core.environment import environment
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.methods import find_method
from robustkd.core.types import Batch
from robustkd.data import CropFlip, InMemory, Labelled
from robustkd.models.features.stages import stages
from robustkd.pipeline.student import make_student
from robustkd.training.config import TrainingConfig
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

_COMPILING = 3
"""Number of steps in which networks are compiled, possibly again for a second kind of inputs."""
_ARENA_MAX = -8
"""Parameter of ``mallopt`` in the GNU C library: the largest number of heaps."""
CLASSES = 10
OURS = ("kd", "ofd", "mix", "additions", "learned", "default")
ROWS = {
    **{name: f"RobustKD, {name}" for name in OURS},
    "script-kd": "plain script, kd",
    "script-ofd": "plain script, ofd",
    "torchdistill-kd": "torchdistill, kd",
    "torchdistill-kd-channels": "torchdistill, kd, channels_last",
    "mdistiller-kd": "mdistiller, kd",
    "mdistiller-ofd": "mdistiller, ofd",
}
LIBRARIES = {
    "torchdistill": "pip install torchdistill",
    "mdistiller": f"pip install git+https://github.com/megvii-research/mdistiller@{toolkit.COMMIT}",
}
"""Libraries that rows need, and the commands that install them."""


@dataclass(frozen=True)
class Setting:
    """Networks and images of a comparison."""

    teacher: str
    student: str
    shape: tuple[int, int, int]
    batch_size: int

    def __str__(self) -> str:
        channels, *size = self.shape
        return (
            f"{self.teacher} to {self.student}, {channels} x {size[0]} x {size[1]}, "
            f"batch {self.batch_size}"
        )


SETTINGS = {
    "wrn10-28": Setting("wrn-10-2", "wrn-10-1", (1, 28, 28), 64),
    "wrn10-32": Setting("wrn-10-2", "wrn-10-1", (3, 32, 32), 128),
    "wrn16-32": Setting("wrn-16-2", "wrn-16-1", (3, 32, 32), 64),
}


def fold(model: models.Classifier) -> models.Classifier:
    """Fold every BatchNorm of a wide residual network that follows a convolution into it."""
    network = model.network
    blocks = [module for module in network.modules() if hasattr(module, "conv2")]
    if blocks[0].shortcut is not None:  # otherwise the stem is also added to the block's output
        network.stem = fuse_conv_bn_eval(network.stem, blocks[0].bn1)
        blocks[0].bn1 = nn.Identity()
    for block in blocks:
        block.conv1 = fuse_conv_bn_eval(block.conv1, block.bn2)
        block.bn2 = nn.Identity()
    return model


@dataclass(frozen=True)
class Bench:
    """What all programs of a setting share."""

    setting: Setting
    source: InMemory
    teacher: models.Classifier
    precision: str
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of autocast; None for full precision."""
        return torch.bfloat16 if self.precision == "bf16" else None

    def student(self) -> models.Classifier:
        """Return the student before its training."""
        return models.builder(self.source)(self.setting.student, 0)

    def floor(self, pace: Pace) -> None:
        """Compute the output of a folded teacher and a step of the student on ready tensors."""
        taught = copy.deepcopy(self.teacher).eval()
        folded = fold(taught).to(memory_format=torch.channels_last)
        learner = self.student().train()
        steps = plain.optimiser(learner.parameters())
        ready = list(itertools.islice(self._ready(), 4))
        for batch in paced(itertools.cycle(ready), pace):
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
                with torch.inference_mode():
                    folded(batch.images)
                loss = F.cross_entropy(learner(batch.images), batch.labels)
            steps.zero_grad()
            loss.backward()
            steps.step()

    def _ready(self) -> Iterator[Batch]:
        return self.source.batches("train", batch_size=self.setting.batch_size)

    def ours(self, method: str, pace: Pace) -> None:
        """Run a method of RobustKD."""
        make_student(
            copy.deepcopy(self.teacher),
            self.student(),
            PacedSource(self.source, pace),
            find_method(method),
            training=TrainingConfig(
                epochs=1,
                batch_size=self.setting.batch_size,
                precision=self.precision,
                compile=self.compiled,
            ),
        )

    def _pictures(self) -> plain.Pictures:
        """Return the images as a user's data set."""
        spec, held = self.teacher.spec, self.source.train
        return plain.Pictures(held.images, held.labels, spec.mean, spec.std)

    def _networks(self, memory_format: torch.memory_format) -> tuple[nn.Module, nn.Module]:
        """Return copies of teacher and student without their normalisation of the images."""
        return (
            copy.deepcopy(self.teacher.network).to(memory_format=memory_format),
            self.student().network.to(memory_format=memory_format),
        )

    def script(self, loss: str, pace: Pace) -> None:
        """Run the script of a user on networks in PyTorch's own memory format."""
        teacher, student = self._networks(torch.contiguous_format)
        batches = paced(plain.loader(self._pictures(), self.setting.batch_size), pace)
        if loss == "kd":
            plain.distil_logits(teacher, student, batches, self.dtype)
            return
        images = next(self._ready()).images[:4]
        taps = [name.removeprefix("network.") for name in stages(self.teacher, images)]
        plain.distil_features(teacher, student, taps, batches, self.dtype)

    def torchdistill(self, memory_format: torch.memory_format, pace: Pace) -> None:
        """Run torchdistill on networks and images in a memory format."""
        trainer = library.box(
            *self._networks(memory_format), self._pictures(), self.setting.batch_size
        )
        batches = paced(trainer.train_data_loader, pace)
        library.distil(trainer, batches, self.dtype, memory_format)

    def mdistiller(self, loss: str, pace: Pace) -> None:
        """Run mdistiller on networks of its own with the same sizes."""
        teacher, student = (
            toolkit.network(arch, CLASSES) for arch in (self.setting.teacher, self.setting.student)
        )
        batches = paced(plain.loader(self._pictures(), self.setting.batch_size), pace)
        toolkit.distil(toolkit.distiller(loss, teacher, student), batches, self.dtype)

    def program(self, row: str) -> Callable[[Pace], None]:
        """Return the program of a row."""
        kind, _, name = row.partition("-")
        if kind == "script":
            return lambda pace: self.script(name, pace)
        if kind == "mdistiller":
            return lambda pace: self.mdistiller(name, pace)
        if kind == "torchdistill":
            channels_last = name.endswith("-channels")
            form = torch.channels_last if channels_last else torch.contiguous_format
            return lambda pace: self.torchdistill(form, pace)
        return lambda pace: self.ours(row, pace)


def library_of(row: str) -> str | None:
    """Return the library that a row needs, or None."""
    name = row.partition("-")[0]
    return name if name in LIBRARIES else None


def all_rows() -> list[str]:
    """Return all rows, without those of libraries that are not installed."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    for name in missing:
        sys.stderr.write(
            f"{name} is not installed, and its rows are left out; {LIBRARIES[name]} adds them\n"
        )
    return [row for row in ROWS if library_of(row) not in missing]


def rows_for(setting: Setting, rows: list[str]) -> list[str]:
    """Return the rows that can be measured in a setting: mdistiller has one size of images."""
    fits = setting.shape == toolkit.SHAPE
    return [row for row in rows if fits or library_of(row) != "mdistiller"]


def bench(setting: Setting, precision: str, steps: int, *, compiled: bool = False) -> Bench:
    """Make random images of ten classes, and train the teacher on a few of them."""
    images = steps * setting.batch_size
    random = torch.Generator().manual_seed(0)
    centres = torch.randint(256, (CLASSES, *setting.shape), generator=random)
    labels = torch.randint(CLASSES, (images,), generator=random)
    noise = torch.randint(256, (images, *setting.shape), generator=random)
    pixels = ((centres[labels] + noise) // 2).to(torch.uint8)
    train = Labelled(pixels, labels)
    few = Labelled(pixels[: 10 * setting.batch_size], labels[: 10 * setting.batch_size])
    classes = tuple(map(str, range(CLASSES)))
    source = InMemory("random", classes, train, few, few, CropFlip(pad=4, flip=True))
    teacher = models.builder(source)(setting.teacher, 1)
    fit(Supervised(teacher), InMemory("few", classes, few, few, few), epochs=1, lr=0.02)
    return Bench(setting, source, teacher.eval(), precision, compiled)


def training_steps(taken: int) -> int:
    """Return the length of a training in whose first ``taken`` steps no loss has ended."""
    shares = [share for name in OURS for share in find_method(name).until.values()]
    return math.ceil(taken / min(shares, default=1.0)) + 1


def measure(tried: Bench, rows: list[str], blocks: int, steps: int) -> dict[str, object]:
    """Measure rows in pairs with the floor; return the times of each block in milliseconds."""
    programs = {row: Paced(tried.program(row)) for row in rows}
    floor = Paced(tried.floor)
    for program in (floor, *programs.values()):
        program.advance(steps + (_COMPILING if tried.compiled else 0))
    times: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
    for block in range(blocks):
        for row, program in programs.items():
            first, second = (program, floor) if block % 2 else (floor, program)
            pair = (first.advance(steps), second.advance(steps))
            own, least = pair if block % 2 else pair[::-1]
            times[row].append((round(1000 * own, 3), round(1000 * least, 3)))
    for program in (floor, *programs.values()):
        program.end()
    return {
        "setting": str(tried.setting),
        "precision": tried.precision,
        "compiled": tried.compiled,
        "milliseconds of a step and of the floor": times,
        "rows": {row: summary(pairs) for row, pairs in times.items()},
    }


def summary(pairs: list[tuple[float, float]]) -> dict[str, float | int]:
    """Return the median of the ratios with quartiles, and the medians of the times."""
    ratios = [own / least for own, least in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": round(middle, 3),
        "lower quartile": round(low, 3),
        "upper quartile": round(high, 3),
        "n": len(ratios),
        "milliseconds": round(statistics.median(own for own, _ in pairs), 2),
        "milliseconds of the floor": round(statistics.median(least for _, least in pairs), 2),
    }


def table(found: list[dict[str, object]]) -> str:
    """Format the ratios as a Markdown table with one column for each setting and precision."""
    names = {"no": "fp32", "bf16": "bf16"}
    kinds = [f"{names[one['precision']]}{', compiled' * one['compiled']}" for one in found]
    head = [f"{one['setting']}, {kind}" for one, kind in zip(found, kinds, strict=True)]
    lines = [["step of", *head], ["---", *["---:"] * len(head)]]
    for row in dict.fromkeys(row for one in found for row in one["rows"]):
        cells = [one["rows"].get(row) for one in found]
        lines.append([ROWS[row], *map(_cell, cells)])
    floors = [
        statistics.median(row["milliseconds of the floor"] for row in one["rows"].values())
        for one in found
    ]
    lines.append(["floor, milliseconds of CPU time", *(f"{floor:.1f}" for floor in floors)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row: dict[str, float] | None) -> str:
    if row is None:
        return "-"
    return f"{row['ratio']:.2f} [{row['lower quartile']:.2f}, {row['upper quartile']:.2f}]"


def main() -> None:
    """Measure the chosen settings, and write ``speed-ratio.json`` and ``speed-ratio.md``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["wrn10-28"])
    parser.add_argument("--precisions", nargs="+", choices=["no", "bf16"], default=["no"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=None, help="default: all rows")
    parser.add_argument("--blocks", type=int, default=27, help="number of pairs for each row")
    parser.add_argument("--steps", type=int, default=1, help="number of steps of a block")
    parser.add_argument(
        "--compile", action="store_true", help="measure RobustKD's rows with --compile as well"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args()
    rows = given.rows or all_rows()
    needed = {name: row for row in reversed(rows) if (name := library_of(row)) is not None}
    for name, row in needed.items():
        if find_spec(name) is None:
            parser.error(f"row {row} needs {name}: {LIBRARIES[name]}")
    for setting in (SETTINGS[name] for name in given.settings if given.rows is not None):
        if rows_for(setting, rows) != rows:
            parser.error(f"mdistiller has no networks for {setting}; expected other settings")
    versions = {name: version(name) for name in needed}
    torch.set_num_threads(1)
    if keep_freed_memory():
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)
    found = []
    kinds = (False, True) if given.compile else (False,)
    for name, precision, kind in itertools.product(given.settings, given.precisions, kinds):
        length = training_steps(given.steps * (given.blocks + 1) + _COMPILING)
        tried = bench(SETTINGS[name], precision, length, compiled=kind)
        found.append(measure(tried, rows_for(tried.setting, rows), given.blocks, given.steps))
        sys.stdout.write(f"{table(found[-1:])}\n")
        if given.out is not None:
            make_folder(given.out)
            where = {**environment(), **versions}
            content = {"steps": given.steps, "found": found, "environment": where}
            write_json(given.out / "speed-ratio.json", content)
            write_text(given.out / "speed-ratio.md", table(found))


if __name__ == "__main__":
    main()
