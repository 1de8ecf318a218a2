"""Training of backdoored teachers by an attack of the registry."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import cast

import yaml
from torch import nn

from robustkd import models
from robustkd.attacks import ATTACKS, Backdoored, Teaching, find
from robustkd.attacks.base import Build
from robustkd.attacks.registry import check_accepts, check_targets
from robustkd.attacks.triggers.files import check_known
from robustkd.benchmark.rehearsal import expected_method, informed
from robustkd.benchmark.rows import measured_runs, names_of_rows
from robustkd.benchmark.trigger_files import save_triggers
from robustkd.core.environment import environment
from robustkd.core.errors import UsageError
from robustkd.core.files import new_folder
from robustkd.core.method_settings import DetoxOptions
from robustkd.core.methods import find_method
from robustkd.core.plain_yaml import parse
from robustkd.core.targets import Target
from robustkd.core.types import DataSource, Settings, Trigger
from robustkd.models.trial import check_runs
from robustkd.report.results import Results
from robustkd.training.config import TrainingOptions
from robustkd.training.recipes import usual_training, with_defaults

_log = logging.getLogger(__name__)

_SURROGATE_SEED = 10_000
"""Added to the seed of the attacker's surrogates, so that no student has the same weights."""


@dataclass(frozen=True)
class Rehearsal:
    """Method that an adaptive attacker expects the defender to use.

    Attributes:
        training: Arguments of :func:`robustkd.student.distillation.distill`.
        method: Name of the method.
        detoxing: Arguments of :func:`robustkd.teacher.defences.detoxification.detoxify` that
            depend on the size of the data only.
    """

    training: TrainingOptions
    method: str = "default"
    detoxing: DetoxOptions = field(default_factory=DetoxOptions)


def run_attack(
    name: str,
    build: Callable[[str, int], nn.Module],
    source: DataSource,
    *,
    arch: str,
    surrogate: str,
    target: Target,
    seed: int,
    settings: Settings,
    rehearsal: Rehearsal | None,
    build_teacher: Build | None = None,
) -> Backdoored:
    """Run an attack by its name.

    Args:
        name: See :data:`robustkd.attacks.ATTACKS`.
        build: Function that makes a network from an architecture and a seed.
        source: The attacker's clean data.
        arch: Architecture of the teacher.
        surrogate: Architecture of the attacker's surrogates, if the attack trains any.
        target: Target class of the attack; ``next`` for the next class of each image.
        seed: Seed of everything random.
        settings: Further arguments of the attack.
        rehearsal: Expected method of the defender, for adaptive attacks; None for none.
        build_teacher: Function that makes the teacher; ``build`` with ``arch`` and ``seed`` if it
            is None.

    Raises:
        UsageError: If the attack or one of its arguments is unknown, or the attack returns another
            number of triggers than results have rows for.
    """
    check_settings(name, settings)
    attack = find(name)

    def build_surrogate() -> nn.Module:
        return build(surrogate, seed + _SURROGATE_SEED)

    extra: Settings = {}
    if rehearsal is not None:
        extra = informed(
            attack.takes,
            find_method(rehearsal.method),
            build_student=build_surrogate,
            training=rehearsal.training,
            detoxing=rehearsal.detoxing,
            seed=seed,
        )
    if "build_surrogate" in attack.takes:
        extra = {**extra, "build_surrogate": build_surrogate}
    arguments = {**extra, **settings, "target": target, "seed": seed}
    made = attack(build_teacher or partial(build, arch, seed), source, **arguments)
    found, expected = len(made.backdoors), len(names_of_rows(name, settings))
    if found != expected:
        raise UsageError(
            f"attack {name!r} returns {found} triggers; expected {expected}, since only the "
            "settings second and second_target add another one"
        )
    return made


def at_own_rates(name: str, settings: Settings, *, arch: str, surrogate: str) -> Settings:
    """Add the default learning rates of the architectures to the settings of an attack.

    Without ``lr``, teacher and surrogates use the defaults of their architectures. With ``lr``, all
    use this rate, unless ``surrogate_lr`` is given.

    >>> pair = {"arch": "wrn-10-2", "surrogate": "mobilenet-v2-0.25"}
    >>> at_own_rates("adba", {}, **pair), at_own_rates("ckd", {}, **pair)
    ({'surrogate_lr': 0.02}, {})
    """
    if "lr" in settings:
        return dict(settings)
    rates = {"lr": sgd_rate(arch)}
    if "surrogate_lr" in find(name).arguments:
        rates["surrogate_lr"] = sgd_rate(surrogate)
    usual = {"lr": models.USUAL_RATE, "surrogate_lr": rates["lr"]}
    return {**{key: rate for key, rate in rates.items() if rate != usual[key]}, **settings}


@cache
def sgd_rate(arch: str) -> float:
    """Return the rate of SGD for an architecture, with which attacks train all networks.

    It is :func:`robustkd.models.learning_rate`, with a warning in the log about networks that are
    usually trained by AdamW.
    """
    usual = usual_training(arch, epochs=1)
    if "optimizer" in usual:
        _log.warning(
            "attacks train %s by SGD, with which it may stay inaccurate; distill would use %s",
            arch,
            usual["optimizer"],
        )
    return models.learning_rate(arch)


