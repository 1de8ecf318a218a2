"""A teacher out of a file from anywhere: ours, or a plain state dict, as PyTorch saves it.

The architecture is the user's word, never the file's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from robustkd.core.errors import InputError, UsageError
from robustkd.models.architectures.libraries import preprocessing
from robustkd.models.classifier import Classifier, Spec
from robustkd.models.registry import build, check_name
from robustkd.models.serialization import (
    check_buffers,
    check_claim,
    check_fits,
    check_values,
    described_spec,
    parse_description,
    restore,
)
from robustkd.teacher import match
from robustkd.teacher.untrusted import quarantine

_FILE = "the teacher's file"


@dataclass(frozen=True, slots=True)
class TeacherFile:
    """The facts of a teacher's file, for the report.

    Attributes:
        name: Of the file, without its folder.
        bytes: Its size.
        sha256: Of its bytes, in hexadecimal.
        format: ``safetensors`` or ``torch zip``.
        matched: Tensors that went into the network, all of its own.
        filled: Counters of batches that the file lacks; they do not matter to a trained network.
        wrappers: Keys and prefixes around the state dict that were stripped, outermost first.
        ignored: Keys beside the state dict that were not read, quoted.
        converted: How many tensors were converted to float32, by their type.
        normalisation: Where mean and standard deviation come from.
        limits: What the reading process was held to.
    """

    name: str
    bytes: int
    sha256: str
    format: str
    matched: int
    filled: int
    wrappers: tuple[str, ...]
    ignored: tuple[str, ...]
    converted: Mapping[str, int]
    normalisation: str
    limits: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """The facts as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network to distil from, in eval mode, and the file that it came in."""

    model: Classifier
    file: TeacherFile


def load_teacher(
    path: Path,
    *,
    arch: str,
    classes: int,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    allow_weak_sandbox: bool = False,
) -> Classifier:
    """The network alone of :func:`read_teacher`."""
    found = read_teacher(
        path,
        arch=arch,
        classes=classes,
        image_shape=image_shape,
        mean=mean,
        std=std,
        allow_weak_sandbox=allow_weak_sandbox,
    )
    return found.model


def read_teacher(
    path: Path,
    *,
    arch: str,
    classes: int,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    statistics: Callable[[], match.Normalisation] | None = None,
    judge: Callable[[Classifier], float] | None = None,
    allow_weak_sandbox: bool = False,
) -> Teacher:
    """Read a teacher whose architecture the user names; the file must fit it in every key.

    Args:
        path: A safetensors file, or a torch checkpoint in zip format.
        arch: Architecture, see ``robustkd list``.
        classes: Number of classes of the data.
        image_shape: Channels, height and width of its images.
        mean: Of each channel of the pixels in [0, 1] that the teacher was trained with. Files of
            ours know it.
        std: The standard deviation, likewise.
        statistics: Gives mean and standard deviation of the data, for where neither the user nor
            the file says them.
        judge: Accuracy of a network on clean images. It decides between what torchvision or timm
            publish for the architecture and the statistics of the data; without it, or where both
            are as accurate, the published ones count.
        allow_weak_sandbox: Whether to read the file on a system without seccomp, where its reader
            could do harm if it had a flaw.

    Raises:
        UsageError: If the architecture is unknown, or the normalisation is missing or at odds
            with the file.
        InputError: If the file is refused, damaged, or of another architecture, class count or
            input; see :func:`robustkd.teacher.untrusted.quarantine.read`.
    """
    check_name(arch)
    if bool(mean) != bool(std):
        raise UsageError("mean and std belong together; give both, or neither")
    if not all(0 <= value <= 1 for value in mean):
        raise UsageError(f"mean is {mean}; expected values in [0, 1]: divide those of bytes by 255")
    spec = Spec(arch, classes, image_shape, mean, std)
    given = (mean, std) if mean else None
    found = quarantine.read(
        path,
        most=match.most_bytes(spec),
        fits=partial(_check_layout, spec, path, given),
        weak=allow_weak_sandbox,
    )
    tensors, converted = _to_float32(found.tensors, path)
    facts = TeacherFile(
        name=found.name,
        bytes=found.bytes,
        sha256=found.sha256,
        format=found.verdict.format,
        matched=len(tensors),
        filled=0,
        wrappers=found.verdict.wrappers,
        ignored=found.verdict.ignored,
        converted=converted,
        normalisation=_FILE,
        limits=found.verdict.enforced,
    )
    if found.description:
        description = parse_description(found.description, path)
        return Teacher(restore(tensors, description, path, arch=arch), facts)
    weights = match.match(tensors, spec, path)
    check_values(weights.tensors, path)
    guesses = _normalisations(
        given, weights.normalisation, _published(arch, image_shape[0]), statistics, path
    )
    compared = guesses if judge is not None else islice(guesses, 1)
    tried = {source: _filled(spec, weights.tensors, guess, path) for source, guess in compared}
    source = _best(tried, judge)
    return Teacher(
        tried[source],
        replace(
            facts,
            matched=len(weights.tensors) - weights.filled,
            filled=weights.filled,
            wrappers=(*facts.wrappers, *weights.prefixes),
            normalisation=source,
        ),
    )


def _check_layout(
    spec: Spec,
    path: Path,
    given: match.Normalisation | None,
    tensors: Mapping[str, Tensor],
    text: str,
) -> None:
    """Refuse a file that does not fit by its names, shapes and types, before its values are read.

    ``text`` is what a file of ours says of itself.
    """
    tensors, _ = _to_float32(tensors, path)
    if not text:
        match.check_layout(tensors, spec, path)
        return
    description = parse_description(text, path)
    _check_word(described_spec(description, path, spec.arch), spec, path, given=given)
    check_claim(tensors, description, path, arch=spec.arch)


def _best(tried: Mapping[str, Classifier], judge: Callable[[Classifier], float] | None) -> str:
    """Under which name the most accurate network stands; the first where there is no choice."""
    if judge is None or len(tried) == 1:
        return next(iter(tried))
    return max(tried, key=lambda name: judge(tried[name]))


def _filled(
    spec: Spec, tensors: Mapping[str, Tensor], normalisation: match.Normalisation, path: Path
) -> Classifier:
    """A network of these weights behind this normalisation, in eval mode."""
    try:
        spec = replace(spec, mean=normalisation[0], std=normalisation[1])
    except UsageError as error:
        raise InputError(f"{path} has a normalisation that is none: {error}") from error
    model = build(spec, seed=0)
    check_buffers(model, {f"network.{name}": value for name, value in tensors.items()}, path)
    model.network.load_state_dict(dict(tensors))
    return model.eval()


def _to_float32(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Every floating-point tensor in float32, and how many there were of each other type."""
    counts = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values() if _other(t))
    if small := [name for name, t in tensors.items() if t.dtype in (torch.int8, torch.uint8)]:
        raise InputError(
            f"{path} has {tensors[small[0]].dtype} values in {small[0]!r}; quantised weights "
            "cannot be distilled from: give the float ones"
        )
    return {name: t.float() if _other(t) else t for name, t in tensors.items()}, dict(counts)


