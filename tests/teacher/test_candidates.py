"""The choice between several state dicts of a teacher's file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from robustkd.core.errors import InputError, UsageError
from robustkd.models import Classifier, Spec, build
from robustkd.teacher.match import Wanted, plans
from tests.teacher.test_read import IMAGES, model, network, prefixed, read, refusal, state_in


def state(seed: int = 0) -> dict[str, Tensor]:
    return dict(model(seed).network.state_dict())


def told(found: object) -> tuple[str, tuple[str, ...]]:
    return found.file.key, found.file.candidates


def prefers(*seeds: int):
    """A judge by the teacher's first weights: the more accurate, the earlier its seed."""
    firsts = [model(seed).network.stem.weight for seed in seeds]

    def judge(found: Classifier) -> float:
        places = [torch.equal(found.network.stem.weight, first) for first in firsts]
        return 0.9 - places.index(True) / 10

    return judge


@pytest.mark.parametrize("best", [0, 1])
def test_the_more_accurate_of_two_state_dicts_is_taken(best, tmp_path):
    path = state_in(
        tmp_path / "t.pt", {"epoch": 3, "state_dict": state(0), "state_dict_ema": state(1)}
    )
    found = read(path, judge=prefers(best, 1 - best))
    assert torch.equal(found.model(IMAGES), model(best)(IMAGES))
    accuracies = ("90.0%", "80.0%") if best == 0 else ("80.0%", "90.0%")
    assert told(found) == (
        ("state_dict", "state_dict_ema")[best],
        tuple(
            f"'{key}' (accuracy {accuracy})"
            for key, accuracy in zip(("state_dict", "state_dict_ema"), accuracies, strict=True)
        ),
    )
    assert set(found.file.ignored) == {"'epoch'", ("'state_dict_ema'", "'state_dict'")[best]}


def test_the_first_is_taken_on_ties_and_without_a_judge(tmp_path):
    path = state_in(tmp_path / "t.pt", {"b": state(0), "a": state(1)})
    assert told(read(path, judge=lambda _: 0.5))[0] == "b"
    assert told(read(path)) == ("b", ("'b'", "'a'"))


def test_a_single_fitting_state_dict_is_used_without_measurement(tmp_path):
    other = {"w": torch.ones(3)}
    for content in ({"a": other, "b": {"c": state()}}, {"b": {"c": state()}, "w": torch.ones(1)}):
        path = state_in(tmp_path / "t.pt", content)
        found = read(path, judge=lambda _: pytest.fail("was measured"))
        assert told(found) == ("b.c", ())
        assert torch.equal(found.model(IMAGES), model()(IMAGES))


def test_an_averaged_model_beside_the_model(tmp_path):
    averaged = AveragedModel(network())
    averaged.update_parameters(network())
    content = {"model": state(1), "model_ema": averaged.state_dict()}
    path = state_in(tmp_path / "t.pt", content)
    found = read(path, judge=prefers(0, 1))
    assert (found.file.key, found.file.wrappers) == ("model_ema", ("model_ema", "module."))
    assert "'n_averaged'" in found.file.ignored
    assert torch.equal(found.model(IMAGES), model(0)(IMAGES))


def test_two_networks_in_one_state_dict_are_told_apart_by_their_prefixes(tmp_path):
    content = {"state_dict": prefixed("student.", state(0)) | prefixed("teacher.", state(1))}
    path = state_in(tmp_path / "t.pt", content)
    found = read(path, judge=prefers(1, 0))
    assert told(found) == (
        "state_dict.teacher",
        ("'state_dict.student' (accuracy 80.0%)", "'state_dict.teacher' (accuracy 90.0%)"),
    )
    assert torch.equal(found.model(IMAGES), model(1)(IMAGES))
    named = read(path, teacher_key="state_dict.student", judge=lambda _: pytest.fail("measured"))
    assert torch.equal(named.model(IMAGES), model(0)(IMAGES))


