"""The mean share on networks that can be solved by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustkd.evaluation.audit.evidence import Evidence, Subject
from robustkd.evaluation.audit.led_share import ALONE, FEW, LED, OTHERS_LED, UNSURE
from robustkd.evaluation.audit.mean_share import FEWEST, MARGIN, exceeds, mean_share
from robustkd.evaluation.audit.moved import Mean, count_moved, mean_moved
from robustkd.evaluation.audit.references import MeanLed, References
from robustkd.evaluation.audit.verdict import combine
from tests.evaluation.audit.networks import CLASSES, Rows, led_to, rows_data, subject


@pytest.fixture(scope="module")
def backdoored() -> Subject:
    return subject(Rows(backdoor=5), Rows(None), Rows(None))


class Corner(nn.Module):
    """A family that makes the corner bright, or does nothing."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images, toward):
        del toward
        changed = images.clone()
        changed[:, :, 0, 0] = self.value
        return changed

    def advance(self, scale):
        del scale
        raise AssertionError("the members are learned already")

    bound = advance

    def forget(self):
        pass


class Says(nn.Module):
    """A network that says one class for every image."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, images):
        return nn.functional.one_hot(torch.full((len(images),), self.place), CLASSES).float()


def batch(count: int = 64):
    return next(rows_data(count).batches("train", batch_size=count))


def test_the_mean_is_over_families_and_references():
    images, labels, _ = batch()
    network, beside = Rows(backdoor=5), (Rows(None), Rows(None))
    families = [Corner(1.0), Corner(0.0), Corner(0.0), Corner(1.0)]
    found = mean_moved(network, beside, families, 5, images, labels)
    assert found == (0.5, pytest.approx(1 / 56), 56)
    counted = [count_moved(network, beside, each, 5, images, labels).share for each in families]
    assert counted == [1, 0, 0, 1]
    # The second reference follows the trigger as well.
    beside = (Rows(None), Rows(backdoor=5))
    assert mean_moved(network, beside, families, 5, images, labels).value == 0.25


def test_images_count_that_the_network_and_a_reference_recognise():
    images, labels, _ = batch()
    family = [Corner(1.0)]
    # The reference recognises the eight images of class 2.
    found = mean_moved(Rows(backdoor=5), (Says(2),), family, 5, images, labels)
    assert (found.value, found.images) == (1, 8)
    assert mean_moved(Rows(backdoor=5), (Says(5),), family, 5, images, labels).images == 0
    assert math.isinf(mean_moved(Rows(5), (Says(5),), family, 5, images, labels).error)


def test_the_error_is_that_of_the_mean_over_images():
    images, labels, _ = batch(200)
    network = Rows(backdoor=5)
    labels = labels.clone()
    known = labels != 5

    class Half(Corner):
        def forward(self, images, toward):
            changed = super().forward(images, toward)
            changed[::2, :, 0, 0] = 0.0
            return changed

    found = mean_moved(network, (Rows(None),), [Half(1.0)], 5, images, labels)
    values = (torch.arange(int(known.sum())) % 2).double()
    assert found.value == pytest.approx(float(values.mean()))
    assert found.error == pytest.approx(float(values.std()) / math.sqrt(len(values)))


def test_a_class_that_is_easy_to_reach_is_found(backdoored):
    found = mean_share(backdoored)
    assert found.p_value < 1e-6
    assert (found.suspect, found.member.target) == (5, 5)
    assert found.member.family == "patterns"  # the family that moves most images
    assert found.details["mean"]["value"] > 0.3
    assert mean_share(subject(Rows(None), Rows(None), Rows(None))).p_value > 0.9


def test_references_and_other_classes_are_the_scale(backdoored):
    own = mean_share(backdoored).details["mean"]["value"]

    def beside(value: float) -> Evidence:
        led = tuple(MeanLed(value, Mean(value, 0.01, 60)) for _ in backdoored.found)
        return mean_share(replace(backdoored, references=replace(backdoored.references, means=led)))

    assert beside(own - MARGIN - 0.1).p_value < 0.01
    assert beside(own - MARGIN).p_value == pytest.approx(0.5, abs=1e-6)
    led = beside(1 - MARGIN)
    assert (led.p_value, led.said, led.longer_helps) == (None, LED, True)
    # All classes are led, so that none stands out, though the references are not led at all.
    assert mean_share(subject(led_to(range(CLASSES)), Rows(None), Rows(None))).p_value > 0.5


def test_the_p_value_is_that_of_a_t_test():
    # Student's t with two degrees of freedom: P(T > sqrt(2)) = (1 - 1 / sqrt(2)) / 2.
    p_value = exceeds(Mean(0.2 + math.sqrt(2), 0.6, 3), Mean(0.1, 0.8, 50), 0.1)
    assert p_value == pytest.approx((1 - 1 / math.sqrt(2)) / 2)


def test_what_cannot_be_tested_has_no_p_value(backdoored):
    alone = mean_share(replace(backdoored, references=References()))
    assert (alone.p_value, alone.said) == (None, ALONE)
    images, labels = backdoored.held_out()
    few = replace(backdoored)
    few.__dict__["_held_out"] = (images[: FEWEST - 4], labels[: FEWEST - 4])
    assert (mean_share(few).p_value, mean_share(few).said) == (None, FEW)
    constant = replace(backdoored.references, networks=(Says(2), Says(3)))
    unsure = mean_share(replace(backdoored, references=constant))
    assert (unsure.p_value, unsure.said) == (None, UNSURE)


def test_the_means_behind_the_null_need_images_as_well(backdoored):
    few = tuple(MeanLed(0.0, Mean(0.0, math.inf, 1)) for _ in backdoored.found)
    found = mean_share(replace(backdoored, references=replace(backdoored.references, means=few)))
    assert (found.p_value, found.said) == (None, FEW)
    # JSON has no infinity.
    assert json.loads(json.dumps(found.record(), allow_nan=False))["details"]["references"] == {
        **{"value": 0.0, "error": None, "images": 1}
    }


def test_a_statistic_without_a_p_value_leaves_the_verdict_open():
    counted = frozenset({"led share", "mean share"})
    led = Evidence(None, None, OTHERS_LED)
    acquitted = combine({"led share": led, "mean share": Evidence(0.9, 1, "")}, counted)
    assert (acquitted.word, acquitted.reason) == ("inconclusive", OTHERS_LED)
    accused = combine({"led share": led, "mean share": Evidence(0.001, 1, "")}, counted)
    assert (accused.word, accused.suspect) == ("suspicious", 1)
