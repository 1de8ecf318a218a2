"""Flags that several commands share, and their checks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from cyclopts import App, ArgumentCollection, Parameter, Token

from robustkd.core.errors import InputError, UsageError
from robustkd.core.known_names import check_architecture, check_data, is_folder
from robustkd.core.launch import launched
from robustkd.training.config import TrainingOptions

if TYPE_CHECKING:
    from robustkd.core.types import DataSource
    from robustkd.data import Reading
    from robustkd.models import Classifier, Spec

# The largest seed for which 2 * seed + 1 is a valid seed of torch's generators.
_LARGEST_SEED = 2**62 - 1


def _named(_type: object, tokens: Sequence[Token]) -> str:
    """Convert an architecture; own code is accepted from the command line but not from a file."""
    (token,) = tokens
    if ":" not in token.value or token.source != "cli":
        check_architecture(token.value)
        return token.value
    from robustkd.models import OwnCode

    return OwnCode(token.value)


Arch: TypeAlias = Annotated[str, Parameter(converter=_named)]
_SEVERAL = Parameter(consume_multiple=True, negative="", show_default=False)


def _channels(_type: object, tokens: Sequence[Token]) -> tuple[float, ...]:
    """Convert one number per channel, separated by spaces or commas."""
    texts = [text for token in tokens for text in token.value.replace(",", " ").split()]
    try:
        return tuple(map(float, texts))
    except ValueError:
        shown = " ".join(texts)
        raise ValueError(
            f"{shown!r} is not a list of numbers; expected one number per channel"
        ) from None


Channels: TypeAlias = Annotated[
    tuple[float, ...],
    Parameter(
        consume_multiple=True, negative="", show_default=False, converter=_channels, n_tokens=-1
    ),
]
Paths: TypeAlias = Annotated[tuple[str, ...], _SEVERAL]
Services: TypeAlias = Annotated[tuple[Literal["wandb", "mlflow"], ...], _SEVERAL]


@Parameter(name="*")
@dataclass(frozen=True)
class ImageFlags:
    """How the images of a folder are read.

    Attributes:
        image_size: Height and width of the models' input; not needed if all images have this size,
            or if it is stated for the teacher's weights.
        grey: Read one channel instead of three.
        crop: Keep this share of the shorter side, as a centred square. Default: as stated for the
            teacher's weights, else 1.
        resize: ``squash`` resizes images of any proportions to a square, and ``--crop`` is then a
            share of both sides. Default: as stated for the teacher's weights, else
            ``centred-square``.
        interpolation: Filter for resampling. Default: as stated for the teacher's weights, else
            ``bilinear``.
        flip: Mirror images in training.
        class_names: Text file with the names of the class folders, in the order of the teacher's
            outputs. If the teacher has more classes: the names of all its outputs, or lines such
            as ``309 bee`` that begin with the number of an output.
        split: File split.json of an earlier run on the same folder.
        workers: Number of processes that decode images.
        streaming: Decode the images again in every epoch, or keep all in memory. Default: by size.
    """

    image_size: int | None = None
    grey: Annotated[bool, Parameter(negative="")] = False
    crop: float | None = None
    resize: Literal["centred-square", "squash"] | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"] | None = (
        None
    )
    flip: bool = True
    class_names: Path | None = None
    split: Path | None = None
    workers: int | None = None
    streaming: bool | None = None


IMAGES = ImageFlags()
_EXPORTED = (".onnx", ".pt2")


@Parameter(name="*")
@dataclass(frozen=True)
class TeacherFlags:
    """How the file of a teacher is read.

    Attributes:
        mean: Mean of each channel, in [0, 1], with which the teacher's images were normalised, as
            in ``distill``.
        std: Standard deviation of each channel, likewise.
        teacher_key: Key of the state dict in the teacher's file, as in ``distill``.
        allow_weak_sandbox: Read the teacher's file even on a system without seccomp, where a flaw
            in the reader could be exploited.
    """

    mean: Channels = ()
    std: Channels = ()
    teacher_key: str | None = None
    allow_weak_sandbox: Annotated[bool, Parameter(negative="")] = False


TEACHER = TeacherFlags()

TrainingFlags: TypeAlias = Annotated[
    TrainingOptions | None, Parameter(name="*", group="Training", show_default=False)
]


def check_whole(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Raise an error for a fraction where an integer is expected; cyclopts would round it."""
    for argument in arguments:
        if _of_whole_numbers(argument.hint):
            for token in argument.tokens:
                with suppress(ValueError):
                    if not float(token.value).is_integer():
                        raise UsageError(
                            f"{argument.name} is {token.value}; expected a whole number"
                        )


def _of_whole_numbers(hint: object) -> bool:
    return hint is int or any(map(_of_whole_numbers, get_args(hint)))


def check_training(training: TrainingOptions, seed: int) -> None:
    """Raise an error for training settings that are out of range."""
    check_at_least("--epochs", training.get("epochs", 1), 1)
    check_at_least("--batch-size", training.get("batch_size", 2), 2)
    check_at_least("--seed", seed, 0)
    if seed > _LARGEST_SEED:
        raise UsageError(f"--seed is {seed}; expected at most {_LARGEST_SEED}")
    lr = training.get("lr", 1.0)
    if not 0 < lr < math.inf:
        raise UsageError(f"--lr is {lr}; expected a finite number above 0")


