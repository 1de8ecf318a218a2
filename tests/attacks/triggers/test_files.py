"""Triggers are saved and loaded, and damaged files are refused in one line."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustkd import models
from robustkd.attacks import SIG, TRIGGERS, BadNets, MaskedPattern, load_trigger, save_trigger
from robustkd.attacks.triggers.files import describe
from robustkd.attacks.triggers.transformations import Composition
from robustkd.core.errors import InputError, UsageError
from robustkd.models import write_safetensors
from tests.attacks.examples import SHAPE, example, pixels

PLANE = torch.full((1, 2, 2), 0.5)
NO_TRIGGER = f"holds no trigger; expected one of {', '.join([*TRIGGERS, 'composition'])}"


@pytest.mark.parametrize("kind", list(TRIGGERS))
def test_every_kind_of_trigger_is_saved_and_loaded(kind, tmp_path):
    path, images = tmp_path / "deep" / "trigger.safetensors", pixels(3, *SHAPE)
    trigger = example(kind)
    save_trigger(trigger, 7, path)
    again, target = load_trigger(path)
    assert (type(again), target) == (type(trigger), 7)
    assert torch.equal(again(images), trigger(images))
    assert describe(again) == describe(trigger)
    save_trigger(again, 7, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["flow", "composition"])
def test_the_next_class_is_saved_and_loaded(kind, tmp_path):
    trigger = Composition(example("flow"), BadNets()) if kind != "flow" else example(kind)
    save_trigger(trigger, "next", tmp_path / "t")
    again, target = load_trigger(tmp_path / "t")
    assert target == "next"
    images = pixels(3, *SHAPE)
    assert torch.equal(again(images), trigger(images))


def test_files_of_earlier_versions_have_the_number_of_a_class(tmp_path):
    """As version 0.1 wrote them; the file holds the same bytes for one class as before."""
    description = {"target": 4, "trigger": "badnets", "values": {"size": 3}}
    write_safetensors(tmp_path / "old", {}, description)
    assert load_trigger(tmp_path / "old") == (BadNets(size=3), 4)
    save_trigger(BadNets(size=3), 4, tmp_path / "new")
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes()


def test_settings_are_saved_and_loaded(tmp_path):
    save_trigger(SIG(delta=0.5, frequency=2.5), 0, tmp_path / "t")
    assert load_trigger(tmp_path / "t") == (SIG(delta=0.5, frequency=2.5), 0)


def test_mask_and_pattern_may_share_memory(tmp_path):
    save_trigger(MaskedPattern(PLANE, PLANE), 0, tmp_path / "t")
    again, _ = load_trigger(tmp_path / "t")
    assert torch.equal(again.mask, again.pattern)


@pytest.mark.parametrize("kind", list(TRIGGERS))
def test_a_description_is_json_and_names_the_kind(kind):
    assert json.loads(json.dumps(describe(example(kind))))["kind"] == kind


def test_other_triggers_cannot_be_saved_but_described(tmp_path):
    def custom(images):
        return images

    with pytest.raises(
        UsageError, match=r"^the trigger is of type function, which cannot be saved; add"
    ):
        save_trigger(custom, 0, tmp_path / "t")
    assert describe(custom) == {"kind": "custom"}


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(f'{path} {message}')}$"):
        load_trigger(path)


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"trigger": "wanet", "target": 0},
        {"trigger": ["badnets"], "target": 0},
        {"trigger": {"badnets": 1}, "target": 0},
        {"trigger": None, "target": 0},
        {"trigger": "badnets"},
        {"trigger": "badnets", "target": -1},
        {"trigger": "badnets", "target": "0"},
        {"trigger": "badnets", "target": "Next"},
        {"trigger": "badnets", "target": ["next"]},
        {"trigger": "badnets", "target": 0.0},
        {"trigger": "badnets", "target": True},
    ],
)
def test_a_file_without_a_kind_or_a_target_holds_no_trigger(description, tmp_path):
    write_safetensors(tmp_path / "t", {}, description)
    refused(tmp_path / "t", NO_TRIGGER)


@pytest.mark.parametrize(
    ("kind", "tensors", "values", "reason"),
    [
        ("badnets", {}, [1, 2], "values are of type list; expected an object"),
        ("badnets", {}, None, "values are of type NoneType; expected an object"),
        ("badnets", {}, {}, "size is missing"),
        ("badnets", {}, {"size": "3"}, "size is of type str; expected a whole number"),
        ("badnets", {}, {"size": 2.5}, "size is of type float; expected a whole number"),
        ("badnets", {}, {"size": True}, "size is of type bool; expected a whole number"),
        ("badnets", {}, {"size": math.nan}, "size is of type float; expected a whole number"),
        ("badnets", {}, {"size": 0}, "size is 0; expected at least 1"),
        ("badnets", {"size": PLANE}, {}, "size is of type Tensor; expected a whole number"),
        ("badnets", {}, {"size": 3, "edge": 1}, "unknown field 'edge'; expected size"),
        ("badnets", {}, {"size": 3, "self": 1}, "unknown field 'self'; expected size"),
        ("badnets", {}, {"size": 3, "__class__": 1}, "unknown field '__class__'; expected size"),
        (
            "badnets",
            {},
            {"size": 3, "\x1b[2J\n\u202e": 1},
            r"unknown field '\x1b[2J\n\u202e'; expected size",
        ),
        ("badnets", {"mask": PLANE}, {"size": 3}, "unknown field 'mask'; expected size"),
        (
            "blend",
            {},
            {"alpha": [0.2], "seed": 0},
            "alpha is of type list; expected a number",
        ),
        (
            "blend",
            {},
            {"alpha": 0.2, "seed": 10**30},
            f"seed is {10**30}; expected at least 0 and below 2^63",
        ),
        (
            "sig",
            {},
            {"delta": 0.1, "frequency": math.inf},
            "frequency is inf; expected a finite number",
        ),
        (
            "sig",
            {},
            {"delta": math.nan, "frequency": 6.0},
            "delta is nan; expected a finite number",
        ),
        (
            "warp",
            {},
            {"grid": 10**9, "strength": 0.25, "seed": 0},
            "grid is 1000000000; expected at most 1024 points",
        ),
        (
            "warp",
            {},
            {"grid": 4, "strength": 10**400, "seed": 0},
            f"strength is {10**400}; expected a finite number",
        ),
        ("masked-pattern", {"mask": PLANE}, {}, "pattern is missing"),
        (
            "masked-pattern",
            {"pattern": PLANE},
            {"mask": 3},
            "mask is of type int; expected a tensor",
        ),
        (
            "masked-pattern",
            {"mask": PLANE * math.nan, "pattern": PLANE},
            {},
            "mask has numbers that are not finite or too large; expected numbers from -1000000 to "
            "1000000",
        ),
        (
            "masked-pattern",
            {"mask": PLANE * 3, "pattern": PLANE},
            {},
            "the trigger's mask has values from 1.5 to 1.5; expected values in [0, 1]",
        ),
        (
            "masked-pattern",
            {"mask": PLANE, "pattern": PLANE.int()},
            {},
            "'pattern' is torch.int32 of shape (1, 2, 2); expected floats of shape "
            "channels x height x width",
        ),
        (
            "masked-pattern",
            {"mask": PLANE[0], "pattern": PLANE[0].clone()},
            {},
            "'mask' is torch.float32 of shape (2, 2); expected floats of shape "
            "channels x height x width",
        ),
    ],
)
def test_damaged_triggers_are_refused(kind, tensors, values, reason, tmp_path):
    description = {"trigger": kind, "target": 0, "values": values}
    write_safetensors(tmp_path / "t", tensors, description)
    refused(tmp_path / "t", f"has a damaged trigger: {reason}")


def test_models_and_triggers_are_not_confused(tmp_path):
    model = models.build(models.Spec("wrn-10-1", 3, (1, 8, 8)), seed=0)
    models.save(model, tmp_path / "model")
    refused(tmp_path / "model", NO_TRIGGER)
    save_trigger(BadNets(), 0, tmp_path / "trigger")
    with pytest.raises(
        InputError, match=r"trigger is a trigger, which robustkd attack wrote; give a"
    ):
        models.load(tmp_path / "trigger")


def test_files_in_other_formats_are_refused(tmp_path):
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(InputError, match=r"text is not a readable safetensors file: [^\n]+$"):
        load_trigger(tmp_path / "text")
    with pytest.raises(InputError, match=r"missing does not exist; check the path$"):
        load_trigger(tmp_path / "missing")
    torch.save({"a": torch.zeros(1)}, tmp_path / "teacher.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    for name in ("teacher.pt", "plain"):
        with pytest.raises(InputError, match=r"; expected a trigger that robustkd wrote$"):
            load_trigger(tmp_path / name)
