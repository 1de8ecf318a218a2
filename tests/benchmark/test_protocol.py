"""Every protocol names things that exist."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from robustkd import data, models
from robustkd.attacks import find
from robustkd.benchmark import PROTOCOLS, protocol
from robustkd.core.errors import UsageError
from robustkd.core.method_settings import DetoxSettings
from robustkd.training.config import TrainingConfig


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_fits_the_parts(name):
    setting = protocol(name)
    assert setting is PROTOCOLS[name]
    assert setting.data == name
    assert name in data.names()
    models.check_name(setting.teacher)
    models.check_name(setting.student)
    assert setting.pair == f"{setting.teacher} to {setting.student}"
    assert set(setting.attacking) <= set(find(setting.attack).arguments)
    TrainingConfig(**setting.training)
    DetoxSettings(**setting.detoxing)
    assert set(setting.sizes) <= {"train", "validation", "test"}
    assert json.loads(json.dumps(setting.settings())) == setting.settings()


def test_data_is_loaded_at_the_protocols_sizes():
    setting = replace(protocol("digits"), sizes={"train": 50, "test": 20})
    loaded = setting.load()
    assert [loaded.size(split) for split in ("train", "validation", "test")] == [50, 240, 20]


def test_unknown_protocols_are_refused():
    message = r"^data is 'mnist', which has no demo; expected digits or fashion-mnist$"
    with pytest.raises(UsageError, match=message):
        protocol("mnist")
