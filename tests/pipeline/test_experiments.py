"""Experiment trackers receive the records of a run and cannot stop it."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from robustkd.core.errors import UsageError
from robustkd.pipeline.experiments import check_services, experiments

RECORDS = [
    {"epoch": 0.0, "ce": 2.0, "validation": 0.5, "lr": 0.1},
    {"epoch": 1.0, "ce": 1.0, "validation": 0.75, "lr": 0.05},
]
TIMES = [0.0, 1.0]


class Service(ModuleType):
    """The part of the module ``wandb`` that Accelerate's tracker calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.logged, self.begun, self.ended, self.broken = [], [], 0, False
        self.settings = {}
        self.config = SimpleNamespace(update=self.update)

    def update(self, values, **_):
        self.settings.update(values)

    def init(self, **given):
        self.begun.append(given)
        return self

    def log(self, values, step=None):
        if self.broken:
            raise ConnectionError("no route to host")
        self.logged.append((step, values))

    def finish(self):
        print("view the run at ...")
        self.ended += 1


@pytest.fixture
def service(monkeypatch):
    module = Service()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_every_epoch_is_sent_once(service, tmp_path):
    with experiments(["wandb"], tmp_path / "my-run", {"seed": 3}) as watching:
        watching[0].show(RECORDS[:1], TIMES[:1])
        watching[0].show(RECORDS, TIMES)
        watching[0].log({"test/acc": 0.8})
    assert service.logged == [
        (0, {"train/ce": 2.0, "val/acc": 0.5, "lr": 0.1}),
        (1, {"train/ce": 1.0, "val/acc": 0.75, "lr": 0.05}),
        (None, {"test/acc": 0.8}),
    ]
    assert service.begun == [{"project": "robustkd", "name": "my-run"}]
    assert service.settings == {"seed": "3"}
    assert service.ended == 1


def test_what_the_service_prints_is_not_among_the_results(service, tmp_path, capsys):
    """MLflow prints where a run is shown, and would break the output of ``--json``."""
    with experiments(["wandb"], tmp_path, {}):
        pass
    assert capsys.readouterr() == ("", "view the run at ...\n")


def test_an_error_of_the_service_does_not_end_the_run(service, tmp_path):
    service.broken, told = True, []
    with experiments(["wandb"], tmp_path, {}, told.append) as watching:
        watching[0].show(RECORDS[:1], TIMES[:1])
        watching[0].show(RECORDS, TIMES)
    assert told == ["wandb failed while logging; the run continues without it: no route to host"]


def test_the_experiment_ends_with_an_interrupted_run(service, tmp_path):
    with pytest.raises(KeyboardInterrupt), experiments(["wandb"], tmp_path, {}):
        raise KeyboardInterrupt
    assert service.ended == 1


def test_a_wrong_or_missing_service_is_named():
    with pytest.raises(UsageError, match=r"^track is 'wandbb'; did you mean 'wandb'"):
        check_services(["wandbb"])
    with pytest.raises(UsageError, match=r"pip install 'robustkd\[mlflow\]'"):
        check_services(["mlflow"])
