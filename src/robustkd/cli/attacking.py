"""The command ``robustkd attack``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

from cyclopts import Parameter
from rich.console import Console

from robustkd.cli.flags import IMAGES, Arch, ImageFlags, check_training
from robustkd.cli.opening import open_data, tell_left_out
from robustkd.cli.output import print_json, print_plain
from robustkd.cli.targets import class_of, counted, target_of
from robustkd.core.errors import UsageError
from robustkd.core.recorded_flags import recorded_flags
from robustkd.training.config import TrainingOptions


def attack(
    name: str,
    /,
    *,
    arch: Arch,
    data: str,
    out: Path,
    target: str | None = None,
    second: str | None = None,
    second_target: str | None = None,
    epochs: int = 30,
    batch_size: int = 64,
    lr: float | None = None,
    surrogate: Arch | None = None,
    settings: Annotated[dict[str, str], Parameter(name="--set", negative="")] | None = None,
    seed: int = 0,
    data_root: Path | None = None,
    images: ImageFlags = IMAGES,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Train a backdoored teacher and its trigger, for research.

    Args:
        name: Name of the attack, see ``robustkd list``.
        arch: Architecture of the teacher.
        data: Name or folder of the attacker's clean data, as in ``distill``.
        out: New folder for teacher.safetensors, trigger.safetensors and results.json, and
            trigger-2.safetensors if there is a second trigger.
        target: Name or number of the target class; ``next`` for the next class of each image, which
            the attacks accept that ``robustkd list`` shows with it. A class that is itself named
            next has to be given by its number. Default: the first class.
        second: Name of another attack whose trigger the teacher has as well, with the target
            class of ``--second-target``; see ``robustkd list``. Default: one trigger.
        second_target: Name or number of the target class of the second trigger.
        epochs: Number of epochs of the teacher's training.
        batch_size: Images per step.
        lr: Initial learning rate of the teacher and of the attacker's surrogates. Default: 0.1, or
            0.02 for MobileNets, networks of libraries and your own code.
        surrogate: Architecture of the attacker's surrogates, for attacks that train any. Default:
            that of the teacher.
        settings: Further arguments of the attack, e.g. ``--set.cap 0.1``, and of the second one,
            e.g. ``--set.second_rate 0.1``.
        seed: The same seed gives the same teacher, byte for byte.
        data_root: Folder of the data set's files. Default: the folder in the environment
            variable ROBUSTKD_DATA, then ``~/.cache/robustkd``.
        images: How images are read.
        as_json: Print the results as JSON.
    """
    training: TrainingOptions = {"epochs": epochs, "batch_size": batch_size}
    if lr is not None:
        training["lr"] = lr
    check_training(training, seed)
    _check_further(settings or {})
    _check_pair(second, second_target)
    from robustkd.benchmark.attacked_teachers import attack_to_folder
    from robustkd.benchmark.trigger_files import trigger_files
    from robustkd.data.images.left_out import skipped_files

    source = open_data(data, data_root, images)
    tell_left_out(source.name, skipped_files(source))
    led = 0 if target is None else target_of(target, source.classes)
    other = 0 if second_target is None else class_of(second_target, source.classes)
    of_second: dict[str, str | int] = {}
    if second is not None:
        of_second = {"second": second, "second_target": other}
    flags = {
        "arch": arch,
        "data": data,
        "target": target,
        "second": second,
        "second_target": second_target,
        **training,
        "surrogate": surrogate,
        **{f"set.{given}": value for given, value in (settings or {}).items()},
        "seed": seed,
        "data_root": data_root,
        **asdict(images),
    }
    results = attack_to_folder(
        name,
        arch=arch,
        source=source,
        out=out,
        target=led,
        surrogate=surrogate or arch,
        settings={
            **of_second,
            **(settings or {}),
            **cast(Mapping[str, float], training),
        },
        seed=seed,
        flags=recorded_flags(flags),
    )
    if as_json:
        print_json(results.content())
        return
    run = results.runs[0]
    console = Console(highlight=False)
    console.print(f"ACC  {run.acc:.1%}  of {run.n_acc} test images")
    for each, wanted in zip(results.runs, (led, other), strict=False):
        name = "" if second is None else f", {each.attack}"
        console.print(f"ASR  {each.asr:.1%}  of {counted(each.n_asr, wanted)}{name}")
    print_plain(f"Teacher: {out / 'teacher.safetensors'}")
    if second is not None:
        print_plain(f"Triggers: {', '.join(str(out / name) for name in trigger_files(2))}")


def _check_pair(second: str | None, second_target: str | None) -> None:
    """Raise an error if only one of the flags of a second trigger is given."""
    flags = ("--second", "--second-target")
    if (second is None) != (second_target is None):
        given, lacking = flags if second_target is None else reversed(flags)
        raise UsageError(f"{given} is given without {lacking}; add it, or leave both out")


def _check_further(settings: Mapping[str, str]) -> None:
    """Raise an error for an argument of an attack that has a flag of its own."""
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in ("--epochs", "--batch-size", "--lr", "--second", "--second-target"):
            raise UsageError(f"--set.{name} is {value!r}; use {flag} instead")
