"""The contract of every distillation term, OFD's weights in closed form, margins, and errors."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustkd import data
from robustkd.core.errors import UsageError
from robustkd.models.features.layout import Layout
from robustkd.models.features.stages import stages
from robustkd.student.objective import DistillationObjective
from robustkd.student.pair import Pair, margins, pair_of
from robustkd.student.terms import NEEDS_FEATURES, TERMS, Outputs, first_rows
from robustkd.training import losses

DATA = data.load("digits", train=90, validation=10, test=10)
N, CLASSES = 6, 5
NARROW = ((4, 8, 8), (8, 4, 4), (16, 2, 2))
WIDE = ((8, 8, 8), (16, 4, 4), (32, 2, 2))


def negative_margins(shapes) -> list[Tensor]:
    return [torch.full((shape[0],), -0.5) for shape in shapes]


def pair(student=NARROW, teacher=WIDE, temperature=4.0) -> Pair:
    return Pair(student, teacher, lambda: negative_margins(teacher), temperature)


def outputs(shapes=NARROW, seed=0, *, learns=False) -> Outputs:
    random = torch.Generator().manual_seed(seed)
    logits, *features = (
        torch.randn(N, *shape, generator=random).requires_grad_(learns)
        for shape in ((CLASSES,), *shapes)
    )
    return Outputs(logits, tuple(features))


def term(name: str, of: Pair) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TERMS[name](of)


# Truths of every term.


def test_every_loss_of_the_table_is_a_term():
    assert set(TERMS) == set(losses.LOSSES)
    assert set(TERMS) == NEEDS_FEATURES | {"kd"}


@pytest.mark.parametrize("name", list(TERMS))
def test_one_finite_value_per_image_never_negative(name):
    value = term(name, pair())(outputs(), outputs(WIDE, 1))
    assert value.shape == (N,)
    assert value.isfinite().all()
    assert (value >= 0).all()
    assert value.max() > 0


@pytest.mark.parametrize("name", list(TERMS))
def test_the_gradient_reaches_the_student_and_the_connectors(name):
    student, learnt = outputs(learns=True), term(name, pair())
    learnt(student, outputs(WIDE, 1)).sum().backward()
    read = {"kd": [student.logits], "rkd": [student.features[-1]]}.get(name, student.features)
    for tensor in (*read, *learnt.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
    for tensor in (student.logits, *student.features):
        assert (tensor.grad is not None) == any(tensor is seen for seen in read)


@pytest.mark.parametrize("name", list(TERMS))
def test_a_weight_is_a_factor_on_the_mean(name):
    shown = outputs(), outputs(WIDE, 1)
    torch.manual_seed(0)
    objective = DistillationObjective({name: 2.5}, pair())
    mean = objective.terms[name](*shown).mean()
    torch.testing.assert_close(objective(*shown), {name: 2.5 * mean})


def test_every_term_is_returned_by_its_name():
    weights = dict.fromkeys(TERMS, 1.0)
    parts = DistillationObjective(weights, pair())(outputs(), outputs(WIDE, 1))
    assert list(parts) == list(TERMS)
    assert all(part.shape == () for part in parts.values())


def test_soft_targets_take_the_temperature_of_the_pair():
    student, teacher = outputs(), outputs(WIDE, 1)
    expected = losses.soft_target_kl(student.logits, teacher.logits, temperature=2.0)
    assert torch.equal(term("kd", pair(temperature=2.0))(student, teacher), expected)


# Connectors, and OFD in closed form.


def constant(connector: nn.Module, value: float) -> None:
    """Let a connector give one value whatever it reads."""
    nn.init.zeros_(connector.conv.weight)
    nn.init.constant_(connector.norm.bias, value)


@pytest.mark.parametrize(
    "teacher", [WIDE, ((64, 32, 32), (128, 16, 16), (256, 8, 8)), ((6, 5, 7),)], ids=str
)
def test_ofd_weighs_as_much_for_every_network_as_in_the_papers_runs(teacher):
    """A distance of 1 at every element: the paper's sum over a WRN-28-4, divided by 1000."""
    papers = (64 * 32 * 32 / 4 + 128 * 16 * 16 / 2 + 256 * 8 * 8) / 1000
    ofd = term("ofd", pair(NARROW[: len(teacher)], teacher))
    for connector in ofd.connectors:
        constant(connector, 2.0)
    shown = Outputs(torch.zeros(N, CLASSES), tuple(torch.ones(N, *shape) for shape in teacher))
    value = ofd(outputs(NARROW[: len(teacher)]), shown)
    torch.testing.assert_close(value, torch.full((N,), papers))


