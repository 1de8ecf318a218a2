"""Teachers from plain PyTorch files: matching weights are loaded, and others are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustkd.core.errors import InputError, UsageError
from robustkd.models import Classifier, Spec, build, save
from robustkd.models.model_file import write_safetensors
from robustkd.teacher.facts import Teacher
from robustkd.teacher.read import load_teacher, read_teacher

SPEC = Spec("wrn-10-1", classes=3, image_shape=(1, 8, 8), mean=(0.3,), std=(0.2,))
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGES = IMAGES.contiguous(memory_format=torch.channels_last)


def model(seed: int = 0):
    """A model whose BatchNorm statistics are not those of a fresh network."""
    made = build(SPEC, seed=seed)
    made(torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return made.eval()


def network() -> nn.Module:
    return model().network


def read(path: Path, **changes: object) -> Teacher:
    said = {"arch": "wrn-10-1", "classes": 3, "image_shape": (1, 8, 8), "mean": (0.3,)}
    return read_teacher(path, **{**said, "std": (0.2,), **changes})


def state_in(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path, **changes: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **changes)
    return str(caught.value)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("content", "stripped"),
    [
        (lambda state: state, ()),
        (lambda state: {"state_dict": state, "epoch": 3}, ("state_dict",)),
        (lambda state: prefixed("module.", state), ("module.",)),
        (lambda state: prefixed("network.", state), ("network.",)),
        (lambda state: prefixed("module._orig_mod.", state), ("module.", "_orig_mod.")),
        (lambda state: {"model": prefixed("module.", state)}, ("model", "module.")),
    ],
)
def test_a_plain_checkpoint_gives_the_same_logits(content, stripped, tmp_path):
    found = read(state_in(tmp_path / "teacher.pt", content(network().state_dict())))
    assert torch.equal(found.model(IMAGES), model()(IMAGES))
    assert not any(module.training for module in found.model.modules())
    assert found.file.wrappers == stripped
    assert (found.file.format, found.file.matched) == ("torch zip", len(network().state_dict()))


def test_plain_safetensors_are_read_as_well(tmp_path):
    path = tmp_path / "teacher.bin"
    state = {n: t.contiguous() for n, t in network().state_dict().items()}
    save_file(prefixed("model.", state), path)
    found = read(path)
    assert torch.equal(found.model(IMAGES), model()(IMAGES))
    assert (found.file.format, found.file.wrappers) == ("safetensors", ("model.",))


def test_the_facts_are_json_values_of_the_file(tmp_path):
    path = state_in(tmp_path / "teacher.pt", {"ema": network().half().state_dict(), "epoch": 1})
    record = read(path).file.record()
    assert record.pop("limits")
    assert len(record.pop("sha256")) == 64
    floats = sum(t.is_floating_point() for t in network().state_dict().values())
    assert record == {
        "name": "teacher.pt",
        "bytes": path.stat().st_size,
        "format": "torch zip",
        "key": "ema",
        "candidates": [],
        "matched": len(network().state_dict()),
        "filled": 0,
        "wrappers": ["ema"],
        "ignored": ["'epoch'"],
        "by_order": False,
        "outputs": [],
        "converted": {"float16": floats},
        "normalisation": "given by the user",
    }


@pytest.mark.parametrize(("keys", "tensors"), [(50, 0), (0, 50), (30, 30), (20, 0), (10, 10)])
def test_the_number_of_ignored_keys_is_told(keys, tensors, tmp_path):
    state = network().state_dict() | {f"t{k}": torch.ones(1) for k in range(tensors)}
    path = state_in(tmp_path / "t.pt", {"model": state, **{f"k{k}": 1 for k in range(keys)}})
    *shown, last = read(path).file.ignored
    if keys + tensors == 20:
        assert len(shown) == 19
        assert last in ("'k19'", "'t9'")
    else:
        assert len(shown) == 20
        assert last == f"and {keys + tensors - 20} more"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_converted(dtype, tmp_path):
    found = read(state_in(tmp_path / "t.pt", network().to(dtype).state_dict()))
    expected = {n: t.float() for n, t in network().to(dtype).state_dict().items()}
    state = found.model.network.state_dict()
    assert all(torch.equal(state[name].float(), tensor) for name, tensor in expected.items())
    assert {t.dtype for t in found.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_batch_counters_may_have_been_converted_with_the_weights(dtype, tmp_path):
    """As by ``{name: tensor.half() for name, tensor in state_dict.items()}``."""
    state = {n: t.to(dtype) for n, t in network().state_dict().items()}
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    for name, value in zip(counters, (torch.inf, -3.0, torch.nan), strict=False):
        state[name] = torch.tensor(value, dtype=dtype)
    found = read(state_in(tmp_path / "t.pt", {f"module.{n}": t for n, t in state.items()}))
    read_counters = [found.model.network.state_dict()[name] for name in counters]
    assert [int(counter) for counter in read_counters] == [0, 0, 0, 1, 1, 1, 1]
    assert {counter.dtype for counter in read_counters} == {torch.int64}
    assert found.file.converted == {str(dtype).removeprefix("torch."): len(state)}


def test_missing_batch_counters_are_filled_in(tmp_path):
    state = {n: t for n, t in network().state_dict().items() if "num_batches" not in n}
    found = read(state_in(tmp_path / "t.pt", state))
    assert torch.equal(found.model(IMAGES), model()(IMAGES))
    assert found.file.filled == len(network().state_dict()) - len(state) == 7
    assert found.file.matched == len(state)


# Normalisation.


def test_files_of_this_package_contain_their_normalisation(tmp_path):
    save(model(), tmp_path / "t")
    for changes in ({"mean": (), "std": ()}, {}):
        found = read(tmp_path / "t", **changes)
        assert torch.equal(found.model(IMAGES), model()(IMAGES))
        assert found.file.normalisation == "the teacher's file"
    with pytest.raises(UsageError) as caught:
        read(tmp_path / "t", mean=(0.5,))
    assert str(caught.value) == (
        f"mean is (0.5,) and std is (0.2,); {tmp_path / 't'} states (0.3,) and (0.2,): "
        "leave them out"
    )


def test_a_classifier_saved_by_torch_keeps_its_normalisation(tmp_path):
    path = state_in(tmp_path / "t.pt", prefixed("module.", model().state_dict()))
    found = read(path, mean=(), std=())
    assert torch.equal(found.model(IMAGES), model()(IMAGES))
    assert found.file.normalisation == "the teacher's file"
    assert found.file.wrappers == ("module.", "network.")
    assert read(path, mean=(0.1,)).file.normalisation == "given by the user"


def test_without_any_statement_the_statistics_of_the_data_are_used(tmp_path):
    path = state_in(tmp_path / "t.pt", network().state_dict())
    found = read(path, mean=(), std=(), statistics=lambda: ((0.3,), (0.2,)))
    assert torch.equal(found.model(IMAGES), model()(IMAGES))
    assert found.file.normalisation == "statistics of the data"
    with pytest.raises(UsageError, match="has no normalisation of images; give mean"):
        load_teacher(path, arch="wrn-10-1", classes=3, image_shape=(1, 8, 8))


def test_mean_and_std_belong_together_and_to_the_channels(tmp_path):
    with pytest.raises(UsageError, match=r"^mean and std belong together; give both, or neither$"):
        read(tmp_path / "t", std=())
    with pytest.raises(UsageError, match="expected 1 finite values each, std above 0"):
        read(tmp_path / "t", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))


# What does not fit.


def test_an_invalid_normalisation_is_refused(tmp_path):
    state = model().state_dict() | {"normalise.std": torch.zeros(1, 1, 1)}
    path = state_in(tmp_path / "t.pt", state)
    assert refusal(path, mean=(), std=()) == (
        f"{path} has an invalid normalisation: mean is ({float(torch.tensor(0.3))},) and "
        "std is (0.0,); expected 1 finite values each, std above 0; give the right mean and "
        "standard deviation with --mean and --std, or save the weights without these tensors"
    )
    assert read(path).file.normalisation == "given by the user"


def test_another_number_of_classes_is_reported_first(tmp_path):
    path = state_in(tmp_path / "t.pt", network().state_dict())
    assert refusal(path, classes=10) == (
        f"{path} is a model of 3 classes; the data has 10: use the data that it was trained for"
    )


def test_a_missing_head_is_reported(tmp_path):
    state = {n: t for n, t in network().state_dict().items() if not n.startswith("head.")}
    path = state_in(tmp_path / "t.pt", state)
    assert refusal(path) == (
        f"{path} has no head (head.bias, head.weight): it ends in features; give a whole classifier"
    )


@pytest.mark.parametrize(
    ("prefix", "extra"),
    [
        ("", {"head.1.weight": torch.ones(3, 64), "head.1.bias": torch.ones(3)}),
        ("backbone.", {"fc.weight": torch.ones(3, 64), "fc.bias": torch.ones(3)}),
        ("", {"top.0.weight": torch.ones(9, 64), "top.2.weight": torch.ones(3, 9)}),
    ],
)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_another_head_is_not_called_missing(prefix, extra, kind, tmp_path):
    """A checkpoint whose only difference is the name of the head is matched by order."""
    rest = {n: t for n, t in network().state_dict().items() if not n.startswith("head.")}
    state, path = prefixed(prefix, rest) | extra, tmp_path / f"t.{kind}"
    if kind == "pt" and "top.0.weight" not in extra:
        assert read(state_in(path, state)).file.by_order
        return
    if kind == "pt":
        state_in(path, state)
    else:
        save_file({name: t.contiguous() for name, t in state.items()}, path)
    by_name = "" if kind == "pt" else " (tensors of safetensors files are matched by name)"
    first = next(name for name in sorted(extra))
    assert refusal(path) == (
        f"{path} has no head (head.bias, head.weight), but has '{first}': the head of its network "
        f"has other names or other layers{by_name}; give --arch MODULE:FUNCTION with a function "
        "that builds this network"
    )


def test_integers_for_weights_are_refused(tmp_path):
    state = network().state_dict()
    path = state_in(tmp_path / "t.pt", state | {"stem.weight": state["stem.weight"].to(torch.int8)})
    assert refusal(path) == (
        f"{path} has torch.int8 values in 'stem.weight'; quantised weights cannot be distilled "
        "from: give the float ones"
    )
    path = state_in(tmp_path / "t.pt", state | {"stem.weight": state["stem.weight"].long()})
    assert "1 mistyped (stem.weight torch.int64 for torch.float32)" in refusal(path)


def test_a_file_of_this_package_must_fit_its_description(tmp_path):
    path = tmp_path / "t"
    write_safetensors(path, model().state_dict(), {"spec": None})
    assert refusal(path) == f"{path} has a damaged model description: no spec"
    save_file({"w": torch.ones(1)}, path, metadata={"robustkd": "[" * 10**5})
    assert re.search("is not a readable safetensors file: ", refusal(path))
    save_file({"w": torch.ones(1)}, path, metadata={"robustkd": '{"format": 2}'})
    assert refusal(path) == f"{path} has metadata of another version; expected format 1"


@pytest.mark.parametrize("mean", [73.0, -0.1, float("nan")])
def test_means_of_bytes_are_refused(mean, tmp_path):
    with pytest.raises(UsageError) as caught:
        read(tmp_path / "t.pt", mean=(0.5, mean), std=(0.2, 0.2))
    assert str(caught.value) == (
        f"mean is (0.5, {mean}); expected values in [0, 1]: divide those of bytes by 255"
    )


def test_the_global_generator_is_not_used(tmp_path):
    path = state_in(tmp_path / "t.pt", network().state_dict())
    before = torch.get_rng_state()
    read(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("channels", "source"), [(3, "published for the architecture"), (1, None)])
def test_the_published_normalisation_of_a_library_is_used(channels, source, tmp_path):
    """A plain state dict of timm's, whose normalisation nobody gives."""
    made = build(Spec("timm/resnet10t", 4, (channels, 32, 32)), seed=0)
    torch.save(made.network.state_dict(), tmp_path / "t.pth")
    found = read_teacher(
        tmp_path / "t.pth",
        arch="timm/resnet10t",
        classes=4,
        image_shape=(channels, 32, 32),
        statistics=lambda: ((0.25,), (0.125,)),
    )
    assert found.file.normalisation == (source or "statistics of the data")
    assert found.model.spec.mean == ((0.485, 0.456, 0.406) if source else (0.25,))


