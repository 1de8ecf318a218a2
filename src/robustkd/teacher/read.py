"""Reading a teacher from an untrusted file: a file of this package, or a plain state dict.

The architecture is named by the user and never taken from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from robustkd.core.errors import InputError, UsageError
from robustkd.models.checks import check_buffers, check_values
from robustkd.models.classifier import Classifier, Spec
from robustkd.models.registry import build, check_name
from robustkd.teacher import match
from robustkd.teacher.best import Best
from robustkd.teacher.facts import Teacher, facts_of
from robustkd.teacher.options import Options
from robustkd.teacher.own_files import OWN_FILE, check_ours, ours, with_fresh_head
from robustkd.teacher.preprocessing import BESIDE, Stated, published, stated_beside, weights_in
from robustkd.teacher.untrusted import quarantine

_FEWEST_CLASSES = 2


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
            check_ours(layouts[0], spec, path, given, any_classes=head is not None)
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
        tried = Best(judge, options)
        for read in found:
            if read.description:
                own = ours(read, arch, path)
                if head is None or own.model.spec.classes == classes:
                    return own
                return with_fresh_head(own, spec, {name: head[name] for name in wanted.head})
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
                    facts = facts_of(read, option, weights, source)
                    ignored = (*unused, *facts.ignored)
                    facts = replace(facts, outputs=outputs, ignored=ignored)
                    tried.add(option.label, Teacher(model, facts), last=len(compared) == 1)
    return tried.best()


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
