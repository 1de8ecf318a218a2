"""Files of the triggers of a teacher in one folder."""

from __future__ import annotations

from pathlib import Path

from robustkd.attacks import Backdoored, load_trigger, save_trigger
from robustkd.core.targets import Target
from robustkd.core.types import DataSource, Trigger


def trigger_files(count: int) -> list[str]:
    """Return the names of the files of some triggers.

    >>> trigger_files(2)
    ['trigger.safetensors', 'trigger-2.safetensors']
    """
    further = [f"trigger-{number}.safetensors" for number in range(2, count + 1)]
    return ["trigger.safetensors", *further]


def save_triggers(made: Backdoored, folder: Path) -> None:
    """Write each trigger of a teacher with its target to a file of its own."""
    names = trigger_files(len(made.backdoors))
    for name, (trigger, target) in zip(names, made.backdoors, strict=True):
        save_trigger(trigger, target, folder / name)


def load_triggers(folder: Path, count: int, data: DataSource) -> list[tuple[Trigger, Target]]:
    """Read the files of some triggers, which must not be links and must fit the data."""
    return [load_trigger(folder / name, links=False, data=data) for name in trigger_files(count)]
