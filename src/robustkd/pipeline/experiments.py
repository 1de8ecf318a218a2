"""Experiment trackers, which receive the records of a run while it trains.

The trackers are those of Accelerate. A run does not depend on them: when a tracker fails, for
example because its server cannot be reached, the run continues without it and says so once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from robustkd.core.errors import UsageError, printable
from robustkd.core.names import nearest
from robustkd.core.validation import check_names
from robustkd.pipeline.trackers import tag

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Service: TypeAlias = Literal["wandb", "mlflow"]

_PROJECT = "robustkd"
_log = logging.getLogger(__name__)


class Experiment:
    """A run as an experiment of Weights & Biases or MLflow.

    Args:
        service: Name of the service. Its own environment variables, such as ``WANDB_MODE`` and
            ``MLFLOW_TRACKING_URI``, say where it stores experiments.
        folder: Folder of the run, whose name becomes that of the experiment.
        settings: Settings of the run, which are stored with the experiment.
        tell: Function that receives a line if the tracker fails.
    """

    def __init__(
        self,
        service: Service,
        folder: Path,
        settings: Mapping[str, object],
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._service, self._tell, self._shown = service, tell, 0
        self._tracker: GeneralTracker | None = None
        with self._ends_on_error("starting"):
            self._tracker = _started(service, folder.resolve().name, settings)

    def show(self, records: Sequence[Mapping[str, float]], _times: Sequence[float]) -> None:
        """Send the records that were not sent yet: all of them, in a resumed run.

        Args:
            records: One record per epoch, with the names that
                :class:`robustkd.pipeline.trackers.Events` uses.
        """
        for record in records[self._shown :]:
            values = {tag(name): value for name, value in record.items() if name != "epoch"}
            self.log(values, int(record["epoch"]))
        self._shown = len(records)

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Send some values."""
        if self._tracker is not None:
            with self._ends_on_error("logging"):
                self._tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """End the experiment."""
        if self._tracker is not None:
            with self._ends_on_error("finishing"):
                self._tracker.finish()
        self._tracker = None

    @contextmanager
    def _ends_on_error(self, what: str) -> Iterator[None]:
        """Continue without the tracker after any of its errors.

        What it prints goes to stderr, since stdout has the results of the command.
        """
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self._tracker = None
            reason = printable(" ".join(str(error).split()))[:200]
            line = f"{self._service} failed while {what}; the run continues without it: {reason}"
            self._tell(line)
            _log.info("%s", line)


def _started(service: Service, name: str, settings: Mapping[str, object]) -> GeneralTracker:
    from accelerate import PartialState, tracking

    PartialState()  # the trackers ask it which process is the main one
    tracker: GeneralTracker
    if service == "wandb":
        tracker = tracking.WandBTracker(_PROJECT, name=name)
    else:
        tracker = tracking.MLflowTracker(_PROJECT, run_name=name)
    tracker.start()
    tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
    return tracker


def check_services(names: Sequence[str]) -> tuple[Service, ...]:
    """Return the services of these names.

    Raises:
        UsageError: If there is no such service, or it is not installed; the message says how to
            install it.
    """
    from importlib.util import find_spec

    known: tuple[Service, ...] = get_args(Service)
    check_names(track=names)
    found = []
    for name in names:
        service = next((one for one in known if one == name), None)
        if service is None:
            raise UsageError(f"track is {name!r}; {nearest(name, known)}")
        if find_spec(service) is None:
            raise UsageError(
                f"track is {name!r}, which is not installed; run: pip install 'robustkd[{name}]'"
            )
        found.append(service)
    return tuple(dict.fromkeys(found))


@contextmanager
def experiments(
    services: Sequence[Service],
    folder: Path,
    settings: Mapping[str, object],
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Experiment, ...]]:
    """Start an experiment with each service, and end them when the block ends."""
    started = tuple(Experiment(service, folder, settings, tell) for service in services)
    try:
        yield started
    finally:
        for one in started:
            one.finish()