def test_the_user_names_the_key(tmp_path):
    path = state_in(tmp_path / "t.pt", {"a": state(0), "b": {"c": state(1)}, "d": {"w": IMAGES}})
    found = read(path, teacher_key="b.c", judge=lambda _: pytest.fail("was measured"))
    assert told(found) == ("b.c", ())
    assert torch.equal(found.model(IMAGES), model(1)(IMAGES))
    with pytest.raises(UsageError) as caught:
        read(path, teacher_key="c")
    assert str(caught.value) == (
        f"teacher_key is 'c'; {path} has 'a', 'b.c', 'd': give one of these, or leave it out"
    )
    assert "does not fit the architecture" in refusal(path, teacher_key="d")


def test_if_nothing_fits_the_error_is_about_the_largest_state_dict(tmp_path):
    lacking = {n: t for n, t in state().items() if not n.startswith("head.")}
    path = state_in(tmp_path / "t.pt", {"d": {"w": IMAGES}, "model": lacking})
    assert "has no head (head.bias, head.weight)" in refusal(path)


# Prefixes and strays.


@pytest.mark.parametrize(
    "prefix", ["mine.", "module.backbone.", "1.", "_orig_mod.model.net.", "a.b.c.d."]
)
def test_any_common_prefix_is_stripped(prefix, tmp_path):
    found = read(state_in(tmp_path / "t.pt", prefixed(prefix, state())))
    assert torch.equal(found.model(IMAGES), model()(IMAGES))
    assert "".join(found.file.wrappers) == prefix


@pytest.mark.parametrize(
    ("content", "ignored"),
    [
        (
            lambda s: prefixed("model.", s) | {"criterion.weight": torch.ones(4)},
            ["'criterion.weight'"],
        ),
        (lambda s: s | {"auxiliary.fc.weight": torch.ones(2, 2)}, ["'auxiliary.fc.weight'"]),
        (
            lambda s: s | {"total_ops": torch.zeros(1), "groups.0.total_params": torch.zeros(1)},
            ["'total_ops'", "'groups.0.total_params'"],
        ),
        (lambda s: s | {"rng": torch.ones(5, dtype=torch.uint8)}, ["'rng'"]),
    ],
)
def test_tensors_outside_the_network_are_listed_as_ignored(content, ignored, tmp_path):
    found = read(state_in(tmp_path / "t.pt", content(state())))
    assert torch.equal(found.model(IMAGES), model()(IMAGES))
    assert list(found.file.ignored) == ignored


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("name", ["groups.0.1.conv1.weight", "head.scale", "stem.total_opsy"])
def test_a_further_tensor_of_a_known_part_means_another_architecture(prefix, name, tmp_path):
    path = state_in(tmp_path / "t.pt", prefixed(prefix, state() | {name: torch.ones(2)}))
    assert refusal(path) == (
        f"{path} does not fit the architecture 'wrn-10-1': 1 unexpected ('{name}')"
    )


@pytest.mark.parametrize(
    ("content", "layer"),
    [
        (lambda s: prefixed("1.", s), "0."),
        (lambda s: prefixed("module.model.", s), "module.normalize."),
        (lambda s: s, "normalizer."),
        (lambda s: prefixed("module.", s), "module."),
    ],
)
@pytest.mark.parametrize("scale", [1, 255])
def test_a_layer_in_front_states_the_normalisation(content, layer, scale, tmp_path):
    pair = {f"{layer}mean": torch.tensor([0.3]) * scale, f"{layer}std": torch.tensor([0.2]) * scale}
    found = read(state_in(tmp_path / "t.pt", pair | content(state())), mean=(), std=())
    assert found.file.normalisation == "the teacher's file"
    assert found.file.ignored == ()
    torch.testing.assert_close(found.model(IMAGES), model()(IMAGES))


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ("new_mean", "new_std"),
        ("mu", "sigma"),
        ("image_mean", "image_std"),
        ("pixel_mean", "pixel_std"),
    ],
)
@pytest.mark.parametrize("layer", ["", "normalizer."])
def test_layers_in_front_may_name_the_normalisation_in_other_ways(mean, std, layer, tmp_path):
    pair = {f"{layer}{mean}": torch.tensor([0.3]), f"{layer}{std}": torch.tensor([0.2])}
    content = pair | prefixed("model.", state())
    found = read(state_in(tmp_path / "t.pt", content), mean=(), std=())
    assert found.file.normalisation == "the teacher's file"
    torch.testing.assert_close(found.model(IMAGES), model()(IMAGES))