@pytest.mark.parametrize(
    ("accuracies", "source"),
    [
        ((0.3, 0.8), "statistics of the data"),
        ((0.8, 0.3), "published for the architecture"),
        ((0.5, 0.5), "published for the architecture"),
    ],
)
def test_without_any_statement_the_more_accurate_normalisation_is_used(
    accuracies, source, tmp_path
):
    """A library's network that was trained on other images than its published weights."""
    made = build(Spec("timm/resnet10t", 4, (3, 32, 32)), seed=0)
    torch.save(made.network.state_dict(), tmp_path / "t.pth")
    published = dict(zip((True, False), accuracies, strict=True))
    found = read_teacher(
        tmp_path / "t.pth",
        arch="timm/resnet10t",
        classes=4,
        image_shape=(3, 32, 32),
        statistics=lambda: ((0.25,) * 3, (0.125,) * 3),
        judge=lambda model: published[model.spec.mean == (0.485, 0.456, 0.406)],
    )
    assert found.file.normalisation == source
    assert (found.model.spec.mean == (0.25,) * 3) == (source == "statistics of the data")


# A teacher of more classes than the data.

OUTPUTS = (1, 4, 6)


def many(seed: int = 0) -> Classifier:
    return build(replace(SPEC, classes=7), seed=seed).eval()


