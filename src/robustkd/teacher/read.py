"""Reading a teacher from an untrusted file: a file of this package, or a plain state dict.

The architecture is named by the user and never taken from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from robustkd.core.errors import InputError, UsageError, quoted
from robustkd.models.checks import check_buffers, check_claim, check_values
from robustkd.models.classifier import Classifier, Spec
from robustkd.models.description import check_fits, described_spec
from robustkd.models.model_file import parse_description
from robustkd.models.registry import build, check_name
from robustkd.models.serialization import restore
from robustkd.teacher import match
from robustkd.teacher.options import Option, Options, shown_key
from robustkd.teacher.preprocessing import BESIDE, Stated, published, stated_beside, weights_in
from robustkd.teacher.untrusted import quarantine

OWN_FILE = "the teacher's file"
"""Origin of what a file itself states."""
_FEWEST_CLASSES = 2
_MOST_IGNORED = 20


@dataclass(frozen=True, slots=True)
class TeacherFile:
    """Properties of a teacher's file, for the report.

    Attributes:
        name: File name without the folder.
        bytes: Size of the file.
        sha256: SHA-256 of the file, in hexadecimal.
        format: ``safetensors``, ``torch zip`` or ``torch legacy``.
        key: Key of the state dict in the file; empty if the file is one.
        candidates: State dicts in the file that fit the architecture, with their accuracies on
            validation images where these were measured; empty if there is only one.
        matched: Number of tensors of the network, all of which are in the file.
        filled: Number of batch counters that the file lacks; they do not affect a trained network.
        wrappers: Keys and prefixes around the state dict that were removed, outermost first.
        ignored: Other keys in the file, which were not read, and names of tensors that are not part
            of the network; quoted.
        by_order: Whether tensors were matched by order and shape, since their names differ.
        outputs: Numbers of the teacher's outputs that are used, if it has more classes than the
            data.
        converted: Number of tensors that were converted to float32, by their type.
        normalisation: Origin of mean and standard deviation.
        limits: Limits of the reading process that were in force.
    """

    name: str
    bytes: int
    sha256: str
    format: str
    key: str
    candidates: tuple[str, ...]
    matched: int
    filled: int
    wrappers: tuple[str, ...]
    ignored: tuple[str, ...]
    by_order: bool
    outputs: tuple[int, ...]
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
            needed for files of this package, and for files that contain it.
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
    """
    path = Path(path)
    found = read_teacher(
        path,
        arch=arch,
        classes=classes,
        image_shape=image_shape,
        mean=mean,
        std=std,
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
    statistics: Callable[[], match.Normalisation] | None = None,
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
    stated = stated_beside(path)
    if bool(mean) != bool(std):
        raise UsageError("mean and std belong together; give both, or neither")
    if not all(0 <= value <= 1 for value in mean):
        raise UsageError(f"mean is {mean}; expected values in [0, 1]: divide those of bytes by 255")
    given = (mean, std) if mean else None
    spec = Spec(arch, classes, image_shape, mean, std)
    _check_outputs(outputs, outputs_of, classes)
    counted = "the list of class names" if outputs else "the data"
    wanted = match.Wanted.by(replace(spec, classes=outputs_of or classes), counted)
    options = Options(wanted, path, teacher_key, judged=judge is not None)

    def choose(layouts: Sequence[quarantine.Layout]) -> Sequence[int]:
        if layouts[0].description:
            _check_ours(layouts[0], spec, path, given, any_classes=head is not None)
            return [0]
        if (outputs and outputs_of is None) or head is not None:
            of = _classes_of(layouts, wanted.head, outputs, path)
            if head is not None and of < _FEWEST_CLASSES:
                of = classes
            options.wanted = match.Wanted.by(replace(spec, classes=of))
        return options.choose(layouts)

    with closing(
        quarantine.read_each(path, most=wanted.most_bytes, choose=choose, weak=allow_weak_sandbox)
    ) as found:
        tried = _Best(judge, options)
        for read in found:
            if read.description:
                ours = _ours(read, arch, path)
                if head is None or ours.model.spec.classes == classes:
                    return ours
                return _with_fresh_head(ours, spec, {name: head[name] for name in wanted.head})
            for option in options.of(read.choice):
                weights = match.apply(option.plan, options.in_order(read), options.wanted, path)
                weights = match.select_outputs(weights, options.wanted, outputs)
                unused: tuple[str, ...] = ()
                if head is not None and options.wanted.spec.classes != classes:
                    fresh = {name: head[name] for name in wanted.head}
                    weights = match.with_head(weights, fresh)
                    unused = (f"head of {options.wanted.spec.classes} classes",)
                check_values(weights.tensors, path)
                guesses = _normalisations(
                    given,
                    weights.normalisation,
                    stated,
                    spec,
                    statistics,
                    path,
                )
                compared = list(guesses if judge is not None else islice(guesses, 1))
                for source, guess in compared:
                    model = _filled(spec, weights.tensors, guess, path)
                    facts = _facts(read, option, weights, source)
                    ignored = (*unused, *facts.ignored)
                    facts = replace(facts, outputs=outputs, ignored=ignored)
                    tried.add(option.label, Teacher(model, facts), last=len(compared) == 1)
    return tried.best()


def _facts(
    read: quarantine.Quarantined, option: Option, weights: match.Matched, source: str
) -> TeacherFile:
    """Return the properties of a file from which a teacher was read."""
    around, plan = read.surroundings, option.plan
    ignored = (*around.ignored, *map(quoted, plan.ignored))
    return TeacherFile(
        name=read.name,
        bytes=read.bytes,
        sha256=read.sha256,
        format=read.verdict.format,
        key=option.label,
        candidates=(),
        matched=len(plan.names),
        filled=len(plan.filled),
        wrappers=(*around.wrappers, *plan.prefixes),
        ignored=ignored[:_MOST_IGNORED],
        by_order=plan.by_order,
        outputs=(),
        converted=weights.converted,
        normalisation=source,
        limits=read.verdict.enforced,
    )


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


def _check_ours(
    layout: quarantine.Layout,
    spec: Spec,
    path: Path,
    given: match.Normalisation | None,
    *,
    any_classes: bool,
) -> None:
    """Raise an error if a file of this package does not match, before values are read."""
    tensors, _ = match.to_float32(layout.tensors, path)
    description = parse_description(layout.description, path)
    said = described_spec(description, path, spec.arch)
    if any_classes:
        spec = replace(spec, classes=said.classes)
    _check_description(said, spec, path, given=given)
    check_claim(tensors, description, path, arch=spec.arch)


def _ours(read: quarantine.Quarantined, arch: str, path: Path) -> Teacher:
    """Restore the model in a file of this package."""
    tensors, converted = match.to_float32(read.tensors, path)
    description = parse_description(read.description, path)
    plan = match.Plan({name: name for name in tensors})
    weights = match.Matched(tensors, converted)
    facts = _facts(read, Option(0, plan, ""), weights, OWN_FILE)
    return Teacher(restore(tensors, description, path, arch=arch), facts)


def _with_fresh_head(teacher: Teacher, spec: Spec, head: Mapping[str, Tensor]) -> Teacher:
    """Return a network of the classes of a spec, whose other tensors are those of a teacher."""
    own = teacher.model.spec
    model = build(replace(own, classes=spec.classes, class_names=()), seed=0)
    model.network.load_state_dict({**teacher.model.network.state_dict(), **head})
    unused = (f"head of {own.classes} classes", *teacher.file.ignored)
    return Teacher(model.eval(), replace(teacher.file, ignored=unused))


class _Best:
    """The most accurate of several networks, or the first; only one is kept in memory.

    Args:
        judge: Function that returns the accuracy of a network; None to keep the first.
        options: The state dicts from which the networks come.
    """

    def __init__(self, judge: Callable[[Classifier], float] | None, options: Options) -> None:
        self._judge = judge
        self._options = options
        self._kept: Teacher | None = None
        self._accuracy = -1.0
        self._accuracies: dict[str, float] = {}

    def add(self, label: str, teacher: Teacher, *, last: bool) -> None:
        """Measure a network if there are several, and keep it if it is the most accurate so far.

        Args:
            label: Label of its state dict.
            teacher: The network.
            last: Whether there is no other network for this state dict.
        """
        if self._judge is None or (last and len(self._options.labels) == 1):
            self._kept = self._kept or teacher
            return
        accuracy = self._judge(teacher.model)
        self._accuracies[label] = max(accuracy, self._accuracies.get(label, 0.0))
        if self._kept is None or accuracy > self._accuracy:
            self._kept, self._accuracy = teacher, accuracy

    def best(self) -> Teacher:
        """Return the best network; its facts list all state dicts if there are several."""
        if self._kept is None:
            raise InputError("no state dict was read; the file changed while it was read")
        labels = self._options.labels
        if len(labels) == 1:
            return self._kept
        listed = tuple(map(self._shown, labels))
        return replace(self._kept, file=replace(self._kept.file, candidates=listed))

    def _shown(self, label: str) -> str:
        if label not in self._accuracies:
            return shown_key(label)
        return f"{shown_key(label)} (accuracy {self._accuracies[label]:.1%})"


def _filled(
    spec: Spec, tensors: Mapping[str, Tensor], normalisation: match.Normalisation, path: Path
) -> Classifier:
    """Build a network with these weights and this normalisation, in eval mode."""
    try:
        spec = replace(spec, mean=normalisation[0], std=normalisation[1])
    except UsageError as error:
        raise InputError(f"{path} has an invalid normalisation: {error}") from error
    model = build(spec, seed=0)
    check_buffers(model, {f"network.{name}": value for name, value in tensors.items()}, path)
    model.network.load_state_dict(dict(tensors))
    return model.eval()


def _check_description(
    said: Spec, spec: Spec, path: Path, *, given: match.Normalisation | None
) -> None:
    """Raise an error if the description in a file of this package contradicts the user."""
    check_fits(said, path, classes=spec.classes, image_shape=spec.image_shape)
    if given not in (None, (said.mean, said.std)):
        raise UsageError(
            f"mean {spec.mean} and std {spec.std} are not those of {path}, {said.mean} and "
            f"{said.std}; leave them out"
        )


def _normalisations(
    given: match.Normalisation | None,
    own: match.Normalisation | None,
    stated: Stated | None,
    spec: Spec,
    statistics: Callable[[], match.Normalisation] | None,
    path: Path,
) -> Iterator[tuple[str, match.Normalisation]]:
    """Yield the candidates from the first source that has any.

    The sources are the user, the file, a file next to it, and, together, the values that are
    published for the architecture and those of the data.
    """
    channels = spec.image_shape[0]
    beside = None if stated is None else stated.normalisation(channels)
    general = published(spec.arch)
    usual = None if general is None else general.normalisation(channels)
    if given is not None:
        yield "given by the user", given
    elif own is not None:
        yield OWN_FILE, own
    elif stated is not None and beside is not None:
        yield f"{stated.origin} {BESIDE}", beside
    elif usual is None and statistics is None:
        raise UsageError(f"{path} has no normalisation of images; give mean and std")
    else:
        if usual is not None:
            yield "published for the architecture", usual
        if statistics is not None:
            yield "statistics of the data", statistics()