def check_settings(name: str, settings: Settings) -> None:
    """Raise an error for arguments of an attack that are unknown or out of range.

    Args:
        name: Name of the attack.
        settings: Arguments of the attack and of its training, without target and seed. Users cannot
            give the arguments of adaptive attacks that stand for the defence.

    Raises:
        UsageError: If the attack or one of its arguments is unknown or out of range, or the trigger
            of the attack cannot be saved.
    """
    attack = find(name)
    given_by_us = {taken for row in ATTACKS.values() for taken in row.takes}
    known = set(attack.arguments) - {"target", "seed"} - given_by_us
    unknown = next(
        (given for given in settings if given not in known and not attack.is_of_second(given)),
        None,
    )
    if unknown is not None:
        raise UsageError(f"attack {name!r} has no argument {unknown!r}")
    teaching = {field.name for field in fields(Teaching)}
    attack.check({key: value for key, value in settings.items() if key not in teaching})
    # A fixed trigger is known before the training, and has to be saved after it.
    for which, part in attack.parts(settings).items():
        trigger = getattr(part, "trigger", None)
        if trigger is not None:
            _check_can_be_saved(trigger, which)


def _check_can_be_saved(trigger: Trigger, which: str) -> None:
    """Check a trigger; ``which`` is the beginning of the message."""
    try:
        check_known(trigger)
    except UsageError as error:
        raise UsageError(f"{which}{error}") from error


def _value(name: str, given: str | int | float) -> str | int | float:
    """Return the value of an argument, with a text parsed as YAML."""
    try:
        read = parse(given, exponents=True) if isinstance(given, str) else given
    except (ValueError, yaml.YAMLError):
        read = None
    if not isinstance(read, str | int | float):
        raise UsageError(f"{name} is {given!r}; expected a number or a word")
    return read


def _rehearsal(name: str, settings: Settings, surrogate: str) -> Rehearsal | None:
    """Return what the attacker expects of the defender; None if the attack is not adaptive."""
    method = expected_method(find(name).takes)
    if method is None:
        return None
    given = {key: settings[key] for key in ("epochs", "lr", "batch_size") if key in settings}
    if "optimizer" in usual_training(surrogate, epochs=1):
        given.pop("lr", None)  # a rate of SGD
    training = with_defaults(cast(TrainingOptions, given), surrogate)
    return Rehearsal(training, method)


def _read_settings(
    name: str,
    settings: Mapping[str, str | int | float],
    target: Target,
    source: DataSource,
) -> Settings:
    """Return the settings of an attack with texts read as YAML, after checking them on the data.

    Raises:
        UsageError: If one is unknown or wrong, the target does not fit, or the trigger does not fit
            the images.
    """
    read = {key: _value(key, given) for key, given in settings.items()}
    check_settings(name, read)
    check_targets(target, read, source)
    find(name).try_trigger(read, source.image_shape)
    return read


def attack_to_folder(
    name: str,
    *,
    arch: str,
    surrogate: str,
    source: DataSource,
    out: Path,
    target: Target,
    seed: int,
    settings: Mapping[str, str | int | float],
    flags: Mapping[str, object] | None = None,
) -> Results:
    """Write a new folder with teacher, trigger and ``results.json``.

    The files of triggers are ``trigger.safetensors``, and ``trigger-2.safetensors`` for a second
    one, of which ``results.json`` has a row of its own.

    Args:
        name: Name of the attack.
        arch: Architecture of the teacher.
        surrogate: Of the attacker's own students, if there are any.
        source: The attacker's clean data.
        out: The folder.
        target: Class that triggered images are sent to; ``next`` for the next class of each.
        seed: Of everything random.
        settings: Further arguments of the attack, ``epochs`` and ``batch_size`` among them; a text
            is read as YAML reads it, so that "0.1" is a number. Without ``lr``, teacher,
            surrogates and rehearsed students learn at the rates of their architectures.
        flags: Flags of the command in JSON values, stored so that the report can show the command
            that repeats the run; None if it was not started by a command.

    Returns:
        The content of ``results.json``.

    Raises:
        UsageError: If a name is unknown, an argument is wrong, a network cannot be run on the
            images, or the folder is not empty.
    """
    check_accepts(name, target)
    for given in dict.fromkeys((arch, surrogate)):
        models.check_name(given)
        check_runs(given, source)
    read = _read_settings(name, settings, target, source)
    rehearsal = _rehearsal(name, read, surrogate)
    read = {
        "lr": sgd_rate(arch),
        **at_own_rates(name, read, arch=arch, surrogate=surrogate),
    }
    with new_folder(out, keep_lock=False):
        started = time.perf_counter()
        made = run_attack(
            name,
            models.builder(source),
            source,
            arch=arch,
            surrogate=surrogate,
            target=target,
            seed=seed,
            settings=read,
            rehearsal=rehearsal,
        )
        seconds = time.perf_counter() - started
        provenance = {"attack": name, "data": source.name, "seed": seed}
        models.save(made.teacher, out / "teacher.safetensors", provenance=provenance)
        save_triggers(made, out)
        config = {
            **({"attack": name} if made.others else {}),
            "target": target,
            "surrogate": surrogate,
            **read,
            **({} if flags is None else {"flags": dict(flags)}),
        }
        results = Results(
            runs=tuple(
                measured_runs(
                    made.teacher,
                    source,
                    made,
                    names=names_of_rows(name, read),
                    data=source.name,
                    pair=arch,
                    method="teacher",
                    seed=seed,
                    seconds=seconds,
                )
            ),
            environment=environment(),
            config=config,
            records={"teacher": made.record, "classes": list(source.classes)},
        )
        results.write(out / "results.json")
        return results