@pytest.mark.parametrize("of", [7, None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_some_outputs_of_a_teacher_are_those_of_its_logits(of, prefix, tmp_path):
    whole = many()
    state = {f"{prefix}{name}": t for name, t in whole.network.state_dict().items()}
    path = state_in(tmp_path / "t.pt", {"state_dict": state, "epoch": 1})
    found = read(path, outputs=OUTPUTS, outputs_of=of)
    assert found.file.outputs == OUTPUTS
    assert found.model.spec.classes == 3
    with torch.no_grad():
        torch.testing.assert_close(found.model(IMAGES), whole(IMAGES)[:, OUTPUTS])


@pytest.mark.parametrize(
    ("outputs", "of", "message"),
    [
        ((1, 1, 4), 7, "outputs has 2 outputs; expected one for each class"),
        ((1, 4), 7, "outputs has 2 outputs; expected one for each class"),
        ((1, 4, 7), 7, "outputs has 7; expected 0 to 6"),
    ],
)
def test_wrong_outputs_are_refused(outputs, of, message, tmp_path):
    path = state_in(tmp_path / "t.pt", many().network.state_dict())
    with pytest.raises(UsageError, match=f"^{message}$"):
        read(path, outputs=outputs, outputs_of=of)


def test_an_output_beyond_those_of_the_file_is_refused(tmp_path):
    path = state_in(tmp_path / "t.pt", many().network.state_dict())
    with pytest.raises(
        InputError, match="has 7 outputs, numbered from 0; the list of class names has output 9"
    ):
        read(path, outputs=(1, 4, 9))


@pytest.mark.parametrize(
    ("change", "hinted"),
    [({}, True), ({"head.bias": torch.zeros(4)}, False), ({"bn.weight": torch.ones(65)}, False)],
)
def test_a_network_of_grey_images_for_coloured_ones_is_told(change, hinted, tmp_path):
    path = state_in(tmp_path / "t.pt", {**network().state_dict(), **change})
    with pytest.raises(InputError) as caught:
        load_teacher(path, arch="wrn-10-1", classes=3, image_shape=(3, 8, 8))
    said = str(caught.value)
    assert said.endswith("; did you mean --grey, or Reading(channels=1) in Python?") is hinted
    assert "(16, 1, 3, 3) for (16, 3, 3, 3)" in said or "head.bias" in change
    coloured = build(Spec("wrn-10-1", 3, (3, 8, 8)), seed=0).network.state_dict()
    with pytest.raises(InputError, match=r"\(16, 3, 3, 3\) for \(16, 1, 3, 3\)\)$"):
        load_teacher(
            state_in(tmp_path / "c.pt", coloured), arch="wrn-10-1", classes=3, image_shape=(1, 8, 8)
        )