def _other(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _check_word(said: Spec, spec: Spec, path: Path, *, given: match.Normalisation | None) -> None:
    """Refuse a file of ours that says otherwise than the user."""
    check_fits(said, path, classes=spec.classes, image_shape=spec.image_shape)
    if given not in (None, (said.mean, said.std)):
        raise UsageError(
            f"mean {spec.mean} and std {spec.std} are not those of {path}, {said.mean} and "
            f"{said.std}; leave them out"
        )


def _published(arch: str, channels: int) -> match.Normalisation | None:
    """What the library's own weights of the architecture were trained with, if in that colour."""
    found = preprocessing(arch)
    if found is None or len(found.mean) != channels:
        return None
    return found.mean, found.std


def _normalisations(
    given: match.Normalisation | None,
    own: match.Normalisation | None,
    published: match.Normalisation | None,
    statistics: Callable[[], match.Normalisation] | None,
    path: Path,
) -> Iterator[tuple[str, match.Normalisation]]:
    """The user's word or else the file's; without either the library's, then the data's."""
    if given is not None:
        yield "given by the user", given
    elif own is not None:
        yield _FILE, own
    elif published is None and statistics is None:
        raise UsageError(f"{path} does not say how its images are normalised; give mean and std")
    else:
        if published is not None:
            yield "published for the architecture", published
        if statistics is not None:
            yield "statistics of the data", statistics()
