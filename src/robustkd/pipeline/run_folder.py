"""The run folder, which contains everything needed to repeat or to resume the run."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from robustkd.core.errors import InputError, TrainingError, UsageError, WriteError, is_full
from robustkd.core.files import (
    locked,
    new_folder,
    open_folder,
    write_json,
    write_lines,
    write_text,
)
from robustkd.core.folders import LOCK, Folder
from robustkd.pipeline.resume_command import resume_command
from robustkd.pipeline.run_checks import (
    as_recorded,
    check_same,
    check_seal,
    key_of_user,
    note_environment,
    shown,
)
from robustkd.pipeline.run_files import (
    CHECKPOINT,
    CLEANED,
    CONFIG,
    DETOXIFIED,
    ENVIRONMENT,
    FIRST,
    INPUTS,
    LAST,
    METRICS,
    RESULTS,
    SPLIT,
    has,
    resuming_call,
)
from robustkd.pipeline.run_log import logged
from robustkd.pipeline.seal import Seal

if TYPE_CHECKING:
    from torch import nn

    from robustkd.core.method_names import Side
    from robustkd.pipeline.experiments import Experiment
    from robustkd.report.results import Results
    from robustkd.teacher.defences.base import Defended
    from robustkd.teacher.defences.masks import DetoxifiedTeacher
    from robustkd.training.checkpoint import State

_KEEP_EVERY = 300.0
_LOCK_SECONDS = 15.0

_log = logging.getLogger(__name__)


class Run:
    """A run in progress, which stores the state of the training in its folder.

    Args:
        folder: The run folder.
        seal: Seal of the files that the run writes and reads.
    """

    def __init__(self, folder: Path, seal: Seal) -> None:
        from robustkd.pipeline.interrupts import Interrupts
        from robustkd.pipeline.trackers import Events

        self.folder, self._seal = folder, seal
        self.interrupts = Interrupts()
        self._watching: list[Events | Experiment] = [Events(folder / "tensorboard")]
        self._started = self._kept = time.monotonic()
        self._seconds_before = 0.0
        self._noted = 0
        self._times: list[float] = []  # when each epoch ended, as time.time()

    @property
    def seconds(self) -> float:
        """Return the wall time of the run, without the time between interruption and resumption."""
        return self._seconds_before + time.monotonic() - self._started

    def watch(self, experiments: Iterable[Experiment]) -> None:
        """Send the records of finished epochs to experiments as well."""
        self._watching += experiments

    @property
    def finished(self) -> bool:
        """Return whether the run is finished."""
        return has(self.folder, LAST)

    def detoxify_once(
        self,
        detoxify: Callable[[], tuple[DetoxifiedTeacher, dict[str, object]]],
        teacher: nn.Module,
    ) -> tuple[DetoxifiedTeacher, dict[str, object]]:
        """Return the detoxified teacher and its record; a resumed run reads them from the folder.

        Args:
            detoxify: Function that computes both.
            teacher: The network to detoxify.
        """
        from robustkd.core.devices import device_of
        from robustkd.teacher.defences.masks import load_detoxified, save_detoxified

        if fresh := not has(self.folder, DETOXIFIED):
            cleaned, record = detoxify()
            provenance = {"record": record, "seconds": self.seconds}
            with self._seal.replacing(DETOXIFIED) as partial:
                save_detoxified(cleaned, partial, provenance=provenance)
            _log.info("the teacher is detoxified")
        # Always read from the file, so that a resumed run distils from exactly the same teacher.
        with self._seal.reading(DETOXIFIED) as copy:
            record = self._record_in(copy, fresh=fresh)
            cleaned = load_detoxified(copy, arch=_arch_of(teacher), links=False)
        return cleaned.to(device_of(teacher)), record

    def clean_once(self, clean: Callable[[], Defended], network: nn.Module, on: Side) -> Defended:
        """Return a network as cleaned by a defence; a resumed run reads it from the folder.

        Args:
            clean: Function that computes the network and its record.
            network: The network to clean.
            on: Whether it is the teacher or the student.

        Raises:
            KeyboardInterrupt: If an interrupt is pending.
        """
        from robustkd import models
        from robustkd.core.devices import device_of
        from robustkd.teacher.defences.base import Defended

        # A defence has no checkpoints to wait for.
        self.interrupts.no_longer_wait()
        name = CLEANED[on]
        if fresh := not has(self.folder, name):
            done = clean()
            provenance = {"record": done.record, "seconds": self.seconds}
            with self._seal.replacing(name) as partial:
                models.save(done.network, partial, provenance=provenance)
            _log.info("the %s is cleaned", on)
        with self._seal.reading(name) as copy:
            record = self._record_in(copy, fresh=fresh)
            cleaned = models.load(copy, arch=_arch_of(network), links=False)
        cleaned.taps = getattr(network, "taps", None)
        return Defended(cleaned.eval().to(device_of(network)), record)

    def _record_in(self, copy: Path, *, fresh: bool) -> dict[str, object]:
        """Return the record in the file of a cleaned network; that of an earlier process counts."""
        from robustkd.models.model_file import read_safetensors

        made = read_safetensors(copy, links=False)[1].get("provenance")
        record, seconds = (
            (made.get("record"), made.get("seconds")) if isinstance(made, dict) else (None, None)
        )
        if not isinstance(record, dict) or not isinstance(seconds, int | float):
            raise InputError(f"{copy} lacks the record of its cleaning; start a new run with --out")
        if not fresh:
            self._seconds_before = seconds
        return record

    def last(self) -> State | None:
        """Return the last stored state."""
        from robustkd.training.checkpoint import load_state

        path = self.folder / CHECKPOINT
        if not has(self.folder, CHECKPOINT):
            return None
        with self._seal.reading(CHECKPOINT) as copy:
            state = load_state(copy)
        seconds, records = state.values.get("seconds"), state.values.get("records")
        if not isinstance(seconds, int | float) or not _are_records(records):
            raise InputError(f"{path} has no training state; expected a run's checkpoint")
        self._seconds_before, self._noted = seconds, len(records)
        self._times = _times(state.values.get("times"), len(records))
        _log.info("continued after step %s", shown(state.values.get("step")))
        return state

    def is_due(self) -> bool:
        """Return whether a checkpoint is due: after some minutes, or if the run is interrupted.

        From the first call on, an interrupt waits for the next checkpoint. Before it, no step is
        lost, and the first one may take minutes, in which networks are compiled.
        """
        self.interrupts.deferring = True
        return self.interrupts.asked or time.monotonic() - self._kept > _KEEP_EVERY

    def save(self, state: State) -> None:
        """Store a state, and log the finished epochs.

        Raises:
            KeyboardInterrupt: If the run was interrupted.
            WriteError: If the disk is full; the previous state is still there.
        """
        from robustkd.training.checkpoint import State, save_state, write_records

        records: Sequence[Mapping[str, float]] = state.values["records"]
        if len(records) > self._noted:
            write_records(self.folder / METRICS, records)
            self._times += [time.time()] * (len(records) - self._noted)
            for watcher in self._watching:
                watcher.show(records, self._times)
            for record in records[self._noted :]:
                _log.info("%s", ", ".join(f"{name} {value:.4g}" for name, value in record.items()))
            self._noted = len(records)
        values = {**state.values, "seconds": self.seconds, "times": self._times}
        with self._seal.replacing(CHECKPOINT) as partial:
            save_state(State(state.tensors, values), partial)
        self._kept = time.monotonic()
        if self.interrupts.asked:
            raise KeyboardInterrupt

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Return a context that gives a path for the student or the results, and seals the file.

        Raises:
            WriteError: If the file cannot be written.
        """
        return self._seal.replacing(name)

    def results(self) -> Results:
        """Return the results of a finished run.

        Raises:
            InputError: If the results were not written by this run.
        """
        from robustkd.report.results import read

        with self._seal.reading(RESULTS) as copy:
            return read(copy.parent)


