"""The run folder: made once, never overwritten, complete enough to repeat or continue the run."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from robustkd.core.environment import environment, is_kernel_choice
from robustkd.core.errors import InputError, UsageError, WriteError
from robustkd.core.files import (
    locked,
    new_folder,
    open_folder,
    read_json,
    write_json,
    write_lines,
    write_text,
)
from robustkd.core.folders import Folder
from robustkd.core.user_key import user_key
from robustkd.pipeline.run_log import logged
from robustkd.pipeline.seal import SEAL, Seal

if TYPE_CHECKING:
    from torch import nn

    from robustkd.teacher.defences.masks import DetoxifiedTeacher
    from robustkd.training.checkpoint import State

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
STUDENT = "student.safetensors"
RESULTS = "results.json"
_BEGUN = "run.json"
_ENVIRONMENT = "environment.json"
_DETOXIFIED = "detoxified.safetensors"
_LAST = "report.html"
_SEALED = (CHECKPOINT, _DETOXIFIED, STUDENT, RESULTS)
"""What a run that goes on believes; see `robustkd.pipeline.seal`."""
_VERSION = re.compile(r"[\w.+:/ -]{1,60}", re.ASCII)
"""What a value of an environment may be to be shown."""

_KEEP_EVERY = 300.0
_LOCK_SECONDS = 15.0

_log = logging.getLogger(__name__)


class Run:
    """A run on its way, in its folder; it keeps the state of the training there.

    Args:
        folder: Its folder.
        seal: Marks the files that it writes, and checks those that it reads.
    """

    def __init__(self, folder: Path, seal: Seal) -> None:
        from robustkd.pipeline.interrupts import Interrupts
        from robustkd.pipeline.trackers import Events

        self.folder, self._seal = folder, seal
        self.interrupts = Interrupts()
        self._events = Events(folder / "tensorboard")
        self._started = self._kept = time.monotonic()
        self._seconds_before = 0.0
        self._noted = 0

    @property
    def seconds(self) -> float:
        """Wall time of the run, without the time between an interruption and its resumption."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return _has(self.folder, _LAST)

    def once(
        self, detoxify: Callable[[], tuple[DetoxifiedTeacher, dict[str, Any]]], teacher: nn.Module
    ) -> tuple[DetoxifiedTeacher, dict[str, Any]]:
        """The cleaned teacher and the record of its cleaning, which a run does only once.

        Args:
            detoxify: Gives both.
            teacher: The network that it cleans.
        """
        from robustkd.core.devices import device_of
        from robustkd.models.serialization import read_safetensors
        from robustkd.teacher.defences.masks import load_detoxified, save_detoxified

        path = self.folder / _DETOXIFIED
        fresh = not _has(self.folder, _DETOXIFIED)
        if fresh:
            cleaned, record = detoxify()
            provenance = {"record": record, "seconds": self.seconds}
            with self._seal.replacing(_DETOXIFIED) as partial:
                save_detoxified(cleaned, partial, provenance=provenance)
            _log.info("the teacher is detoxified")
        arch = getattr(getattr(teacher, "spec", None), "arch", None)
        # Read back even if it is fresh, so that a resumed run distils from nothing else.
        with self._seal.reading(_DETOXIFIED) as copy:
            made = read_safetensors(copy, links=False)[1].get("provenance")
            cleaned = load_detoxified(copy, arch=arch, links=False)
        before, seconds = (
            (made.get("record"), made.get("seconds")) if isinstance(made, dict) else (None, None)
        )
        if not isinstance(before, dict) or not isinstance(seconds, int | float):
            raise InputError(f"{path} does not say how it was made; begin a new run with --out")
        if not fresh:
            self._seconds_before = seconds
        return cleaned.to(device_of(teacher)), before

    def last(self) -> State | None:
        """The state that was kept last; from now on an interrupt waits for the next one."""
        from robustkd.training.checkpoint import load_state

        self.interrupts.deferring = True
        path = self.folder / CHECKPOINT
        if not _has(self.folder, CHECKPOINT):
            return None
        with self._seal.reading(CHECKPOINT) as copy:
            state = load_state(copy)
        seconds, records = state.values.get("seconds"), state.values.get("records")
        if not isinstance(seconds, int | float) or not _are_records(records):
            raise InputError(f"{path} holds no state of a training; expected a run's checkpoint")
        self._seconds_before, self._noted = seconds, len(records)
        _log.info("continued after step %s", _shown(state.values.get("step")))
        return state

    def wanted(self) -> bool:
        """Whether the last state is minutes old, or the run is asked to stop."""
        return self.interrupts.asked or time.monotonic() - self._kept > _KEEP_EVERY

    def keep(self, state: State) -> None:
        """Keep a state, and show the epochs that are done.

        Raises:
            KeyboardInterrupt: If the run is asked to stop.
            WriteError: If there is no room; the last state is still there.
        """
        from robustkd.training.checkpoint import State, save_state
        from robustkd.training.loop import write_records

        records: Sequence[Mapping[str, float]] = state.values["records"]
        if len(records) > self._noted:
            write_records(self.folder / METRICS, records)
            self._events.show(records)
            for record in records[self._noted :]:
                _log.info("%s", ", ".join(f"{name} {value:.4g}" for name, value in record.items()))
            self._noted = len(records)
        values = {**state.values, "seconds": self.seconds}
        with self._seal.replacing(CHECKPOINT) as partial:
            save_state(State(state.tensors, values), partial)
        self._kept = time.monotonic()
        if self.interrupts.asked:
            raise KeyboardInterrupt

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Give a path to write the student or the results to; they are marked as this run's.

        Raises:
            WriteError: If it cannot be written.
        """
        return self._seal.replacing(name)

    def results(self) -> dict[str, Any]:
        """The results of a run that is finished.

        Raises:
            InputError: If this run has not written them.
        """
        with self._seal.reading(RESULTS) as copy:
            return read_json(copy)


@contextmanager
def opened(
    folder: Path,
    *,
    begun: Mapping[str, Mapping[str, object]],
    config: Mapping[str, Any] | None = None,
    split: Iterable[str] | None = None,
    resume: bool = False,
    trust: bool = False,
) -> Iterator[Run]:
    """Begin a run in a new folder, or go on with the one that is there.

    Args:
        folder: Where it is.
        begun: What decides on the student, in JSON values by kind: ``settings``, ``teacher``,
            ``data``. A run that goes on must have begun with the same.
        config: The command's flags, written so that ``--config`` and ``--resume`` read them.
        split: Which images are held out, as the text of a file, where we have chosen them.
        resume: Go on, instead of beginning.
        trust: Go on even if the files of the folder were not written by a run of this user.

    Yields:
        The run; interrupts and full disks in the block say how to go on.

    Raises:
        UsageError: If the folder is not empty, or the settings are others now.
        InputError: If there is no run to go on with, another process has it, teacher or data are
            others now, or its files were not written by a run of this user.
        WriteError: If a file cannot be written.
        KeyboardInterrupt: With the command that goes on.
    """
    key = _key(resuming=resume and not trust)
    seal = Seal(folder, key, json.loads(json.dumps(begun)))
    run = Run(folder, seal)
    with _old_folder(folder) if resume else new_folder(folder) as held:
        if resume:
            _check_same(folder, begun)
            _check_seal(folder, seal, trust=trust)
            held.clean()
        else:
            # First of all: whatever has this file can be resumed.
            write_text(folder / CONFIG, _as_yaml(config or {}))
            seal.write()
        with logged(held), _how_to_go_on(folder, begun), run.interrupts.watched():
            _note_environment(folder / _ENVIRONMENT)
            if split is not None:
                write_lines(folder / "split.json", split)
            if not held.has(_BEGUN):
                write_json(folder / _BEGUN, begun)
            yield run


@contextmanager
def _old_folder(path: Path) -> Iterator[Folder]:
    """Keep the folder of a run that has begun for this process alone until the block ends."""
    if not _has(path, CONFIG):
        raise InputError(f"{path} is not the folder of a run: it has no {CONFIG}")
    # Workers of a process that was killed hold its lock until they notice.
    with open_folder(path) as folder, locked(folder, seconds=_LOCK_SECONDS):
        yield folder


def _has(folder: Path, name: str) -> bool:
    """Whether there is anything of that name in a folder; what it is, its reader checks."""
    return os.path.lexists(folder / name)


def _check_same(folder: Path, begun: Mapping[str, Mapping[str, object]]) -> None:
    if not _has(folder, _BEGUN):
        return
    before, now = read_json(folder / _BEGUN), json.loads(json.dumps(begun))
    for kind, facts in now.items():
        known = before.get(kind)
        for name, value in facts.items():
            if (was := known.get(name) if isinstance(known, dict) else None) != value:
                error = UsageError if kind == "settings" else InputError
                raise error(
                    f"{folder} was begun with {kind} {name} {_brief(was)}, now it is "
                    f"{_brief(value)}; leave it as it was, or begin a new run with --out"
                )


def _key(*, resuming: bool) -> bytes | None:
    """The user's key; a run that begins does without one if there is none."""
    try:
        return user_key()
    except InputError as error:
        if resuming:
            raise InputError(
                f"it cannot be checked who wrote the run: {error}; or type --trust-run if you "
                "trust whoever wrote it"
            ) from error
        _log.warning("%s: this run can be resumed only with --trust-run", error)
        return None


