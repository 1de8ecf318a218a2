"""Reading a teacher from an untrusted file: a file of this package, or a plain state dict.

The architecture is named by the user and never taken from the file.
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
    """Properties of a teacher's file, for the report.

    Attributes:
        name: File name without the folder.
        bytes: Size of the file.
        sha256: SHA-256 of the file, in hexadecimal.
        format: ``safetensors`` or ``torch zip``.
        matched: Number of tensors of the network, all of which are in the file.
        filled: Number of batch counters that the file lacks; they do not affect a trained network.
        wrappers: Keys and prefixes around the state dict that were removed, outermost first.
        ignored: Keys beside the state dict that were not read, quoted.
        converted: Number of tensors that were converted to float32, by their type.
        normalisation: Origin of mean and standard deviation.
        limits: Limits of the reading process that were in force.
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
        """Return the properties as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class Teacher:
    """A teacher in eval mode, and the properties of its file."""

    model: Classifier
    file: TeacherFile


def load_teacher(
    path: str | Path,
    *,
    arch: str,
    classes: int,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    allow_weak_sandbox: bool = False,
) -> Classifier:
    """Read a teacher as :func:`read_teacher` does, and return only the network."""
    path = Path(path)
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
    """Read a teacher of a named architecture, which the file must match in every key.

    Args:
        path: A safetensors file, or a torch checkpoint in zip format.
        arch: Architecture, see ``robustkd list``.
        classes: Number of classes of the data.
        image_shape: Channels, height and width of its images.
        mean: Mean of each channel, in [0, 1], with which the teacher's images were normalised. Not
            needed for files of this package.
        std: Standard deviation of each channel, likewise.
        statistics: Function that returns mean and standard deviation of the data, used if neither
            the user nor the file gives them.
        judge: Function that returns the accuracy of a network on clean images. It decides between
            the values that torchvision or timm publish for the architecture and the statistics of
            the data. Without it, or if both are equally accurate, the published values are used.
        allow_weak_sandbox: If True, read the file even on a system without seccomp, where a flaw
            in the reader could be exploited.

    Raises:
        UsageError: If the architecture is unknown, or the normalisation is missing or in conflict
            with the file.
        InputError: If the file is refused or damaged, or has another architecture, number of
            classes or input; see :func:`robustkd.teacher.untrusted.quarantine.read`.
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
    """Raise an error if names, shapes or types do not match, before values are read.

    ``text`` is the description in a file of this package.
    """
    tensors, _ = _to_float32(tensors, path)
    if not text:
        match.check_layout(tensors, spec, path)
        return
    description = parse_description(text, path)
    _check_word(described_spec(description, path, spec.arch), spec, path, given=given)
    check_claim(tensors, description, path, arch=spec.arch)


def _best(tried: Mapping[str, Classifier], judge: Callable[[Classifier], float] | None) -> str:
    """Return the key of the most accurate network, or the first one if there is no judge."""
    if judge is None or len(tried) == 1:
        return next(iter(tried))
    return max(tried, key=lambda name: judge(tried[name]))


def _filled(
    spec: Spec, tensors: Mapping[str, Tensor], normalisation: match.Normalisation, path: Path
) -> Classifier:
    """Build a network with these weights and this normalisation, in eval mode."""
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
    """Convert floating-point tensors to float32, and count those of each other type."""
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
    """Raise an error if the description in a file of this package contradicts the user."""
    check_fits(said, path, classes=spec.classes, image_shape=spec.image_shape)
    if given not in (None, (said.mean, said.std)):
        raise UsageError(
            f"mean {spec.mean} and std {spec.std} are not those of {path}, {said.mean} and "
            f"{said.std}; leave them out"
        )


def _published(arch: str, channels: int) -> match.Normalisation | None:
    """Return the normalisation of the library's weights, if they have as many channels."""
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
    """Yield the candidates: the user's, else the file's, else the published and the data's."""
    if given is not None:
        yield "given by the user", given
    elif own is not None:
        yield _FILE, own
    elif published is None and statistics is None:
        raise UsageError(f"{path} has no normalisation of images; give mean and std")
    else:
        if published is not None:
            yield "published for the architecture", published
        if statistics is not None:
            yield "statistics of the data", statistics()