@contextmanager
def opened(
    folder: Path,
    *,
    inputs: Mapping[str, Mapping[str, object]],
    config: Mapping[str, object] | None = None,
    split: Iterable[str] | None = None,
    resume: bool = False,
    trust: bool = False,
    weak: bool = False,
    further: Sequence[str] = (),
) -> Iterator[Run]:
    """Start a run in a new folder, or continue the run in an existing one.

    Args:
        folder: The run folder.
        inputs: Everything that the student depends on, as JSON values by kind: ``settings``,
            ``teacher``, ``data``. A resumed run must have the same inputs.
        config: Flags of the command, stored for ``--config`` and ``--resume``.
        split: Held-out images as the text of ``split.json``; None if the data brings its splits.
        resume: If True, continue an existing run.
        trust: If True, continue without verifying that a run of this user wrote the files.
        weak: Whether files may be read on a system without seccomp, which the command that resumes
            the run then allows as well.
        further: Further flags and values for this command, which no file of the run has.

    Yields:
        The run. The messages of interrupts and write errors in the block contain the command that
        resumes it.

    Raises:
        UsageError: If the folder is not empty, or the settings differ.
        InputError: If there is no run to resume, another process uses it, teacher or data differ,
            or its files were not written by a run of this user.
        WriteError: If a file cannot be written.
        KeyboardInterrupt: With the command that resumes the run.
    """
    key = key_of_user(resuming=resume and not trust)
    switches = [*(["--trust-run"] if key is None else []), *(["--allow-weak-sandbox"] * weak)]
    unstored = [*further, *switches]

    def command() -> str | None:
        if not has(folder, CONFIG):
            return None
        if config and "data" not in config:  # the data came from Python code
            return resuming_call(folder)
        return resume_command(folder, inputs, config or {}, unstored)

    with _old_folder(folder) if resume else _new_folder(folder) as held:
        inputs = as_recorded(folder, inputs) if resume else inputs
        seal = Seal(folder, key, json.loads(json.dumps(inputs)))
        run = Run(folder, seal)
        with _command_added(command):
            if resume:
                check_same(folder, inputs)
                check_seal(folder, seal, trust=trust)
                held.clean()
            else:
                # Written first: any folder with this file can be resumed.
                write_text(folder / CONFIG, _as_yaml(config or {}))
                seal.write()
        with logged(held), _command_added(command), run.interrupts.watched():
            note_environment(folder / ENVIRONMENT)
            if split is not None:
                write_lines(folder / SPLIT, split)
            if not held.has(INPUTS):
                write_json(folder / INPUTS, inputs)
            yield run