def _check_seal(folder: Path, seal: Seal, *, trust: bool) -> None:
    """Refuse a folder whose files were not written by a run of this user with the same begin."""
    if trust:
        _log.warning("%s is resumed without a check of who wrote its files (--trust-run)", folder)
        seal.trust(_SEALED)
    elif not _has(folder, SEAL) and not any(_has(folder, name) for name in (*_SEALED, _LAST)):
        seal.write()  # it was killed before it wrote anything that is believed
    else:
        try:
            seal.open()
        except InputError as error:
            raise InputError(
                f"{folder} was not written by a run of yours, or not with these settings: {error}; "
                "begin a new run with --out, or type --trust-run if you trust whoever wrote it"
            ) from error


def _are_records(found: object) -> TypeGuard[list[Mapping[str, float]]]:
    return isinstance(found, list) and all(
        isinstance(record, dict)
        and all(isinstance(figure, int | float) for figure in record.values())
        for record in found
    )


def _brief(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _as_yaml(config: Mapping[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return f"# robustkd distill --config THIS_FILE --out NEW_FOLDER\n{text}"


def _note_environment(path: Path) -> None:
    """Write it down, or say what has changed since."""
    now = environment()
    if not _has(path.parent, path.name):
        write_json(path, now)
        return
    before = read_json(path)
    set_before = (name for name in before if is_kernel_choice(name) and name not in now)
    for name in (*now, *set_before):
        if before.get(name) != now.get(name):
            _log.warning(
                "%s was %s when the run began and is %s now: the student may differ in its last "
                "bits from one that was not interrupted",
                *(name, _shown(before.get(name)), _shown(now.get(name))),
            )


def _shown(value: object) -> str:
    """A version or a count, or what to say of a text that is neither and may be anything."""
    if value is None:
        return "not set"
    text = str(value) if isinstance(value, str | int) else ""
    return text if _VERSION.fullmatch(text) else "something unknown"


@contextmanager
def _how_to_go_on(folder: Path, begun: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """Add the command that resumes the run to interrupts and write errors."""
    # Own code is never taken from a file, so it must be typed again.
    own = {name: begun.get("settings", {}).get(name) for name in ("arch", "student")}
    typed = "".join(f" --{name} {value}" for name, value in own.items() if ":" in str(value))
    command = f"robustkd distill --resume {shlex.quote(str(folder))}{typed}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: {command}") from None
    except WriteError as error:
        raise WriteError(f"{error}; make room, then go on with: {command}") from error
