"""Each defence against a closed form, a hand-made network or a naive reference."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.types import Batch
from robustkd.data import InMemory, Labelled
from robustkd.models.features import channels
from robustkd.models.features.probing import batchnorm_after
from robustkd.teacher.defences import anp, clp, fine_pruning, fst, ft_sam, nad, pruning, sau
from robustkd.teacher.defences.anp import ANP
from robustkd.teacher.defences.fine_pruning import FinePruning
from robustkd.teacher.defences.fine_tuning import FineTuning
from robustkd.teacher.defences.i_bau import IBAU
from robustkd.teacher.defences.rnp import RNP
from robustkd.teacher.defences.sau import SAU
from robustkd.teacher.defences.tuning import Tuning, begin, tune
from robustkd.teacher.defences.universal import UniversalTraining
from robustkd.training.inference import batch_size_for, frozen_copy
from tests.teacher.defences.networks import DIGITS, Attention, Linear, Small, trained


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_pixels(strong: float, weak: float) -> InMemory:
    """Images of 1 x 1 x 2 whose two pixels tell the class, by these contrasts around grey."""

    def split(n: int) -> Labelled:
        labels = torch.arange(n) % 2
        levels = 0.5 + (labels[:, None] - 0.5) * torch.tensor([strong, weak])
        return Labelled((levels * 255).round().to(torch.uint8).view(n, 1, 1, 2), labels)

    return InMemory("two pixels", ("dark", "bright"), split(40), split(20), split(20))


def batch_of(n: int = 12, seed: int = 0) -> Batch:
    return next(DIGITS.batches("train", batch_size=n))


def test_one_step_of_fine_tuning_is_that_of_softmax_regression():
    source = two_pixels(0.8, 0.2)
    network = Linear(noise(2, 2))
    everything = next(source.batches("train", batch_size=40))
    pixels, labels = everything.images.flatten(1), everything.labels
    error = network(everything.images).softmax(1) - F.one_hot(labels, 2)
    slope = (error.T @ pixels / len(labels)).detach()
    tuning = Tuning(epochs=1, lr=0.1, batch_size=40, momentum=0.9, weight_decay=0.0)
    done = FineTuning(tuning)(network, source, seed=0)
    # Nesterov's first step is 1 + momentum times the gradient.
    expected = network.head.weight.detach() - 0.1 * 1.9 * slope
    torch.testing.assert_close(done.network.head.weight.detach(), expected)


def test_the_perturbation_of_ft_sam_has_its_radius_and_climbs_steepest():
    weights, slopes = [noise(3, 4), noise(5, seed=1)], [noise(3, 4, seed=2), noise(5, seed=3)]
    steps = ft_sam.adaptive_ascent(weights, slopes, rho=0.7)
    flat = [torch.cat([part.flatten() for part in parts]) for parts in (weights, slopes, steps)]
    w, g, step = flat
    assert float((step / w.abs()).norm()) == pytest.approx(0.7, rel=1e-5)
    for seed in range(20):
        other = noise(len(w), seed=10 + seed)
        other = 0.7 * other / other.norm() * w.abs()
        assert float(other @ g) <= float(step @ g)


def test_weights_and_statistics_stay_after_the_perturbed_pass():
    network = Small().train()
    before = copy.deepcopy(network.state_dict())
    weights = list(network.parameters())
    steps = [torch.ones_like(weight) for weight in weights]
    with ft_sam.moved(weights, steps), ft_sam.still_statistics(network):
        network(batch_of().images)
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert network.bn1.momentum == 0.1


def test_the_channel_bound_of_clp_by_hand():
    conv, norm = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]).view(2, 2, 1, 1))
        norm.weight.copy_(torch.tensor([2.0, -6.0]))
        norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    assert channels.lipschitz(conv, norm).tolist() == pytest.approx([5.0, 2.0])
    assert channels.lipschitz(conv, None).tolist() == pytest.approx([5.0, 1.0])


def test_clp_pairs_a_convolution_with_the_batchnorm_that_reads_it_and_silences_outliers():
    network = Small().eval()
    pairs = batchnorm_after(network, batch_of().images)
    assert pairs == [(network.conv1, network.bn1), (network.conv2, network.bn2)]
    with torch.no_grad():
        network.conv2.weight.normal_(generator=torch.Generator().manual_seed(0))
        network.conv2.weight[7] *= 100
        network.bn2.weight.fill_(1.0)
        network.bn2.bias.fill_(1.0)
    assert clp.prune(pairs[1:], 3.0) == 1
    assert (network.bn2.weight == 0).nonzero().flatten().tolist() == [7]
    assert (network.bn2.bias == 0).nonzero().flatten().tolist() == [7]


def test_scaled_channels_are_those_of_a_network_with_such_weights():
    network = trained_once()
    images = batch_of().images
    weights = {path: torch.rand(len(norm.weight)) for path, norm in channels.norms(network).items()}
    biases = {path: 1 + weight for path, weight in weights.items()}
    reference = copy.deepcopy(network)
    with torch.no_grad():
        for path, norm in channels.norms(reference).items():
            norm.weight *= weights[path]
            norm.bias *= biases[path]
        found = channels.scaled(network, images, weights, biases)
        torch.testing.assert_close(found, reference(images))


_KEPT: list[nn.Module] = []


def trained_once() -> nn.Module:
    if not _KEPT:
        _KEPT.append(trained())
    return _KEPT[0]


def test_anp_descends_alpha_times_the_plain_loss_where_nothing_is_perturbed():
    network, batch = trained_once(), batch_of(50)
    masks = {path: torch.ones(len(norm.weight)) for path, norm in channels.norms(network).items()}
    generator = torch.Generator().manual_seed(0)
    plain = F.cross_entropy(network(batch.images), batch.labels)
    calm = ANP(epsilon=1e-9).loss(network, masks, batch, generator)
    torch.testing.assert_close(calm, plain)
    harsh = ANP(epsilon=0.4, alpha=0.0).loss(network, masks, batch, generator)
    assert float(harsh.detach()) > float(plain.detach())


def test_anp_accepts_a_batchnorm_that_is_not_used():
    network, batch = copy.deepcopy(trained_once()), batch_of(50)
    network.idle = nn.BatchNorm2d(4)
    masks = {path: torch.ones(len(norm.weight)) for path, norm in channels.norms(network).items()}
    found = ANP().loss(network, masks, batch, torch.Generator().manual_seed(0))
    assert bool(found.isfinite())


def test_channels_are_pruned_at_or_below_the_threshold():
    network = copy.deepcopy(trained_once())
    masks = {"bn1": torch.linspace(0, 1, 16), "bn2": torch.ones(24)}
    before = network.bn1.weight.detach().clone()
    assert pruning.prune_below(network, masks, 0.15) == 3
    assert network.bn1.weight[:3].tolist() == [0, 0, 0]
    assert torch.equal(network.bn1.weight[3:], before[3:])
    assert anp.THRESHOLDS[0] == 0.0


def test_the_hypergradient_of_i_bau_is_that_through_one_step_of_the_perturbation():
    network = Linear(noise(3, 4))
    images, labels = torch.rand(6, 1, 2, 2), torch.arange(6) % 3
    delta = 0.1 * noise(1, 1, 2, 2, seed=1)
    IBAU(products=1, share=1.0)._unlearn(network, Batch(images, labels, labels), delta)
    weights = list(network.parameters())
    d = delta.clone().requires_grad_()
    outer = F.cross_entropy(network(images + d), labels)
    (at_delta,) = torch.autograd.grad(outer, [d], retain_graph=True)
    inner = -F.cross_entropy(network(images + d), labels) + 0.001 * d.square().sum()
    (slope,) = torch.autograd.grad(inner, [d], create_graph=True)
    stepped = d - 0.1 * slope
    naive = torch.autograd.grad(outer + (at_delta * stepped).sum(), weights)
    for weight, expected in zip(weights, naive, strict=True):
        torch.testing.assert_close(weight.grad, expected)


def test_i_bau_differentiates_attention_twice():
    network, batch = Attention(), batch_of()
    IBAU()._unlearn(network, batch, torch.full((1, *DIGITS.image_shape), 0.01))
    assert all(bool(weight.grad.isfinite().all()) for weight in network.parameters())


def test_the_perturbation_of_i_bau_stays_within_its_radius_and_fools():
    work = begin(trained_once(), DIGITS, batch_size=40, seed=0)
    delta, fooled = IBAU(radius=0.3)._perturbation(work)
    assert delta.shape == (1, 1, 16, 16)
    assert float(delta.square().mean().sqrt()) <= 0.3 + 1e-6
    assert fooled > 0.2


def test_fine_pruning_removes_the_least_active_inputs_for_good():
    network = trained_once()
    seen = []
    hook = network.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(next(DIGITS.batches("train", batch_size=400)).images)
    hook.remove()
    means = fine_pruning.mean_activation(network, network.head, DIGITS)
    torch.testing.assert_close(means, seen[0].mean(0))
    done = FinePruning(tuning=Tuning(epochs=2, batch_size=40))(network, DIGITS, seed=0)
    dead = (done.network.head.weight == 0).all(0).nonzero().flatten()
    count = done.record["pruned"]
    assert count > 0
    assert sorted(dead.tolist()) == sorted(means.argsort(stable=True)[:count].tolist())


def test_fine_pruning_passes_few_large_images_at_once():
    large = Labelled(torch.zeros(40, 1, 256, 256, dtype=torch.uint8), torch.arange(40) % 2)
    source = InMemory("large", ("a", "b"), large, large, large)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    seen = []
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    fine_pruning.mean_activation(network, network[2], source)
    assert max(seen) == batch_size_for(source.image_shape) < 40


def test_a_loss_of_exactly_the_budget_is_within_it():
    assert pruning.last_within([1, 2], {1: 0.41, 2: 0.4}.get, 0.51 - 0.1)[0] == 1


def test_nad_trains_its_teacher_with_batches_of_their_own_size(monkeypatch):
    sizes: dict[str, list[int]] = {}

    def watched(work, gradients, tuning, *, label, **settings):
        def look(batch: Batch) -> Tensor:
            sizes.setdefault(label, []).append(len(batch.labels))
            return gradients(batch)

        tune(work, look, tuning, label=label, **settings)

    monkeypatch.setattr(nad, "tune", watched)
    defence = nad.NAD(
        teacher=Tuning(epochs=1, batch_size=200), tuning=Tuning(epochs=1, batch_size=100)
    )
    defence(trained_once(), DIGITS, seed=0)
    assert sizes == {"NAD, teacher": [200] * 2, "NAD": [100] * 4}
    assert defence.batches(400) == 6


def test_attention_maps_by_a_naive_loop_and_their_invariance_to_scale():
    features, other = noise(3, 4, 2, 5), noise(3, 4, 2, 5, seed=1)
    found = nad.attention(features)
    for image in range(3):
        squares = [
            sum(float(features[image, c, i, j]) ** 2 for c in range(4))
            for i in range(2)
            for j in range(5)
        ]
        length = math.sqrt(sum(s * s for s in squares))
        assert found[image].tolist() == pytest.approx([s / length for s in squares], rel=1e-5)
    assert float(nad.attention_distance(features, 7 * features)) < 1e-12
    assert float(nad.attention_distance(features, other)) > 0


class ChannelsLast(nn.Module):
    """A network whose stage gives N x H x W x C, as those of a Swin transformer do."""

    taps = ("stage",)

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 6, 3, padding=1, stride=2)
        self.stage = nn.Identity()
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.stage(self.convolution(images).permute(0, 2, 3, 1))
        return self.head(seen.relu().mean((1, 2)))


def test_attention_sums_over_channels_wherever_they_are():
    network = ChannelsLast()
    layout = nad.stages_of(network, DIGITS)["stage"]
    assert layout.kind == "NHWC"
    maps = noise(2, 6, 8, 8)
    torch.testing.assert_close(layout.maps(maps.permute(0, 2, 3, 1)), maps)
    short = Tuning(epochs=1, batch_size=100)
    assert nad.NAD(teacher=short, tuning=short)(network, DIGITS, seed=0).record["stages"] == [
        "stage"
    ]


def test_the_divergence_of_sau_is_scipys():
    one, other = noise(5, 4).softmax(1), noise(5, 4, seed=1).softmax(1)
    expected = [jensenshannon(p, q) ** 2 for p, q in zip(one.numpy(), other.numpy(), strict=True)]
    assert sau.jensen_shannon(one, other).tolist() == pytest.approx(expected, rel=1e-4)
    assert sau.jensen_shannon(one, one).abs().max() < 1e-6


def test_the_shared_risk_counts_images_that_the_reference_gets_wrong():
    led = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    wrong, labels = torch.tensor([1, 1]), torch.tensor([0, 1])
    assert float(sau.shared_risk(led, wrong, labels)) == pytest.approx(math.log(4) / 2)


def test_the_perturbations_of_sau_stay_in_the_ball_and_fool_both_networks():
    network, batch = trained_once(), batch_of(60)
    reference = frozen_copy(network)
    delta = SAU().perturbation(network, reference, batch)
    assert float(delta.abs().max()) <= 0.2 + 1e-6
    with torch.no_grad():
        clean, led = (network(x).argmax(1) for x in (batch.images, batch.images + delta))
    hits = [float((said == batch.labels).float().mean()) for said in (clean, led)]
    assert hits[1] < hits[0] - 0.3


def test_fst_draws_a_new_classifier_of_the_old_norm():
    head = copy.deepcopy(trained_once().head)
    old = head.weight.detach().clone()
    fst.renew(head, 5)
    fst.project(head, old)
    assert float(head.weight.detach().norm()) == pytest.approx(float(old.norm()), rel=1e-5)
    assert not torch.equal(head.weight, old)
    assert not head.bias.any()
    done = fst.FST(tuning=Tuning(epochs=3, batch_size=40))(trained_once(), DIGITS, seed=0)
    assert float(done.network.head.weight.detach().norm()) == pytest.approx(
        float(old.norm()), rel=1e-5
    )
    assert done.record["cosine"] < 0.5


def test_a_larger_alpha_of_fst_turns_the_classifier_further_away():
    cosines = [
        fst.FST(alpha=alpha, tuning=Tuning(epochs=2, batch_size=40))(trained_once(), DIGITS, seed=0)
        for alpha in (0.0, 2.0)
    ]
    assert cosines[1].record["cosine"] < cosines[0].record["cosine"]


def test_rnp_unlearns_the_clean_task_and_recovers_it_by_masks():
    network = trained_once()
    work = begin(network, DIGITS, batch_size=100, seed=0)
    scratch = frozen_copy(network).requires_grad_(True)
    defence = RNP(unlearn_lr=0.05, steps=30)
    images, labels, _ = next(DIGITS.batches("train", batch_size=400))

    def loss(masks: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(channels.scaled(scratch, images, masks), labels))

    ones = {path: torch.ones(len(norm.weight)) for path, norm in channels.norms(network).items()}
    before = loss(ones)
    defence._unlearn(work, scratch)
    unlearned = loss(ones)
    assert unlearned > before + 1
    masks = defence._recover(work, scratch.requires_grad_(False))
    assert all(bool(((mask >= 0) & (mask <= 1)).all()) for mask in masks.values())
    scratch.train()
    assert loss(masks) < loss(ones)


def test_universal_training_leaves_the_pixel_that_a_small_change_can_fake():
    source = two_pixels(strong=0.8, weak=0.2)
    network = Linear(torch.tensor([[-1.0, -4.0], [1.0, 4.0]]))
    tuning = Tuning(epochs=150, lr=0.1, batch_size=20, weight_decay=0.0)
    ratios = []
    for defence in (FineTuning(tuning), UniversalTraining(0.15, 0.02, tuning=tuning)):
        weight = defence(network, source, seed=0).network.head.weight.detach()
        strong, weak = (weight[1] - weight[0]).tolist()
        ratios.append(weak / strong)
    assert ratios[1] < ratios[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tuning(epochs=0), "epochs is 0; expected at least 1"),
        (lambda: Tuning(batch_size=1), "batch_size is 1; expected at least 2"),
        (lambda: Tuning(momentum=1.0), "momentum is 1.0; expected at least 0 and below 1"),
        (lambda: ANP(alpha=1.5), "alpha is 1.5; expected 0 to 1"),
        (lambda: SAU(radius=1.5), "radius is 1.5; expected above 0 and at most 1"),
        (lambda: clp.CLP(factors=(1.0, 2.0)), "expected at least one, in decreasing order"),
        (lambda: ft_sam.FTSAM(smoothing=1.0), "smoothing is 1.0; expected at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