@contextmanager
def _new_folder(path: Path) -> Iterator[Folder]:
    """Create and lock a folder; a run that fails before it has stored anything leaves none.

    A mistake that only the networks show, or a learning rate with which the first epoch diverges,
    would otherwise block the folder for the next attempt, which has other settings. If
    the disk is full, the folder stays, since the run can be resumed.
    """
    with new_folder(path) as folder:
        try:
            yield folder
        except (UsageError, InputError, TrainingError) as error:
            if not isinstance(error, WriteError) and set(folder.names()) <= {*FIRST, LOCK}:
                for name in FIRST:
                    folder.remove(name)
            raise


@contextmanager
def _old_folder(path: Path) -> Iterator[Folder]:
    """Open and lock the folder of an existing run until the block ends."""
    if not has(path, CONFIG):
        raise InputError(f"{path} is not the folder of a run: it has no {CONFIG}")
    # Workers of a killed process hold its lock until they notice.
    with open_folder(path) as folder, locked(folder, seconds=_LOCK_SECONDS):
        yield folder


def _arch_of(network: nn.Module) -> str | None:
    return getattr(getattr(network, "spec", None), "arch", None)


def _as_yaml(config: Mapping[str, object]) -> str:
    import yaml

    text: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return f"# robustkd distill --config THIS_FILE --out NEW_FOLDER\n{text}"


@contextmanager
def _command_added(command: Callable[[], str | None]) -> Iterator[None]:
    """Add the command that resumes the run, if there is one, to interrupts and write errors."""
    try:
        yield
    except KeyboardInterrupt:
        if (known := command()) is None:
            raise
        raise KeyboardInterrupt(f"interrupted; resume with: {known}") from None
    except WriteError as error:
        if (known := command()) is None:
            raise
        # A message with advice says what else to do.
        own = "free some space, " if is_full(error) else "correct this, "
        advice = "" if "; " in str(error) else own
        raise WriteError(f"{error}; {advice}then resume with: {known}") from error


def _times(found: object, count: int) -> list[float]:
    """Return stored times of the epochs, or the present time for those of older versions."""
    if isinstance(found, list) and len(found) == count:
        times = [float(time) for time in found if isinstance(time, int | float)]
        if len(times) == count and all(map(math.isfinite, times)):
            return times
    return [time.time()] * count


def _are_records(found: object) -> TypeGuard[list[Mapping[str, float]]]:
    return isinstance(found, list) and all(
        isinstance(record, dict)
        and all(isinstance(figure, int | float) for figure in record.values())
        for record in found
    )