def test_a_normalisation_of_bytes_by_a_detector_is_not_guessed(tmp_path):
    """Its channels may be in the order blue, green, red."""
    pair = {"pixel_mean": torch.tensor([103.5]), "pixel_std": torch.tensor([57.0])}
    path = state_in(tmp_path / "t.pt", pair | prefixed("model.", state()))
    assert "in the order blue, green, red" in refusal(path, mean=(), std=())
    assert "--mean and --std" in refusal(path, mean=(), std=())
    assert read(path).file.normalisation == "given by the user"


def test_one_value_is_the_normalisation_of_all_channels(tmp_path):
    spec = Spec("wrn-10-1", 3, (3, 8, 8))
    pair = {"0.mean": torch.tensor(0.25), "0.std": torch.tensor([0.5])}
    path = state_in(
        tmp_path / "t.pt", pair | prefixed("1.", build(spec, seed=0).network.state_dict())
    )
    found = read(path, mean=(), std=(), image_shape=(3, 8, 8))
    assert (found.model.spec.mean, found.model.spec.std) == ((0.25,) * 3, (0.5,) * 3)


def test_two_equal_layers_in_front_state_the_normalisation(tmp_path):
    pairs = {f"{n}.{part}": torch.full((1,), 0.3) for n in "ab" for part in ("mean", "std")}
    found = read(state_in(tmp_path / "t.pt", state() | pairs), mean=(), std=())
    assert found.file.ignored == ()
    assert found.model.spec.mean == pytest.approx((0.3,))


def test_two_layers_in_front_that_differ_need_the_user(tmp_path):
    values = {"a.mean": 0.3, "a.std": 0.3, "b.mean": 0.4, "b.std": 0.3}
    pairs = {name: torch.full((1,), value) for name, value in values.items()}
    path = state_in(tmp_path / "t.pt", state() | pairs)
    assert refusal(path, mean=(), std=()) == (
        f"{path} has two normalisations of images that differ, in 'a.mean' and 'b.mean'; give the "
        "right mean and standard deviation with --mean and --std, or save the weights without "
        "these tensors"
    )
    assert read(path).file.normalisation == "given by the user"


def test_names_of_very_many_parts_are_matched_quickly(tmp_path):
    long = ".".join(["a"] * 147)
    tensors = {f"{long}.{number}": IMAGES.to("meta") for number in range(10_000)}
    wanted = Wanted.by(Spec("wrn-10-1", 3, (1, 8, 8)))
    started = time.process_time()
    with pytest.raises(InputError, match="does not fit"):
        plans(tensors, wanted, tmp_path / "t.pt")
    assert time.process_time() - started < 2


def test_a_file_of_another_state_dict_than_its_layout_is_refused(tmp_path, monkeypatch):
    from robustkd.teacher.untrusted import quarantine

    path = state_in(tmp_path / "t.pt", {"a": state(0), "b": state(1)})
    other = Path(tmp_path / "other.pt")
    state_in(other, {"a": {"w": IMAGES}})
    copied = quarantine._copy

    def exchanged(_: object, to: Path, __: int) -> str:
        with other.open("rb", buffering=0) as file:
            return copied(file, to, other.stat().st_size)

    monkeypatch.setattr(quarantine, "_copy", exchanged)
    with pytest.raises(InputError, match="fewer state dicts than before"):
        read(path, teacher_key="b")
    assert "46 missing" in refusal(path, teacher_key="a")


@pytest.mark.parametrize(
    ("compute", "part"),
    [
        (parametrizations.weight_norm, "stem.parametrizations.weight.original0"),
        (parametrizations.spectral_norm, "stem.parametrizations.weight.original"),
        (weight_norm, "stem.weight_g"),
        (spectral_norm, "stem.weight_orig"),
        (lambda module: prune.l1_unstructured(module, "weight", 0.5), "stem.weight_orig"),
    ],
    ids=["weight norm", "spectral norm", "old weight norm", "old spectral norm", "pruned"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weights_in_parts_are_named_with_a_way_out(compute, part, tmp_path):
    network = model().network
    compute(network.stem)
    said = refusal(state_in(tmp_path / "t.pt", prefixed("module.", network.state_dict())))
    assert f"; weights are stored in parts, such as '{part}': before you save the network" in said
