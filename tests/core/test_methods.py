"""Every preset is a combination of parts that exist."""

from __future__ import annotations

import inspect
import json
import re

import pytest

from robustkd.core.errors import UsageError
from robustkd.core.methods import PRESETS, Preset, preset
from robustkd.student.hardening import UniversalPerturbations
from robustkd.student.objective import check_weights
from robustkd.teacher.defences.detoxification import detoxify


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_fits_the_parts(name):
    how = preset(name)
    assert how is PRESETS[name]
    assert how.summary
    assert "\n" not in how.summary
    check_weights(how.losses)
    accepted = {
        key
        for key, parameter in inspect.signature(detoxify).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    } - {"seed"}
    assert set(how.detox or {}) <= accepted
    assert how.detox is None or how.losses
    if how.hardening is not None:
        UniversalPerturbations(10, (1, 16, 16), **how.hardening)
    json.dumps([dict(how.losses), dict(how.detox or {}), dict(how.hardening or {})])


def test_the_baselines_that_every_table_shows_are_there():
    assert set(PRESETS) >= {"no-teacher", "ofd", "kd", "paper", "default"}
    assert not PRESETS["no-teacher"].losses
    assert PRESETS["ofd"] == Preset(PRESETS["ofd"].summary, losses={"ofd": 1.0})
    assert PRESETS["kd"] == Preset(PRESETS["kd"].summary, losses={"kd": 1.0})
    assert PRESETS["paper"].detox
    assert PRESETS["paper"].hardening is None
    assert PRESETS["default"].hardening


def test_perturbations_in_python_are_those_of_the_default():
    own = {
        name: parameter.default
        for name, parameter in inspect.signature(UniversalPerturbations).parameters.items()
    }
    hardening = PRESETS["default"].hardening
    assert {name: own[name] for name in hardening} == hardening


def test_the_empty_default_cannot_be_filled_by_accident():
    with pytest.raises(TypeError, match="does not support item assignment"):
        Preset("anything").losses["kd"] = 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papers", "unknown method 'papers'; did you mean 'paper'?"),
        ("zzz", f"unknown method 'zzz'; expected one of {', '.join(PRESETS)}"),
        ("", f"unknown method ''; expected one of {', '.join(PRESETS)}"),
    ],
)
def test_unknown_names_by_their_text(name, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        preset(name)