def test_ofd_doubles_the_weight_from_stage_to_stage():
    """A distance in one stage alone, as a share of the same distance in all of them."""
    values = []
    for active in range(3):
        ofd = term("ofd", pair())
        for stage, connector in enumerate(ofd.connectors):
            constant(connector, 3.0 if stage == active else 1.0)
        shown = Outputs(torch.zeros(N, CLASSES), tuple(torch.ones(N, *shape) for shape in WIDE))
        values.append(ofd(outputs(), shown).mean().item())
    elements = [8 * 8 * 8 / 4, 16 * 4 * 4 / 2, 32 * 2 * 2]
    shares = [value / sum(values) for value in values]
    assert shares == pytest.approx([count / sum(elements) for count in elements])


def test_ofd_is_zero_where_both_are_inactive_and_the_student_is_below_the_margin():
    ofd = term("ofd", pair())
    for connector in ofd.connectors:
        constant(connector, -0.6)
    shown = Outputs(torch.zeros(N, CLASSES), tuple(torch.full((N, *s), -9.0) for s in WIDE))
    assert ofd(outputs(), shown).tolist() == [0.0] * N


def test_margins_are_kept_but_not_learnt():
    ofd = term("ofd", pair())
    assert {name for name, _ in ofd.named_parameters()} == {
        f"connectors.{stage}.{part}"
        for stage in range(3)
        for part in ("conv.weight", "norm.weight", "norm.bias")
    }
    assert torch.equal(ofd.margin0, negative_margins(WIDE)[0])


@pytest.mark.parametrize("name", ["ofd", "fitnet"])
def test_connectors_bridge_sizes_bilinearly(name):
    connector = term(name, pair(((1, 1, 2),), ((1, 1, 4),))).connectors[0].eval()
    nn.init.ones_(connector.conv.weight)
    # Centres of the new pixels lie a quarter of an old one beside the old centres.
    bridged = connector(torch.tensor([[[[1.0, 5.0]]]]))
    assert bridged.flatten().tolist() == pytest.approx([1.0, 2.0, 4.0, 5.0], rel=1e-4)


@pytest.mark.parametrize("name", ["ofd", "fitnet"])
def test_connectors_average_a_larger_student(name):
    connector = term(name, pair(((1, 4, 4),), ((1, 2, 2),))).connectors[0].eval()
    nn.init.ones_(connector.conv.weight)
    bridged = connector(torch.arange(16.0).reshape(1, 1, 4, 4))
    # 0, 1, 4, 5 in the first quarter, and so on.
    assert bridged.flatten().tolist() == pytest.approx([2.5, 4.5, 10.5, 12.5], rel=1e-4)


@pytest.mark.parametrize("name", ["ofd", "fitnet"])
def test_tokens_and_channels_last_count_as_maps(name):
    """The same numbers in any layout give the same loss."""
    maps = ((4, 4, 4), (8, 2, 2))
    layouts = (Layout("NHWC", 4, (4, 4)), Layout("NTC", 8, (2, 2)))
    plain, learnt = pair(maps, maps), outputs(maps)
    laid_out = replace(plain, student_layouts=layouts, teacher_layouts=layouts)

    def moved(shown: Outputs) -> Outputs:
        first, second = shown.features
        return shown._replace(
            features=(first.permute(0, 2, 3, 1), second.flatten(2).transpose(1, 2))
        )

    found = []
    for of, change in ((plain, lambda shown: shown), (laid_out, moved)):
        torch.manual_seed(0)
        found.append(
            DistillationObjective({name: 1.0}, of)(change(learnt), change(outputs(maps, 1)))[name]
        )
    torch.testing.assert_close(*found)


def test_tokens_are_measured_channel_by_channel():
    class Tokens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2)

    model = nn.Sequential(nn.Conv2d(1, 3, 4, 4), Tokens(), nn.Flatten(), nn.Linear(48, 4))
    with torch.no_grad():
        convolved = model[0](next(DATA.batches("train", batch_size=90)).images)
    (found,) = margins(model, ["1"], DATA)
    assert found.tolist() == pytest.approx(naive_margin(convolved), rel=1e-4)
    assert pair_of(model, ["1"], model, ["0"], DATA, temperature=4.0).student == ((3, 4, 4),)


