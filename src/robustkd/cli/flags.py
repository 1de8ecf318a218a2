"""Flags that several commands share, and their checks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from cyclopts import App, ArgumentCollection, Parameter, Token

from robustkd.core.errors import UsageError
from robustkd.core.known_names import check_architecture
from robustkd.core.launch import launched
from robustkd.core.validation import check_seed, check_threads
from robustkd.training.config import TrainingConfig, TrainingOptions


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
            as ``309 bee`` that begin with the number of an output. JSON is read as well: a list of
            names, ``class_to_idx``, ``id2label``, or a config.json with one of them.
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

    def stated(self) -> list[str]:
        """Return the flags that are given and say something about the content of the file."""
        names = ("mean", "std", "teacher_key")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]


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
    """Raise an error for training settings that are out of range, before anything is loaded.

    The optimiser is checked later, since its names are those of timm, which takes seconds to
    import.
    """
    known: dict[str, Any] = {name: value for name, value in training.items() if name != "optimizer"}
    TrainingConfig(**known)
    check_seed(seed)


def check_new_files(files: Mapping[str, Path | None]) -> None:
    """Raise an error for a file that cannot be written as a new one, before any work is done.

    Args:
        files: Paths by their flags; None for a flag that is not given.

    Raises:
        UsageError: If a file exists, two are the same, or the folder of one does not exist or
            cannot be written.
    """
    taken: dict[str, str] = {}
    for flag, path in files.items():
        if path is None:
            continue
        if os.path.lexists(path):
            raise UsageError(f"{flag} is {path}, which exists; expected a new file")
        folder = path.parent
        if not folder.is_dir():
            raise UsageError(f"{flag} is {path}, but {folder} is not a folder; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{flag} is {path}, but {folder} cannot be written; choose another")
        other = taken.setdefault(os.path.realpath(path), flag)
        if other != flag:
            raise UsageError(f"{other} and {flag} are both {path}; expected two files")


def choose_device(device: str, threads: int | None) -> None:
    """Set the device of all trainings of this process, and the number of threads.

    Raises:
        UsageError: If there is no such device, or the number of threads is out of range.
    """
    if threads is not None:
        check_threads(threads, "--threads")
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


def check_at_least(flag: str, value: int, lowest: int) -> None:
    """Raise an error for a number below the lowest allowed value."""
    if value < lowest:
        raise UsageError(f"{flag} is {value}; expected at least {lowest}")
