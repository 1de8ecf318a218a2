"""Preprocessing stated next to the weights: of timm, of transformers, and hostile files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch

from robustkd.core.errors import InputError
from robustkd.core.json_files import MOST_BYTES
from robustkd.teacher.preprocessing import (
    Stated,
    published,
    stated_architecture,
    stated_beside,
    weights_in,
)
from robustkd.teacher.read import read_teacher

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CHOSEN = {
    "input_size": (3, 48, 48),
    "crop_pct": 0.75,
    "interpolation": "bicubic",
    "mean": MEAN,
    "std": STD,
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A folder that timm saves for the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(network, str(folder), safe_serialization=True, data_config=CHOSEN)
    return folder


def stated(folder: Path, name: str = "config.json", **content: object) -> Stated | None:
    (folder / name).write_text(json.dumps(content))
    return stated_beside(folder / "model.safetensors")


def test_a_folder_that_timm_saved_is_understood(hub):
    assert weights_in(hub) == hub / "model.safetensors"
    assert stated_beside(weights_in(hub)) == Stated(
        "config.json", "timm/test_resnet", 48, 0.75, "centred-square", "bicubic", MEAN, STD
    )


def test_the_teacher_of_a_folder_is_the_network_that_timm_saved(hub):
    found = read_teacher(hub, arch="timm/test_resnet", classes=4, image_shape=(3, 48, 48))
    assert (found.model.spec.mean, found.model.spec.std) == (MEAN, STD)
    assert found.file.normalisation == "config.json next to the weights"
    assert found.file.name == "model.safetensors"
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet", num_classes=4).eval()
    images = torch.rand(2, 3, 48, 48)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(found.model(images), theirs((images - mean) / std))


def test_flags_override_the_file_beside_the_weights(hub):
    shape = {"arch": "timm/test_resnet", "classes": 4, "image_shape": (3, 48, 48)}
    found = read_teacher(hub, **shape, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert found.model.spec.mean == (0.5, 0.5, 0.5)
    assert found.file.normalisation == "given by the user"


INDEX = "model.safetensors.index.json"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # ViT, in the forms of its old and its new class
        ({"size": 224, "do_resize": True, "resample": 2, **HALF}, (224, 1.0, "squash", "bilinear")),
        (
            {"size": {"height": 224, "width": 224}, "resample": 3, **HALF},
            (224, 1.0, "squash", "bicubic"),
        ),
        # DeiT
        (
            {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3, **IMAGENET},
            (224, 0.875, "centred-square", "bicubic"),
        ),
        (
            {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}},
            (224, 0.875, "squash", None),
        ),
        # ConvNeXt and ResNet, below and from 384 pixels
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            (224, 0.875, "centred-square", "bicubic"),
        ),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, (384, 1.0, "squash", None)),
        # CLIP
        (
            {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
            (224, 1.0, "centred-square", None),
        ),
        ({"size": {"shortest_edge": 64}, "do_center_crop": False, "crop_size": 32},
         (64, 1.0, "centred-square", None)),
        ({"size": 99, "do_resize": False, "crop_size": 32, "resample": 1},
         (32, None, "centred-square", "lanczos")),
        # PoolFormer enlarges images to size / crop_pct, LeViT to size * 256 / 224
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.9, "crop_size": 224},
         (224, 0.9, "centred-square", None)),
        ({"size": {"shortest_edge": 224}, "crop_size": 224,
          "image_processor_type": "LevitImageProcessor"}, (224, 0.875, "centred-square", None)),
    ],
)  # fmt: skip
def test_preprocessors_of_transformers(content, expected, tmp_path):
    found = stated(tmp_path, "preprocessor_config.json", **content)
    assert (found.image_size, found.crop, found.resize, found.interpolation) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (IMAGENET, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({**HALF, "rescale_factor": 0.00392156862745098}, ((0.5,) * 3, (0.5,) * 3)),
        ({"size": 8, "do_normalize": False}, ((0.0,) * 3, (1.0,) * 3)),
        # 2 x - 1, written as x * 255 / 127.5 - 1
        (
            {"size": 8, "do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True},
            ((0.5,) * 3, (0.5,) * 3),
        ),
        ({"size": 8}, None),
        # EfficientNet divides by the standard deviation twice, even without normalisation
        ({"include_top": True, **HALF}, ((0.5,) * 3, (0.25,) * 3)),
        ({"include_top": True, **HALF, "do_normalize": False}, ((0.0,) * 3, (0.5,) * 3)),
        ({"include_top": True, "size": 8, "do_normalize": False}, ((0.0,) * 3, (1.0,) * 3)),
        # Pixels in [0, 255] are not rescaled, so that there is no offset
        (
            {"image_mean": 51, "image_std": 1e-6, "do_rescale": False, "rescale_offset": True},
            ((0.2,) * 3, (3.921569e-09,) * 3),
        ),
    ],
)
def test_normalisation_of_transformers(content, expected, tmp_path):
    found = stated(tmp_path, "preprocessor_config.json", **content)
    assert found.normalisation(3) == expected


def test_a_preprocessor_completes_a_config_without_preprocessing(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"], "image_size": 9}')
    found = stated(tmp_path, "preprocessor_config.json", size=224, **HALF)
    assert (found.origin, found.arch, found.image_size) == ("preprocessor_config.json", "", 224)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"lr": 0.1, "epochs": 3},
        {"model_type": "bert"},
        {"architecture": "wrn-16-2", "mean": [125.3, 123.0, 113.9]},
        {"architecture": {"depth": 16}},
    ],
)
def test_settings_of_other_programs_state_nothing(content, tmp_path):
    assert stated_beside(tmp_path / "model.pt") is None
    assert stated(tmp_path, **content) is None


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("timm/resnet18", (224, 0.95, "centred-square", "bicubic")),
        ("timm/deit_tiny_patch16_224", (224, 0.9, "centred-square", "bicubic")),
        ("torchvision/resnet18", (224, 224 / 256, "centred-square", "bilinear")),
        ("torchvision/vit_b_16", (224, 224 / 256, "centred-square", "bilinear")),
        ("torchvision/efficientnet_v2_s", (384, 1.0, "centred-square", "bilinear")),
    ],
)
def test_published_preprocessing_is_that_of_the_library(arch, expected):
    found = published(arch)
    assert (found.image_size, found.crop, found.resize, found.interpolation) == expected
    assert found.origin == f"published for {arch}"


def test_other_architectures_have_no_published_preprocessing():
    assert published("wrn-10-1") is None


CFG = {"input_size": [3, 32, 32], "mean": [0.5], "std": [0.5]}
FIX = "correct the file, or move it away and give flags instead"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": [3, 32, 64]}, "input_size is [3, 32, 64]; expected one size of a square"),
        ({"input_size": [3, 0, 0]}, "input_size is [3, 0, 0]; expected one size of a square"),
        ({"input_size": [3, 9000, 9000]}, "input_size is [3, 9000, 9000]; expected one size"),
        ({"input_size": "huge"}, "expected one size of a square, from 1 to 4096 pixels"),
        ({"input_size": [3, True, True]}, "expected one size of a square"),
        ({"crop_pct": 1.6}, "crop_pct is 1.6; expected a number from 0.01 to 1.5"),
        ({"crop_pct": "0.9"}, "expected a number from 0.01 to 1.5"),
        ({"crop_pct": True}, "crop_pct is true; expected a number from 0.01 to 1.5"),
        ({"interpolation": "__import__"}, "expected bilinear or bicubic or nearest or lanczos"),
        ({"interpolation": 3}, "interpolation is 3; expected a text"),
        ({"crop_mode": "pad"}, "expected center or squash or border"),
        ({"mean": [0.5, 0.5], "std": [0.5]}, "mean is [0.5, 0.5]; expected as many numbers as std"),
        ({"mean": [124, 116, 104], "std": [1, 1, 1]}, "expected one number per channel, from 0 to"),
        ({"std": [0]}, "std is [0]; expected one number per channel"),
        ({"mean": ["a"], "std": [1]}, "expected one number per channel"),
        ({"mean": [[[0.5]]], "std": [1]}, "expected one number per channel"),
        ({"mean": []}, "mean is []; expected one number per channel"),
    ],
)
def test_values_out_of_range_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        stated(tmp_path, architecture="resnet18", pretrained_cfg={**CFG, **changes})
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}, pretrained_cfg: ")
    assert str(caught.value).endswith(FIX)


@pytest.mark.parametrize("name", ["os:system", "../../etc", "hf-hub:a/b", "no_such_net", "é", 7])
def test_only_a_classifier_of_timm_can_be_named(name, tmp_path):
    content = {"architecture": name, "pretrained_cfg": CFG}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"architecture is .*; expected a (classifier|text)"):
        stated_architecture(tmp_path / "model.safetensors")
    assert stated(tmp_path, architecture=name) is None


def test_an_unknown_architecture_matters_only_if_the_user_names_none(tmp_path):
    found = stated(tmp_path, architecture="resnet_of_tomorrow", pretrained_cfg=CFG)
    assert found.normalisation(3) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("depth", [*range(960, 1000), 10_000])
def test_a_value_of_any_depth_is_refused(depth, tmp_path):
    nested = "[" * depth + "]" * depth
    (tmp_path / "config.json").write_text(f'{{"pretrained_cfg": {{"mean": {nested}}}}}')
    with pytest.raises(InputError, match=r"nested too deep|expected one number per channel"):
        stated_beside(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"[1]", "it is not a JSON object"),
        (b'{"a": NaN}', "it has the number NaN"),
        (b'{"a": 1, "a": 2}', "it has the key 'a' twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it has a number of 5,000 digits"),
        (b"[" * 200_000, "it is nested too deep"),
        (b" " * (MOST_BYTES + 1), "it has more than 8,388,608 bytes"),
        (b'{"a": "\xff"}', "codec can't decode byte"),
    ],
)
def test_large_or_invalid_json_is_refused(content, reason, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        stated_beside(tmp_path / "model.safetensors")
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere.json").write_text("{}")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match="is a symbolic link that leaves its folder"):
        stated_beside(tmp_path / "hub" / "model.safetensors")


def test_the_cache_of_the_hub_is_read_through_its_links(hub, tmp_path):
    repository = tmp_path / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors")):
        (repository / "blobs" / str(number)).write_bytes((hub / name).read_bytes())
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    found = read_teacher(snapshot, arch="timm/test_resnet", classes=4, image_shape=(3, 48, 48))
    assert found.file.normalisation == "config.json next to the weights"
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(hub / "config.json")
    with pytest.raises(InputError, match="is a symbolic link that leaves its folder"):
        stated_beside(snapshot / "model.safetensors")


def test_configs_of_all_published_crops_of_timm_are_read(tmp_path):
    """VOLO has a crop_pct of 1.15 and others the crop mode border; both as for the library."""
    path = tmp_path / "config.json"
    for name in ("volo_d5_448", "volo_d1_224", "vit_base_patch14_reg4_dinov2"):
        config = timm.get_pretrained_cfg(name).to_dict()
        path.write_text(json.dumps({"architecture": name, "pretrained_cfg": config}))
        stated, usual = stated_beside(tmp_path / "model.safetensors"), published(f"timm/{name}")
        assert (stated.crop, stated.resize) == (usual.crop, usual.resize)
    path.write_text(json.dumps({"pretrained_cfg": {"crop_mode": "border", "crop_pct": 1.15}}))
    stated = stated_beside(tmp_path / "model.safetensors")
    assert (stated.crop, stated.resize) == (1.0, "centred-square")


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "pytorch_model-00002-of-00003.bin", INDEX]
)
def test_one_of_several_files_of_weights_is_refused(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError) as caught:
        weights_in(tmp_path / name)
    assert str(caught.value) == (
        f"{tmp_path / name} is one of several files of weights; expected one: load the model and "
        "save it with max_shard_size larger than its weights"
    )
    assert weights_in(tmp_path / "model-00001-of-00001.safetensors")


def test_the_folder_of_an_attack_has_weights(tmp_path):
    (tmp_path / "teacher.safetensors").write_bytes(b"")
    assert weights_in(tmp_path) == tmp_path / "teacher.safetensors"


def test_folders_without_weights_are_refused(tmp_path):
    message = "is a folder without weights; expected model.safetensors or pytorch_model.bin in it"
    with pytest.raises(InputError, match=message):
        weights_in(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="has weights in several files; expected one"):
        weights_in(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert weights_in(tmp_path) == tmp_path / "pytorch_model.bin"


def test_channels_in_another_order_are_refused(tmp_path):
    with pytest.raises(InputError, match="do_flip_channel_order is true; expected false"):
        stated(tmp_path, "preprocessor_config.json", size=8, do_flip_channel_order=True)
