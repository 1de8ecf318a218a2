"""Distillation of a student: cross-entropy, distillation losses and hardening."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.names import check_options
from robustkd.core.statistics import wilson
from robustkd.core.types import DataSource, Images
from robustkd.core.usual_state import type_of, usual_state
from robustkd.core.validation import check_paths, check_seed, check_text
from robustkd.models.features.stages import check_taps, taps_of
from robustkd.student.hardening import UniversalPerturbations
from robustkd.student.learner import DistillationLearner, Lessons
from robustkd.student.objective import DistillationObjective, EarlyStop, check_weights
from robustkd.student.pair import pair_of
from robustkd.student.safeguard import Safeguard
from robustkd.student.teaching import Watch, teaching
from robustkd.student.terms import NEEDS_FEATURES, WHOLE_BATCH
from robustkd.training.beginning import (
    check_finite_start,
    check_gradients,
    check_readable,
    check_trained,
    first_images,
)
from robustkd.training.checkpoint import Keeper
from robustkd.training.config import TrainingConfig, TrainingOptions
from robustkd.training.hooks import Hooks, chosen_epoch
from robustkd.training.inference import accuracy_on
from robustkd.training.last_batch import steps_per_epoch
from robustkd.training.loop import fit
from robustkd.training.processes import ONE, Processes
from robustkd.training.trial import check_classifier


@dataclass(frozen=True)
class Distilled:
    """A student and the record of its training.

    Attributes:
        student: The trained network, in eval mode.
        epochs: One record per epoch: ``loss``, ``acc``, each loss term, ``validation``.
        kept: Number of the epoch whose weights the student has, from 1.
        seconds: Wall time of the training.
    """

    student: nn.Module
    epochs: list[dict[str, float]]
    kept: int
    seconds: float


@usual_state
def distill(
    student: nn.Module,
    data: DataSource,
    *,
    teacher: nn.Module | None = None,
    losses: Mapping[str, float] | None = None,
    until: Mapping[str, float] | None = None,
    teacher_taps: Sequence[str] | None = None,
    student_taps: Sequence[str] | None = None,
    hardening: UniversalPerturbations | None = None,
    safeguard: Safeguard | None = None,
    seed: int = 0,
    label: str = "distil",
    log: str | Path | None = None,
    keeper: Keeper | None = None,
    processes: Processes = ONE,
    **training: Unpack[TrainingOptions],
) -> Distilled:
    """Train a student on labels and on the logits and features of a teacher.

    Args:
        student: Network to train, in place, from its current weights.
        data: Clean images. The student is trained on ``train``, and ``validation`` selects the
            most accurate epoch. Clean accuracy does not measure robustness, so for a hardened
            student the selected epoch is the last one whose accuracy is within the 95 % interval
            of the best one, see :func:`robustkd.core.statistics.wilson`.
        teacher: Teacher, which stays frozen and in eval mode; None to train without one.
        losses: Weights of the distillation losses by name, see ``robustkd.student.terms.TERMS``;
            the cross-entropy of the labels has a weight of 1. None stands for ``{"ofd": 1.0}``, or
            for no loss without a teacher.
        until: Share of the training, from its start, in which a loss is used, by name, in (0, 1];
            see :class:`robustkd.student.objective.EarlyStop`. None to use all losses to the end.
        teacher_taps: Module paths of the teacher's stages. If None, the ``taps`` of the teacher are
            used, or stages are found by probing. The last stages of both networks are paired.
        student_taps: Module paths of the student's stages, likewise.
        hardening: Perturbations for hardening; None to train without hardening.
        safeguard: Published defence within the distillation, see
            :mod:`robustkd.student.safeguards`; None for none. With one, the last epoch is selected.
        seed: Seed of the order, the augmentation and the connectors.
        label: Text of the progress line.
        log: File that gets one JSON line per epoch.
        keeper: Stores the state of the training; see :func:`robustkd.training.loop.fit`.
        processes: Processes that train the student together; see
            :mod:`robustkd.training.processes`.
        training: Fields of :class:`robustkd.training.config.TrainingConfig`, such as ``epochs``,
            ``lr`` and ``temperature``; :func:`robustkd.models.learning_rate` returns the learning
            rate of an architecture with SGD.

    Returns:
        The student with its record.

    Raises:
        UsageError: If an argument is out of range, needs a teacher where there is none, a tap does
            not exist, or a network does not map the images to logits of the classes. Also if the
            student has no weight to train, or shares some with the teacher.
        InputError: If images, or the logits of teacher or student for some, are not finite.
        TrainingError: If the loss is no longer finite, or a distillation loss gives the student
            no gradient.

    Example:
        >>> import robustkd
        >>> data = robustkd.load_data("digits", train=100, validation=100)
        >>> spec = robustkd.Spec("wrn-10-1", 10, data.image_shape)
        >>> teacher = robustkd.build(spec, seed=0)
        >>> student = robustkd.build(spec, seed=1)
        >>> made = robustkd.distill(student, data, teacher=teacher, epochs=1)
        >>> made.student is student, made.kept
        (True, 1)
    """
    started = time.perf_counter()
    seed = check_seed(seed)
    tried = check_classifier(student, data, name="the student", trained=True)
    check_taps(teacher_taps=teacher_taps, student_taps=student_taps)
    check_paths(log=log)
    if log is not None and processes.first:
        _check_has_folder(Path(log))
    check_text(label=label)
    check_options(training, TrainingOptions.__annotations__)
    config = TrainingConfig(**training)
    weights = _weights_of(losses, until or {})
    if teacher is None and (losses or until or teacher_taps or student_taps):
        raise UsageError("losses, until and taps are given without a teacher; leave them out")
    if teacher is not None:
        _check_teaches(teacher, data, weights, tried)
        check_readable(student, name="the student")
    check_gradients(student, name="the student")
    check_trained(student, teacher)
    _check_fits(hardening, safeguard, data)
    check_divisible(weights, safeguard, processes)
    if teacher is not None:
        some = first_images(data, device_of(student))
        check_finite_start(teacher, some, data=data.name)
    steps = config.epochs * steps_per_epoch(data.size("train"), config.batch_size)
    if hardening is not None:
        hardening.to(type_of(student)).begin(steps)
    if safeguard is not None:
        safeguard.to(device_of(student)).begin(steps)
    enough = _enough(data, hardening, safeguard)
    compiled = True if config.compile else None  # in training mode
    with ExitStack() as closing:
        lessons = None
        if teacher is not None:
            names = _paired_taps(student, teacher, data, weights, student_taps, teacher_taps)
            lessons = Lessons(
                names[0],
                _objective(student, teacher, data, names, weights, config.temperature, seed),
                teaching(teacher, names[1], some, closing, processes, compiled=config.compile),
                EarlyStop(until, steps) if until else None,
            )
        watched = Watch(student, lessons.taps if lessons else (), closing, compiled, processes)
        learner = DistillationLearner(watched, lessons, hardening, safeguard, processes)
        if teacher is not None:
            learner.check_active(some)
        records = fit(
            learner,
            data,
            seed=seed,
            label=label,
            hooks=Hooks(
                after_backward=learner.advance,
                validate=lambda: accuracy_on(student, data, "validation", processes).value,
                enough=enough,
            ),
            log=log,
            companion=hardening,
            keeper=keeper,
            processes=processes,
            **training,
        )
    kept = chosen_epoch([record["validation"] for record in records], enough) + 1
    return Distilled(student.eval(), records, kept, time.perf_counter() - started)


def _check_has_folder(log: Path) -> None:
    """Raise an error for a log that is a folder, or whose folder does not exist."""
    if log.is_dir() or not log.parent.is_dir():
        raise UsageError(f"log is {str(log)!r}; expected a file in a folder that exists")


def _weights_of(losses: Mapping[str, float] | None, until: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the distillation losses, after a check of both arguments."""
    if losses is not None and not isinstance(losses, Mapping):
        raise UsageError(f"losses is {losses!r}; expected weights by name, such as {{'kd': 1.0}}")
    weights = {"ofd": 1.0} if losses is None else dict(losses)
    check_weights(weights)
    unused = next((name for name in until if name not in weights), None)
    if unused is not None:
        used = ", ".join(weights) or "none"
        raise UsageError(f"until has loss {unused!r}; the losses in use are: {used}")
    return weights


