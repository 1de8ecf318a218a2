"""The run folder: made once, never overwritten, complete enough to repeat or continue the run."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkd.core.environment import environment
from robustkd.core.errors import InputError, UsageError, WriteError
from robustkd.core.files import (
    new_folder,
    read_json,
    refusal,
    write_json,
    write_lines,
    write_text,
)

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
_LEFT = ".tmp??????"
"""What safetensors was writing to when a run was killed."""

_KEEP_EVERY = 300.0
_LOCK_SECONDS = 15.0

_log = logging.getLogger(__name__)


class Run:
    """A run on its way, in its folder; it keeps the state of the training there.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        from robustkd.pipeline.interrupts import Interrupts
        from robustkd.pipeline.trackers import Events

        self.folder = folder
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
        return (self.folder / _LAST).is_file()

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
        fresh = not path.exists()
        if fresh:
            cleaned, record = detoxify()
            provenance = {"record": record, "seconds": self.seconds}
            save_detoxified(cleaned, path, provenance=provenance)
            _log.info("the teacher is detoxified")
        # Read back even if it is fresh, so that a resumed run distils from nothing else.
        provenance = read_safetensors(path)[1]["provenance"]
        if not fresh:
            self._seconds_before = provenance["seconds"]
        arch = getattr(getattr(teacher, "spec", None), "arch", None)
        return load_detoxified(path, arch=arch).to(device_of(teacher)), provenance["record"]

    def last(self) -> State | None:
        """The state that was kept last; from now on an interrupt waits for the next one."""
        from robustkd.training.checkpoint import load_state

        self.interrupts.deferring = True
        path = self.folder / CHECKPOINT
        if not path.exists():
            return None
        state = load_state(path)
        self._seconds_before = state.values["seconds"]
        self._noted = len(state.values["records"])
        _log.info("continued after step %d", state.values["step"])
        return state

    def wanted(self) -> bool:
        """Whether the last state is minutes old, or the run shall stop."""
        return self.interrupts.asked or time.monotonic() - self._kept > _KEEP_EVERY

    def keep(self, state: State) -> None:
        """Keep a state, and show the epochs that are done.

        Raises:
            KeyboardInterrupt: If the run shall stop.
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
        save_state(State(state.tensors, values), self.folder / CHECKPOINT)
        self._kept = time.monotonic()
        if self.interrupts.asked:
            raise KeyboardInterrupt


@contextmanager
def opened(
    folder: Path,
    *,
    begun: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any] | None = None,
    split: Iterable[str] | None = None,
    resume: bool = False,
) -> Iterator[Run]:
    """Begin a run in a new folder, or go on with the one that is there.

    Args:
        folder: Where it is.
        begun: What decides on the student, in JSON values by kind: ``settings``, ``teacher``,
            ``data``. A run that goes on must have begun with the same.
        config: The command's flags, written so that ``--config`` and ``--resume`` read them.
        split: Which images are held out, as the text of a file, where we have chosen them.
        resume: Go on, instead of beginning.

    Yields:
        The run; interrupts and full disks in the block say how to go on.

    Raises:
        UsageError: If the folder is not empty, or the settings are others now.
        InputError: If there is no run to go on with, another process has it, or teacher or data
            are others now.
        WriteError: If a file cannot be written.
        KeyboardInterrupt: With the command that goes on.
    """
    path = folder / CONFIG
    if resume:
        _check_same(folder, begun)
    else:
        new_folder(folder)
        # First of all: whatever has this file can be resumed.
        write_text(path, _as_yaml(config or {}))
    run = Run(folder)
    with _locked(folder), _logged(folder), _how_to_go_on(folder, begun), run.interrupts.watched():
        for left in folder.glob(_LEFT):
            left.unlink(missing_ok=True)
        _note_environment(folder / _ENVIRONMENT)
        if split is not None:
            write_lines(folder / "split.json", split)
        if not (folder / _BEGUN).exists():
            write_json(folder / _BEGUN, begun)
        yield run


def _check_same(folder: Path, begun: Mapping[str, Mapping[str, Any]]) -> None:
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    if not (folder / _BEGUN).exists():
        return
    before, now = read_json(folder / _BEGUN), json.loads(json.dumps(begun))
    for kind, facts in now.items():
        for name, value in facts.items():
            if (was := before.get(kind, {}).get(name)) != value:
                error = UsageError if kind == "settings" else InputError
                raise error(
                    f"{folder} was begun with {kind} {name} {_brief(was)}, now it is "
                    f"{_brief(value)}; leave it as it was, or begin a new run with --out"
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
    if not path.exists():
        write_json(path, now)
        return
    before = read_json(path)
    for name in now:
        if before.get(name) != now[name]:
            _log.warning(
                "%s was %s when the run began and is %s now: the student may differ in its last "
                "bits from one that was not interrupted",
                *(name, before.get(name), now[name]),
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path = folder / ".lock"
    # Workers of a process that was killed hold its lock until they notice.
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{folder} is in use by another process; wait for its end") from error
    except OSError as error:
        raise refusal(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _how_to_go_on(folder: Path, begun: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Tell it to whoever is interrupted, or has no room."""
    # Own code is never taken from a file, so it must be typed again.
    own = {name: begun.get("settings", {}).get(name) for name in ("arch", "student")}
    typed = "".join(f" --{name} {value}" for name, value in own.items() if value and ":" in value)
    command = f"robustkd distill --resume {shlex.quote(str(folder))}{typed}"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with: {command}") from None
    except WriteError as error:
        raise WriteError(f"{error}; make room, then go on with: {command}") from error


class _LogFile(logging.FileHandler):
    """A log that stays quiet where it cannot be written: what matters will say so by itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        del record


@contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """What the package says goes into the folder's log, and how the block ends."""
    path = folder / "run.log"
    try:
        file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise refusal(path, error) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [file]
    if not logging.getLogger().handlers and logging.lastResort is not None:
        handlers.append(logging.lastResort)  # which a handler of ours would silence
    logger = logging.getLogger("robustkd")
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
        _log.info("finished")
    except BaseException as error:
        # No error to the log's other readers: whoever catches it says so himself.
        _log.info("stopped: %s", error or type(error).__name__)
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        logger.setLevel(level)
        file.close()
