"""Model files are saved and loaded, and damaged ones are refused in one line."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustkd.core.errors import InputError, UsageError
from robustkd.models import FAMILIES, Classifier, Spec, build, check_fits, load, save
from robustkd.models.model_file import read_safetensors, write_safetensors
from robustkd.teacher.read import load_teacher

USAGES = ", ".join(family.usage for family in FAMILIES.values())
SPEC = Spec("wrn-10-1", classes=3, image_shape=(1, 8, 8), mean=(0.3,), std=(0.2,))


def model(seed: int = 0) -> Classifier:
    """Trained enough that BatchNorm statistics are not those of a fresh network."""
    made = build(SPEC, seed=seed)
    made(torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return made.eval()


def described(path: Path, tensors: dict[str, torch.Tensor], **spec: object) -> Path:
    write_safetensors(path, tensors, {"spec": {**asdict(SPEC), **spec}})
    return path


def refusal(act: Callable[[], object]) -> str:
    """The text of an InputError: one line, exit code 3."""
    with pytest.raises(InputError) as caught:
        act()
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in text
    assert len(text) < 1000
    return text


def test_round_trip_gives_the_same_logits(tmp_path):
    images = torch.rand(5, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    saved, path = model(), tmp_path / "deep" / "folder" / "model.safetensors"
    save(saved, path, provenance={"seed": 0})
    rng = torch.get_rng_state()
    again = load(path)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(again(images), saved(images))
    assert again.spec == SPEC
    assert not any(module.training for module in again.modules())
    teacher = load_teacher(path, arch="wrn-10-1", classes=3, image_shape=(1, 8, 8))
    assert torch.equal(teacher(images), saved(images))
    assert list(path.parent.iterdir()) == [path]


def test_the_file_states_its_provenance(tmp_path):
    save(model(), tmp_path / "m", provenance={"method": "robustkd", "seed": 3})
    _, description = read_safetensors(tmp_path / "m")
    assert description["provenance"] == {"method": "robustkd", "seed": 3}


def test_the_same_model_gives_the_same_bytes(tmp_path):
    first, again, other = (tmp_path / name for name in ("a", "b", "c"))
    provenance = {"b": 1, "a": {"y": [1.5], "x": None}}
    save(model(), first, provenance=provenance)
    save(load(first), again, provenance=dict(reversed(provenance.items())))
    save(model(seed=1), other, provenance=provenance)
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_saving_replaces_a_file_atomically(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"x" * 10**6)
    save(model(), path)
    assert load(path).spec == SPEC


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    missing = tmp_path / "no"
    assert refusal(lambda: load(missing)) == f"{missing} does not exist; check the path"
    expected = f"{tmp_path} is not a file; expected one that robustkd wrote"
    assert refusal(lambda: load(tmp_path)) == expected


def test_a_name_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / ("n" * 300)
    assert "File name too long" in refusal(lambda: load(path))
    assert "File name too long" in refusal(lambda: save(model(), tmp_path / ("n" * 256)))


def test_truncation_at_any_byte_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save(model(), path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    lengths = {*range(10), *range(10, header, 499), header - 1, header, header + 1}
    lengths |= {*range(header, len(whole), 50_021), len(whole) - 1}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        text = refusal(lambda: load(path))
        assert text.startswith(f"{path} is not a readable safetensors file: "), length
    path.write_bytes(whole + b"\0")
    assert "is not a readable safetensors file" in refusal(lambda: load(path))


def test_garbage_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    generator = torch.Generator().manual_seed(0)
    for length in (1, 8, 9, 100, 5000):
        path.write_bytes(bytes(torch.randint(256, (length,), generator=generator).tolist()))
        assert "is not a readable safetensors file: " in refusal(lambda: load(path))
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert "is not a readable safetensors file: " in refusal(lambda: load(path))


class _Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.canary,)


def test_a_pickle_is_refused_and_its_payload_never_runs(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "model.safetensors"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(_Payload(canary), protocol=protocol))
        other = "is no file that robustkd wrote" if protocol >= 2 else "is not a readable safet"
        assert other in refusal(lambda: load(path))
        assert not canary.exists()
    torch.save({"state_dict": _Payload(canary)}, path)
    assert "is no file that robustkd wrote, but a torch checkpoint" in refusal(lambda: load(path))
    assert not canary.exists()
    # The payload is a live one: unpickled, it does touch the canary.
    pickle.loads(pickle.dumps(_Payload(canary)))  # noqa: S301 (our own bytes)
    assert canary.exists()


def test_files_that_do_not_describe_themselves_are_refused(tmp_path):
    path = tmp_path / "m"
    save_file({"a": torch.zeros(1)}, path)
    expected = (
        f"{path} has no 'robustkd' metadata; expected a file written by robustkd, or read the file "
        "of a teacher with robustkd.load_teacher"
    )
    assert refusal(lambda: load(path)) == expected
    save_file({"a": torch.zeros(1)}, path, metadata={"other": "{}"})
    assert refusal(lambda: load(path)) == expected
    for text in ("[]", "1", "{}", '{"format": 2}', "null"):
        save_file({"a": torch.zeros(1)}, path, metadata={"robustkd": text})
        assert refusal(lambda: load(path)) == (
            f"{path} has metadata of another version; expected format 1"
        )
    for text in ("", "{", "[" * 100_000):
        save_file({"a": torch.zeros(1)}, path, metadata={"robustkd": text})
        assert "is not a readable safetensors file" in refusal(lambda: load(path))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            {"arch": "wrn-11-1"},
            "WRN depth is 11; expected 6 n + 4 with n >= 1: 10, 16, 22, 28, ...",
        ),
        (
            {"arch": "os.system"},
            f"unknown architecture 'os.system'; expected {USAGES}: for example 'wrn-10-1'",
        ),
        ({"classes": 1}, "classes is 1; expected at least 2"),
        ({"classes": float("inf")}, "cannot convert float infinity to integer"),
        (
            {"image_shape": [1, 8, 0]},
            "image shape is (1, 8, 0); expected (1 or 3, height, width) in pixels",
        ),
        ({"class_names": ["a", "b"]}, "2 class names are given for 3 classes"),
        ({"class_names": ["a", "a\x1b", "a\x1b"]}, "class name 'a\\x1b' is given twice"),
        ({"class_names": ["a", "b", "c" * 1001]}, "a class name has more than 1000 characters"),
        ({"class_names": "abc"}, "class_names is not a list of texts"),
        ({"class_names": ["a", "b", 3]}, "class_names is not a list of texts"),
        ({"class_names": None}, "class_names is not a list of texts"),
        ({"crop": 0}, "crop is 0.0; expected above 0 and at most 1"),
        ({"crop": float("nan")}, "crop is nan; expected above 0 and at most 1"),
        ({"crop": 10**400}, "int too large to convert to float"),
        (
            {"resize": "\x1b" * 99},
            "resize is '" + r"\x1b" * 60 + "'; expected centred-square, squash",
        ),
        ({"resize": ["x"]}, "resize is of type list; expected a text"),
        (
            {"interpolation": "cubic"},
            "interpolation is 'cubic'; expected bilinear, bicubic, nearest, lanczos, box, hamming",
        ),
        (
            {"std": [0.0]},
            "mean is (0.3,) and std is (0.0,); expected 1 finite values each, std above 0",
        ),
        ({"mean": ["a\nb"]}, "could not convert string to float: 'a\\nb'"),
    ],
)
def test_a_damaged_description_is_refused(tmp_path, spec, reason):
    path = described(tmp_path / "m", model().state_dict(), **spec)
    expected = f"{path} has a damaged model description: {reason}"
    assert refusal(lambda: load(path)) == expected


NAMES = ("a\nb", "\ud800", "\x1b[2J")


def test_class_names_and_the_reading_of_images_come_back(tmp_path):
    spec = replace(SPEC, class_names=NAMES, crop=0.875)
    save(build(spec, seed=0), tmp_path / "m")
    assert load(tmp_path / "m").spec == spec
    teacher = load_teacher(tmp_path / "m", arch="wrn-10-1", classes=3, image_shape=(1, 8, 8))
    assert teacher.spec.classes == 3


def test_older_files_have_neither_class_names_nor_preprocessing(tmp_path):
    newer = ("class_names", "resize", "crop", "interpolation")
    spec = {name: value for name, value in asdict(SPEC).items() if name not in newer}
    write_safetensors(tmp_path / "m", model().state_dict(), {"spec": spec})
    assert load(tmp_path / "m").spec == SPEC


def test_data_of_other_classes_is_refused():
    spec = replace(SPEC, class_names=NAMES)
    fits = {"classes": 3, "image_shape": (1, 8, 8)}
    check_fits(spec, Path("m"), **fits, names=NAMES)
    check_fits(spec, Path("m"), **fits)
    check_fits(SPEC, Path("m"), **fits, names=NAMES)
    swapped = (NAMES[0], NAMES[2], NAMES[1])
    assert refusal(lambda: check_fits(spec, Path("m"), **fits, names=swapped)) == (
        "m calls class 1 '\\ud800'; the data calls it '\\x1b[2J': use the data that it was "
        "trained for, with its classes in that order"
    )


def test_a_description_without_a_part_is_refused(tmp_path):
    for part in ("arch", "classes", "image_shape", "mean", "std"):
        spec = {name: value for name, value in asdict(SPEC).items() if name != part}
        write_safetensors(tmp_path / "m", model().state_dict(), {"spec": spec})
        assert refusal(lambda: load(tmp_path / "m")) == (
            f"{tmp_path / 'm'} has a damaged model description: no {part!r}"
        )
    write_safetensors(tmp_path / "m", model().state_dict(), {"spec": None})
    assert refusal(lambda: load(tmp_path / "m")) == (
        f"{tmp_path / 'm'} has a damaged model description: no spec"
    )


@pytest.mark.parametrize(
    "spec", [{"arch": "wrn-994-999"}, {"classes": 10**12}, {"classes": 10**30}]
)
def test_a_claim_of_more_than_there_is_memory_is_refused_before_it_is_built(tmp_path, spec):
    refusal(lambda: load(described(tmp_path / "m", model().state_dict(), **spec)))


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    tensors = model().state_dict()
    del tensors["network.head.bias"]
    tensors["extra\n\x1b[31m"] = torch.zeros(1)
    tensors["network.bn.weight"] = torch.ones(65)
    tensors["network.bn.bias"] = torch.zeros(64, dtype=torch.float64)
    path = described(tmp_path / "m", tensors)
    assert refusal(lambda: load(path)) == (
        f"{path} does not fit the architecture 'wrn-10-1': 1 missing (network.head.bias); "
        "1 unexpected ('extra\\n\\x1b[31m'); 1 misshapen (network.bn.weight (65,) for (64,)); "
        "1 mistyped (network.bn.bias torch.float64 for torch.float32)"
    )


def broken(name: str, value: float) -> Classifier:
    made = model()
    made.state_dict()[name].flatten()[-1] = value
    return made


UNLOADABLE = {
    "half": (
        lambda: model().half(),
        "the model has weights of type torch.float16; expected torch.float32: convert it with "
        "float()",
    ),
    "double": (
        lambda: model().double(),
        "the model has weights of type torch.float64; expected torch.float32: convert it with "
        "float()",
    ),
    "another network": (
        lambda: Classifier(SPEC, build(replace(SPEC, arch="wrn-16-1"), seed=0).network),
        "the model does not fit the architecture 'wrn-10-1': ",
    ),
    "other classes": (
        lambda: Classifier(SPEC, build(replace(SPEC, classes=4), seed=0).network),
        "the model does not fit the architecture 'wrn-10-1': 2 misshapen ",
    ),
    "an unknown architecture": (
        lambda: Classifier(replace(SPEC, arch="my-net"), model().network),
        f"unknown architecture 'my-net'; expected {USAGES}: ",
    ),
    "no number": (
        lambda: broken("network.head.weight", float("nan")),
        "the model has values that are not finite in 'network.head.weight': load would ",
    ),
    "a negative variance": (
        lambda: broken("network.bn.running_var", -1.0),
        "the model has negative variances in 'network.bn.running_var': load would ",
    ),
    "another normalisation": (
        lambda: broken("normalise.std", 0.25),
        "the model has values of 'normalise.std' that differ from its description; ",
    ),
}


@pytest.mark.parametrize("kind", UNLOADABLE)
def test_a_model_that_could_not_be_loaded_is_not_saved(kind, tmp_path):
    make, text = UNLOADABLE[kind]
    with pytest.raises(UsageError, match=f"^{re.escape(text)}") as caught:
        save(make(), tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_a_provenance_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^provenance is not JSON: Object of type set"):
        save(model(), tmp_path / "m", provenance={"a": {1, 2}})


def test_files_do_not_depend_on_the_default_type_of_torch(tmp_path):
    save(model(), tmp_path / "m")
    torch.set_default_dtype(torch.float64)
    try:
        again = load(tmp_path / "m")
        save(again, tmp_path / "again")
        teacher = load_teacher(tmp_path / "m", arch="wrn-10-1", classes=3, image_shape=(1, 8, 8))
        assert {weight.dtype for weight in build(SPEC, seed=0).parameters()} == {torch.float32}
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    assert {weight.dtype for weight in teacher.parameters()} == {torch.float32}


def test_only_the_first_three_of_a_kind_are_listed(tmp_path):
    path = described(tmp_path / "m", {"x" * 10**6: torch.zeros(1)})
    text = refusal(lambda: load(path))
    named = "(normalise.mean, normalise.std, network.stem.weight)"
    assert f"{len(model().state_dict())} missing {named}; 1 unexpected ('xxx" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["network.head.weight", "network.bn.running_mean"])
def test_values_that_are_not_finite_are_refused(tmp_path, name, value):
    tensors = model().state_dict()
    tensors[name].flatten()[-1] = value
    path = described(tmp_path / "m", tensors)
    assert refusal(lambda: load(path)) == f"{path} has values that are not finite in {name!r}"


def test_negative_variances_are_refused(tmp_path):
    tensors = model().state_dict()
    tensors["network.bn.running_var"][3] = -1e-3
    path = described(tmp_path / "m", tensors)
    expected = f"{path} has negative variances in 'network.bn.running_var'"
    assert refusal(lambda: load(path)) == expected


def test_a_normalisation_other_than_described_is_refused(tmp_path):
    path = described(tmp_path / "m", model().state_dict(), std=[0.5])
    assert refusal(lambda: load(path)) == (
        f"{path} has values of 'normalise.std' that differ from its description; "
        "expected equal values"
    )


def test_a_teacher_must_have_the_named_architecture(tmp_path):
    path = tmp_path / "m"
    save(model(), path)

    def teacher(**changes: object) -> Classifier:
        said = {"arch": "wrn-10-1", "classes": 3, "image_shape": (1, 8, 8)}
        return load_teacher(path, **{**said, **changes})

    assert refusal(lambda: teacher(arch="wrn-16-1")) == (
        f"{path} is a model of architecture 'wrn-10-1', not 'wrn-16-1': "
        "name the one that it was trained with"
    )
    assert refusal(lambda: teacher(classes=10)) == (
        f"{path} is a model of 3 classes; the data has 10: use the data that it was trained for"
    )
    assert refusal(lambda: teacher(image_shape=(3, 8, 8))) == (
        f"{path} expects images of shape (1, 8, 8); the data, as it is read, has (3, 8, 8): "
        "use the data that it was trained for, without another image size or number of channels"
    )
    with pytest.raises(UsageError, match=re.escape("unknown architecture 'resnet'; expected ")):
        teacher(arch="resnet")


def test_a_file_that_cannot_be_written_is_reported_and_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    inside = tmp_path / "file" / "m"
    assert refusal(lambda: save(model(), inside)) == f"{inside} cannot be written: File exists"
    folder = tmp_path / "folder"
    assert refusal(lambda: save(model(), folder)) == f"{folder} cannot be written: Is a directory"
    proc = Path("/proc/robustkd/m")
    assert refusal(lambda: save(model(), proc)) == (
        f"{proc} cannot be written: No such file or directory"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_model_file_has_the_permissions_of_other_files(tmp_path):
    (tmp_path / "other").touch()
    save(model(), tmp_path / "m")
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_tensors_that_share_memory_are_written_one_by_one(tmp_path):
    """As those of a network with tied weights, or with a layer under two names."""
    shared = torch.arange(6.0)
    tensors = {"one": shared, "other": shared, "part": shared[2:4], "rows": shared.view(2, 3).T}
    write_safetensors(tmp_path / "m", tensors, {})
    found, _ = read_safetensors(tmp_path / "m")
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_metadata_is_one_json_object(tmp_path):
    save(model(), tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert list(header["__metadata__"]) == ["robustkd"]
    assert set(json.loads(header["__metadata__"]["robustkd"])) == {"format", "provenance", "spec"}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_types_that_we_never_write_are_refused(dtype, tmp_path):
    """Most of PyTorch's arithmetic does not know them, so that errors would come much later."""
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, {"delta": torch.zeros(4).to(dtype)}, {"spec": asdict(SPEC)})
    said = refusal(lambda: read_safetensors(path))
    name = {torch.complex64: "C64", torch.float8_e5m2: "F8_E5M2"}.get(dtype, "F8_E4M3")
    assert said == (
        f"{path} is not a readable safetensors file: values of the type {name!r}, which is not read"
    )