@pytest.mark.parametrize("name", ["ofd", "fitnet"])
def test_a_student_with_other_feature_sizes_learns(name):
    small = ((4, 4, 4), (8, 2, 2), (16, 1, 1))
    student = outputs(small, learns=True)
    term(name, pair(small))(student, outputs(WIDE, 1)).sum().backward()
    assert all(features.grad.any() for features in student.features)


# Margins and shapes of real networks.


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.BatchNorm2d(3, affine=False),
            nn.Flatten(),
            nn.Linear(3 * 14 * 14, 4),
        )
    nn.init.constant_(made[1].weight, 2.0)
    nn.init.constant_(made[1].bias, -0.25)
    return made


def naive_margin(features: Tensor) -> list[float]:
    channels = features.transpose(0, 1).flatten(1).tolist()
    below = [[value for value in channel if value < 0] for channel in channels]
    return [sum(values) / len(values) if values else 0.0 for values in below]


def test_margins_are_closed_form_at_a_batchnorm_and_measured_elsewhere():
    model = network()
    images = next(DATA.batches("train", batch_size=90)).images
    with torch.no_grad():
        convolved = model[0](images)
        normalised = model[3].eval()(model[2](model[1].eval()(convolved)))
    model.train()
    found = margins(model, ["1", "0", "3"], DATA)
    closed = losses.margin_from_batchnorm(torch.full((3,), 2.0), torch.full((3,), -0.25))
    torch.testing.assert_close(found[0], closed)
    for margin, features in ((found[1], convolved), (found[2], normalised)):
        assert margin.tolist() == pytest.approx(naive_margin(features), rel=1e-4)
    assert all(module.training for module in model.modules())
    assert model[1].num_batches_tracked == 0


def test_a_pair_knows_the_shapes_of_both_networks():
    model = network()
    found = pair_of(model, ["0"], model, ["1"], DATA, temperature=3.0)
    assert found.student == found.teacher == ((3, 14, 14),)
    assert found.temperature == 3.0
    torch.testing.assert_close(found.margins(), margins(model, ["1"], DATA))


def test_a_wrn_is_paired_stage_by_stage():
    from robustkd import models

    wide, narrow = (
        models.build(models.Spec(arch, 10, DATA.image_shape), seed=0)
        for arch in ("wrn-10-2", "wrn-10-1")
    )
    images = next(DATA.batches("train", batch_size=4)).images
    names = stages(wide, images)
    found = pair_of(narrow, names, wide, names, DATA, temperature=4.0)
    assert found.teacher == ((32, 16, 16), (64, 8, 8), (128, 4, 4))
    assert found.student == ((16, 16, 16), (32, 8, 8), (64, 4, 4))


# Refusals.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DistillationObjective({"kld": 1.0}, pair()),
            f"unknown distillation loss 'kld'; expected {', '.join(TERMS)}",
        ),
        (
            lambda: DistillationObjective({"kd": 1.0, "at": 0.0}, pair()),
            "weight of distillation loss 'at' is 0.0; expected more than 0",
        ),
        (
            lambda: DistillationObjective({"kd": float("nan")}, pair()),
            "weight of distillation loss 'kd' is nan; expected more than 0",
        ),
        (
            lambda: DistillationObjective({"at": 1.0}, pair(((4, 8, 8),), ((4, 4, 8),))),
            "attention transfer needs equal sizes; got (8, 8) and (4, 8)",
        ),
        (
            lambda: pair_of(network(), ["0", "1"], network(), ["1"], DATA, temperature=4.0),
            "student has 2 taps and teacher 1; expected equal",
        ),
        (
            lambda: pair_of(network(), ["0"], network(), ["5"], DATA, temperature=4.0),
            "module '5' gives features of shape (4,); expected channels x height x width or "
            "tokens x channels: tap a stage",
        ),
    ],
)
def test_error_messages(make, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_first_rows_has_the_memory_format_of_all(memory):
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(5, 3, 4, 4, generator=generator).contiguous(memory_format=memory)
    one, other = whole.clone().requires_grad_(), whole.clone().requires_grad_()
    strides = []
    inner = one * 1
    inner.register_hook(lambda gradient: strides.append(gradient.stride()))
    first_rows(inner, 2).square().sum().backward()
    other[:2].square().sum().backward()
    assert torch.equal(one.grad, other.grad)
    assert strides == [whole.stride()]
    assert torch.equal(first_rows(whole, 2), whole[:2])


def test_all_of_the_first_are_the_outputs_themselves():
    shown = outputs()
    assert shown.first(N) is shown
    some = shown.first(1)
    assert [len(each) for each in (some.logits, *some.features)] == [1] * (1 + len(shown.features))