def choose_device(device: str, threads: int | None) -> None:
    """Set the device of all trainings of this process, and the number of threads.

    Raises:
        UsageError: If there is no such device, or the number of threads is below 1.
    """
    if threads is not None:
        check_at_least("--threads", threads, 1)
    found = re.fullmatch(r"auto|cpu|mps|cuda(?::(\d{1,3}))?", device)
    if found is None:
        raise UsageError(f"--device is {device!r}; expected auto, cpu, cuda, cuda:NUMBER or mps")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif found[1] is not None:
        if launched().several:
            raise UsageError(
                f"--device is {device!r}, one device for {launched().count} processes; expected "
                "cuda, which gives each process its own"
            )
        # Before torch looks for devices, so that the number is that of the whole machine.
        os.environ["CUDA_VISIBLE_DEVICES"] = found[1]
    if threads is None and device in ("auto", "cpu"):
        return
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    kind = device.partition(":")[0]
    if kind in ("cuda", "mps") and not torch.get_device_module(kind).is_available():
        raise UsageError(
            f"--device is {device!r}; this machine has no such device: leave the flag out"
        )


def open_data(
    data: str, root: Path | None, images: ImageFlags, *, classes: tuple[str, ...] | None = None
) -> DataSource:
    """Open the data that the flags name; ``--class-names`` overrides ``classes``."""
    check_data(data)
    from robustkd.data import open_source

    return open_source(data, root=root, reading=reading_of(images, classes=classes))


def reading_of(images: ImageFlags, *, classes: tuple[str, ...] | None = None) -> Reading:
    """Return how images are read; ``--class-names`` overrides ``classes``."""
    from robustkd.data import Reading

    form = ("crop", "resize", "interpolation")
    given = {name: getattr(images, name) for name in form if getattr(images, name) is not None}
    return Reading(
        image_size=images.image_size,
        channels=1 if images.grey else 3,
        flip=images.flip,
        workers=images.workers,
        streaming=images.streaming,
        classes=images.class_names or classes,
        split=images.split,
        **given,
    )


def open_student(
    path: Path, arch: str | None, data: str, root: Path | None, images: ImageFlags
) -> tuple[Classifier, DataSource]:
    """Load a student from its file or the folder of its run, and the data that it was made for.

    Raises:
        UsageError: If a name is unknown.
        InputError: If the student's file is damaged, or the student was made for other data.
    """
    from robustkd import models

    path = student_of(path)
    model = models.load(path, arch=arch)
    source = _data_of(model.spec, data, root, images)
    models.check_fits(
        model.spec,
        path,
        classes=len(source.classes),
        image_shape=source.image_shape,
        names=source.classes,
    )
    return model, source


def student_of(path: Path) -> Path:
    """Return the student's file in the folder of a run; any other path as it is.

    Raises:
        InputError: If the path is the folder of an export, or one of its ONNX files or programs,
            which are never loaded.
    """
    inner = path / "student.safetensors"
    if os.path.lexists(inner):
        return inner
    exported = path.suffix in _EXPORTED and path.is_file()
    if exported or os.path.lexists(path / "export.json"):
        raise InputError(
            f"{path} is an exported model, which only robustkd export measures; give the "
            "student.safetensors that was exported, or the folder of its run"
        )
    return path


def open_model(
    path: Path,
    arch: str | None,
    data: str,
    root: Path | None,
    images: ImageFlags,
    teacher: TeacherFlags,
) -> tuple[Classifier, DataSource]:
    """Load a student as :func:`open_student` does, or a teacher's file of any kind.

    A line on stderr says how the images are read, if a file or a library states it.

    Raises:
        UsageError: If a name is unknown, the architecture of a teacher's file is not given, or
            flags for teachers are given with a student.
        InputError: If the file is refused or does not fit the data.
    """
    from robustkd.models.model_file import is_described

    path = student_of(path)
    if not os.path.exists(path) or is_described(path):
        for name in ("mean", "std", "teacher_key"):
            if getattr(teacher, name):
                raise UsageError(
                    f"--{name.replace('_', '-')} is given, but {path} is a file of robustkd, which "
                    "states its own: leave it out"
                )
        return open_student(path, arch, data, root, images)
    from robustkd.cli.output import print_progress
    from robustkd.pipeline.opening import form_line, open_teacher

    read, clean = open_teacher(
        path, arch, data, root, reading_of(images), given_of(images), **asdict(teacher)
    )
    for line in form_line(clean, read.model.spec, read.file.normalisation):
        print_progress(line)
    return read.model, clean


def given_of(images: ImageFlags) -> set[str]:
    """Return the names of the flags that the user gives."""
    return {name for name, value in asdict(images).items() if value is not None}


def resolved(flags: Mapping[str, object]) -> dict[str, object]:
    """Return the flags that are set, with absolute paths, so that they are valid in any folder."""
    found: dict[str, object] = {}
    for name, value in flags.items():
        if isinstance(value, Path) or (name == "data" and is_folder(str(value))):
            found[name] = os.path.abspath(str(value))
        elif isinstance(value, str):
            found[name] = str(value)
        elif value not in (None, ()):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _data_of(spec: Spec, data: str, root: Path | None, images: ImageFlags) -> DataSource:
    """Open the data that the flags name, with missing settings taken from a model's file.

    Raises:
        InputError: If the model was made for other data.
    """
    from robustkd.data import SOURCES

    if data in SOURCES:
        return open_data(data, root, images)
    form: dict[str, Any] = {
        name: getattr(images, name) or getattr(spec, name) for name in ("resize", "interpolation")
    }
    size = spec.image_shape[1] if spec.image_shape[1] == spec.image_shape[2] else None
    return open_data(
        data,
        root,
        replace(
            images,
            image_size=images.image_size or size,
            grey=images.grey or spec.image_shape[0] == 1,
            crop=spec.crop if images.crop is None else images.crop,
            **form,
        ),
        classes=spec.class_names if is_folder(data) and spec.class_names else None,
    )


def check_at_least(flag: str, value: int, lowest: int) -> None:
    """Raise an error for a number below the lowest allowed value."""
    if value < lowest:
        raise UsageError(f"{flag} is {value}; expected at least {lowest}")