def _check_teaches(
    teacher: nn.Module, data: DataSource, weights: Mapping[str, float], images: Images
) -> None:
    """Raise an error for a teacher that the losses cannot use, which is tried on the images."""
    # Features can be those of a network for other classes.
    check_classifier(
        teacher,
        data,
        name="the teacher",
        any_classes=NEEDS_FEATURES.issuperset(weights),
        images=images,
    )
    check_readable(teacher, name="the teacher")
    check_gradients(teacher, name="the teacher")
    if not weights:
        raise UsageError("there is a teacher but no distillation loss; name one, e.g. 'ofd'")


def _objective(
    student: nn.Module,
    teacher: nn.Module,
    data: DataSource,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    weights: Mapping[str, float],
    temperature: float | int,
    seed: int,
) -> DistillationObjective:
    """Return the distillation losses; the seed decides on the weights of their connectors."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        pair = pair_of(student, names[0], teacher, names[1], data, temperature=temperature)
        return DistillationObjective(weights, pair).to(device_of(student))


def _enough(
    data: DataSource, hardening: UniversalPerturbations | None, safeguard: Safeguard | None
) -> Callable[[float], float] | None:
    """Return which validation accuracy is enough for a later epoch, given the best one."""
    if safeguard is not None:
        return lambda _best: 0.0
    n = data.size("validation")
    return None if hardening is None else lambda best: wilson(best, n)[0]


def _paired_taps(
    student: nn.Module,
    teacher: nn.Module,
    data: DataSource,
    weights: Mapping[str, float],
    student_taps: Sequence[str] | None,
    teacher_taps: Sequence[str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return equally many taps of student and teacher: the last stages that both have."""
    if not NEEDS_FEATURES & set(weights):
        return (), ()
    own, theirs = taps_of(student, data, student_taps), taps_of(teacher, data, teacher_taps)
    shared = min(len(own), len(theirs))
    return own[-shared:], theirs[-shared:]


