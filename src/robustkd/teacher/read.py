"""Reading a teacher from an untrusted file: a file of this package, or a plain state dict.

The architecture is named by the user and never taken from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from torch import Tensor

from robustkd.core.errors import InputError, UsageError
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import plain_numbers
from robustkd.models.checks import check_buffers, check_values
from robustkd.models.classifier import Classifier, Spec
from robustkd.models.registry import build, check_name
from robustkd.teacher import match
from robustkd.teacher.best import Best
from robustkd.teacher.facts import Teacher, facts_of
from robustkd.teacher.normalisation import ADVICE, Normalisation, values_in
from robustkd.teacher.options import Option, Options
from robustkd.teacher.own_files import OWN_FILE, check_ours, ours, with_fresh_head
from robustkd.teacher.preprocessing import (
    BESIDE,
    Stated,
    published,
    stated_beside,
    transformers_advice,
    weights_in,
)
from robustkd.teacher.untrusted import quarantine

_FEWEST_CLASSES = 2


@usual_state
def load_teacher(
    path: str | Path,
    *,
    arch: str,
    classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    teacher_key: str | None = None,
    allow_weak_sandbox: bool = False,
) -> Classifier:
    """Read a teacher of a named architecture from an untrusted file.

    No code in the file is run. The file is parsed by a separate process with limited rights.

    Args:
        path: A safetensors file, or a PyTorch checkpoint.
        arch: Architecture, see ``robustkd list``.
        classes: Number of classes of the data.
        image_shape: Channels, height and width of its images.
        mean: Mean of each channel, in [0, 1], with which the teacher's images were normalised. Not
            needed for files of this package, and for files that contain it. If empty, the values of
            ``config.json`` or ``preprocessor_config.json`` beside the file are used, then those
            that torchvision or timm publish for the architecture.
        std: Standard deviation of each channel, likewise.
        teacher_key: Key of the state dict in the file, such as ``state_dict_ema``; nested keys are
            joined by dots. If None, the first state dict that fits the architecture is used.
        allow_weak_sandbox: If True, read the file even on a system without seccomp, where a flaw
            in the reader could be exploited.

    Returns:
        The teacher in eval mode, on the CPU.

    Raises:
        UsageError: If the architecture or the key is unknown, or the normalisation is missing or in
            conflict with the file.
        InputError: If the file is refused or damaged, or has another architecture, number of
            classes or input.

    Example:
        >>> import tempfile
        >>> import torch
        >>> import robustkd
        >>> network = robustkd.build(robustkd.Spec("wrn-10-1", 10, (1, 8, 8)), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/teacher.pt"
        ...     torch.save({"state_dict": network.state_dict()}, file)
        ...     teacher = robustkd.load_teacher(
        ...         file, arch="wrn-10-1", classes=10, image_shape=(1, 8, 8)
        ...     )
        >>> teacher.training
        False
    """
    found = read_teacher(
        Path(path),
        arch=arch,
        classes=classes,
        image_shape=image_shape,
        mean=plain_numbers("mean", mean),
        std=plain_numbers("std", std),
        teacher_key=teacher_key,
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
    statistics: Callable[[], Normalisation] | None = None,
    judge: Callable[[Classifier], float] | None = None,
    teacher_key: str | None = None,
    outputs: tuple[int, ...] = (),
    outputs_of: int | None = None,
    head: Mapping[str, Tensor] | None = None,
    allow_weak_sandbox: bool = False,
) -> Teacher:
    """Read a teacher of a named architecture, which a state dict in the file must match.

    Args:
        path: A safetensors file, a torch checkpoint, or a folder of the Hugging Face Hub with one.
        arch: Architecture, see ``robustkd list``.
        classes: Number of classes of the data.
        image_shape: Channels, height and width of its images.
        mean: Mean of each channel, in [0, 1], with which the teacher's images were normalised. Not
            needed for files of this package.
        std: Standard deviation of each channel, likewise.
        statistics: Function that returns mean and standard deviation of the data, used if neither
            the user, nor the file, nor ``config.json`` or ``preprocessor_config.json`` next to it
            gives them.
        judge: Function that returns the accuracy of a network on clean images. It decides between
            several state dicts in the file that fit the architecture, and between the values that
            torchvision or timm publish for the architecture and the statistics of the data. Without
            it, or if they are equally accurate, the first one and the published values are used.
        teacher_key: Key of the state dict in the file, such as ``state_dict_ema``; nested keys are
            joined by dots. If None, a state dict that fits the architecture is used.
        outputs: Number of the teacher's output for each class of the data, from 0, if the teacher
            has more classes. All other outputs are removed. Empty to use all.
        outputs_of: Number of the teacher's outputs; None to take it from the file.
        head: State dict of a network from which the head is taken if that of the file has another
            number of classes, at least two; None to refuse such a file.
        allow_weak_sandbox: If True, read the file even on a system without seccomp, where a flaw
            in the reader could be exploited.

    Raises:
        UsageError: If the architecture or the key is unknown, or the normalisation is missing or in
            conflict with the file.
        InputError: If the file is refused or damaged, or has another architecture, number of
            classes or input; see :func:`robustkd.teacher.untrusted.quarantine.read_each`.
    """
    check_name(arch)
    path = weights_in(path)
    _check_normalisation(mean, std)
    _check_outputs(outputs, outputs_of, classes)
    asked = _Asked(
        path,
        Spec(arch, classes, image_shape, mean, std),
        given=(mean, std) if mean else None,
        statistics=statistics,
        stated=stated_beside(path),
        outputs=outputs,
        outputs_of=outputs_of,
        head=head,
    )
    wanted = asked.wanted()
    options = Options(wanted, path, teacher_key, judged=judge is not None)
    tried = Best(judge, options)
    choose = partial(asked.choose, options)
    with closing(
        quarantine.read_each(path, most=wanted.most_bytes, choose=choose, weak=allow_weak_sandbox)
    ) as found:
        for read in found:
            if read.description:
                return asked.own_file(read, wanted)
            for option in options.of(read.choice):
                networks = asked.networks(read, option, options, compared=judge is not None)
                for teacher, alone in networks:
                    tried.add(option.label, teacher, last=alone)
    return tried.best()


@dataclass(frozen=True)
class _Asked:
    """What the user and the data say about the teacher in a file.

    Attributes:
        path: The file.
        spec: The network.
        given: Normalisation that the user gives.
        statistics: Function that returns mean and standard deviation of the data.
        stated: Normalisation in a file next to it.
        outputs: Number of the teacher's output for each class of the data; empty to use all.
        outputs_of: Number of the teacher's outputs; None to take it from the file.
        head: State dict of a network from which a head of other classes is replaced.
    """

    path: Path
    spec: Spec
    given: Normalisation | None
    statistics: Callable[[], Normalisation] | None
    stated: Stated | None
    outputs: tuple[int, ...]
    outputs_of: int | None
    head: Mapping[str, Tensor] | None

    def wanted(self) -> match.Wanted:
        """Return the network that a state dict in the file is to fit."""
        counted = "the list of class names" if self.outputs else "the data"
        classes = self.outputs_of or self.spec.classes
        return match.Wanted.by(replace(self.spec, classes=classes), counted)

    def choose(self, options: Options, layouts: Sequence[quarantine.Layout]) -> Sequence[int]:
        """Return the numbers of the state dicts to read, once the number of classes is known."""
        if layouts[0].description:
            any_classes = self.head is not None
            check_ours(layouts[0], self.spec, self.path, self.given, any_classes=any_classes)
            return [0]
        if (self.outputs and self.outputs_of is None) or self.head is not None:
            of = _classes_of(layouts, options.wanted.head, self.outputs, self.path)
            if self.head is not None and of < _FEWEST_CLASSES:
                of = self.spec.classes
            options.wanted = match.Wanted.by(replace(self.spec, classes=of))
        try:
            return options.choose(layouts)
        except InputError as error:
            names = options.wanted.tensors.keys()
            strange = all(names.isdisjoint(layout.tensors) for layout in layouts)
            if not strange or not (advice := transformers_advice(self.path)):
                raise
            raise InputError(f"{error}; {advice}") from error

    def own_file(self, read: quarantine.Quarantined, wanted: match.Wanted) -> Teacher:
        """Return the teacher in a file of this package, with a fresh head if one is needed."""
        own = ours(read, self.spec.arch, self.path)
        if self.head is None or own.model.spec.classes == self.spec.classes:
            return own
        return with_fresh_head(own, self.spec, {name: self.head[name] for name in wanted.head})

    def networks(
        self, read: quarantine.Quarantined, option: Option, options: Options, *, compared: bool
    ) -> Iterator[tuple[Teacher, bool]]:
        """Yield the network of a state dict with each normalisation, and whether it is alone.

        Args:
            read: Tensors of the file.
            option: The state dict.
            options: All state dicts that fit.
            compared: Whether several normalisations can be compared; otherwise the first is used.
        """
        wanted = options.wanted
        weights = match.apply(option.plan, options.in_order(read), wanted, self.path)
        weights = match.select_outputs(weights, wanted, self.outputs)
        unused: tuple[str, ...] = ()
        if self.head is not None and wanted.spec.classes != self.spec.classes:
            weights = match.with_head(weights, {name: self.head[name] for name in wanted.head})
            unused = (f"head of {wanted.spec.classes} classes",)
        check_values(weights.tensors, self.path)
        own = None
        if self.given is None:
            channels = self.spec.image_shape[0]
            names = option.plan.normalisation
            own = values_in(names, read.tensors, channels=channels, path=self.path)
        guesses = list(islice(self._normalisations(own), None if compared else 1))
        for source, guess in guesses:
            model = _filled(self.spec, weights.tensors, guess, self.path)
            facts = facts_of(read, option, weights, source)
            facts = replace(facts, outputs=self.outputs, ignored=(*unused, *facts.ignored))
            yield Teacher(model, facts), len(guesses) == 1

    def _normalisations(self, own: Normalisation | None) -> Iterator[tuple[str, Normalisation]]:
        """Yield the candidates from the first source that has any.

        The sources are the user, the file, a file next to it, and, together, the values that are
        published for the architecture and those of the data.
        """
        channels = self.spec.image_shape[0]
        beside = None if self.stated is None else self.stated.normalisation(channels)
        general = published(self.spec.arch)
        usual = None if general is None else general.normalisation(channels)
        if self.given is not None:
            yield "given by the user", self.given
        elif own is not None:
            yield OWN_FILE, own
        elif self.stated is not None and beside is not None:
            yield f"{self.stated.origin} {BESIDE}", beside
        elif usual is None and self.statistics is None:
            raise UsageError(f"{self.path} has no normalisation of images; give mean and std")
        else:
            if usual is not None:
                yield "published for the architecture", usual
            if self.statistics is not None:
                yield "statistics of the data", self.statistics()


def _check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise an error if only one of both is given, or the mean is one of bytes."""
    if bool(mean) != bool(std):
        raise UsageError("mean and std belong together; give both, or neither")
    if not all(0 <= value <= 1 for value in mean):
        raise UsageError(f"mean is {mean}; expected values in [0, 1]: divide those of bytes by 255")


def _check_outputs(outputs: Sequence[int], of: int | None, classes: int) -> None:
    """Raise an error if there is not one output of the teacher for each class."""
    if not outputs:
        return
    if len(set(outputs)) != classes or len(outputs) != classes:
        raise UsageError(f"outputs has {len(set(outputs))} outputs; expected one for each class")
    if min(outputs) < 0 or (of is not None and max(outputs) >= of):
        raise UsageError(f"outputs has {max(outputs)}; expected 0 to {(of or 0) - 1}")


def _classes_of(
    layouts: Sequence[quarantine.Layout],
    head: Collection[str],
    outputs: Sequence[int],
    path: Path,
) -> int:
    """Return the number of classes of the largest state dict in a file.

    It is the length of a tensor that ends in a name of the head, or of the last tensor.

    Raises:
        InputError: If it has no output for one of the numbers in ``outputs``.
    """
    tensors = max((layout.tensors for layout in layouts), key=len)
    named = [own for own in tensors if any(f".{own}".endswith(f".{name}") for name in head)]
    found = max(tensors[[*tensors, *named][-1]].shape[:1], default=0)
    if outputs and max(outputs) >= found:
        raise InputError(
            f"{path} has {found} outputs, numbered from 0; the list of class names has output "
            f"{max(outputs)}: correct the list"
        )
    return found


def _filled(
    spec: Spec, tensors: Mapping[str, Tensor], normalisation: Normalisation, path: Path
) -> Classifier:
    """Build a network with these weights and this normalisation, in eval mode."""
    try:
        spec = replace(spec, mean=normalisation[0], std=normalisation[1])
    except UsageError as error:
        raise InputError(f"{path} has an invalid normalisation: {error}; {ADVICE}") from error
    model = build(spec, seed=0)
    check_buffers(model, {f"network.{name}": value for name, value in tensors.items()}, path)
    model.network.load_state_dict(dict(tensors))
    return model.eval()