def _check_fits(
    hardening: UniversalPerturbations | None, safeguard: Safeguard | None, data: DataSource
) -> None:
    """Raise an error for perturbations of other classes or images, and for what is something else.

    Raises:
        UsageError: Naming the argument.
    """
    if hardening is not None and not isinstance(hardening, UniversalPerturbations):
        raise UsageError(
            f"hardening is of type {type(hardening).__name__}; expected UniversalPerturbations, "
            "whose argument fixed takes what find_perturbations returns"
        )
    if safeguard is not None and not isinstance(safeguard, Safeguard):
        raise UsageError(
            f"safeguard is of type {type(safeguard).__name__}; expected a Safeguard, such as "
            "start_safeguard makes"
        )
    expected = (len(data.classes), *data.image_shape)
    if hardening is not None and hardening.shape != expected:
        raise UsageError(
            f"hardening is for classes and images of shape {hardening.shape}; "
            f"the data has {expected}"
        )


def check_divisible(losses: Iterable[str], safeguard: object | None, processes: Processes) -> None:
    """Raise an error for what several processes cannot divide.

    Args:
        losses: Names of the distillation losses.
        safeguard: A published defence within the distillation, or its name; none if false.
        processes: The processes that train together.

    Raises:
        UsageError: If something needs whole batches.
    """
    whole = [name for name in losses if name in WHOLE_BATCH]
    if processes.count > 1 and (whole or safeguard):
        what = f"the loss {whole[0]!r}" if whole else "a defence within the distillation"
        raise UsageError(
            f"{what} needs whole batches, but there are {processes.count} processes; expected one: "
            "start the command without torchrun"
        )
