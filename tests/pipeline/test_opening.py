"""Images are read with the preprocessing of the teacher: stated, published or given by flags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from robustkd import cli, models
from robustkd.core.errors import InputError, UsageError
from robustkd.data import Reading
from robustkd.data.images.options import UnknownSizeError
from robustkd.pipeline.opening import architecture, form, form_flags, open_as_taught
from tests.data.images.image_files import picture

COUNTS = {"train": 24, "val": 12, "test": 6}
CHOSEN = {
    "input_size": (3, 32, 32),
    "crop_pct": 0.8,
    "interpolation": "bicubic",
    "mean": (0.4, 0.4, 0.4),
    "std": (0.3, 0.3, 0.3),
}


def photographs(root: Path, *, width: int = 60, height: int = 48) -> Path:
    """Two classes of large images; only the middle tells them apart, and the border misleads."""
    for number, (split, count) in enumerate(COUNTS.items()):
        for label, name in enumerate(("dark", "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = picture(1000 * number + i, 200)[:height, :width] // 4
                pixels[8:-8, 8:-8] += np.uint8(120 * label)
                Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return photographs(tmp_path_factory.mktemp("photographs"))


def seen(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The training images as timm reads them, with labels."""
    transform = create_transform(**CHOSEN, is_training=False)
    files = sorted(folder.glob("train/*/*.png"))
    batch = torch.stack([transform(Image.open(file)) for file in files])
    return batch, torch.tensor([file.parent.name == "light" for file in files]).long()


@pytest.fixture(scope="module")
def hub(images, tmp_path_factory) -> Path:
    """A folder of the Hub with a teacher that timm trained on its own preprocessing."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=2)
    optimiser = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9)
    batch, labels = seen(images)
    for _ in range(12):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(batch), labels).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("hub")
    timm.models.save_for_hf(
        network.eval(), str(folder), safe_serialization=True, data_config=CHOSEN
    )
    return folder


def opened(teacher: Path, data: Path, arch: str = "timm/test_resnet", **given: object):
    return open_as_taught(teacher, arch, str(data), None, Reading(**given), given)


def test_images_are_those_that_timm_feeds_its_network(hub, images):
    data = opened(hub, images)
    (batch,) = data.batches("train", batch_size=100)
    mean, std = CHOSEN["mean"][0], CHOSEN["std"][0]
    theirs, labels = seen(images)
    assert torch.equal(batch.labels, labels)
    # timm resizes before it crops, which rounds once more, and blurs into the border.
    difference = ((batch.images - mean) / std - theirs)[:, :, 2:-2, 2:-2].abs()
    assert difference.mean() * std < 3 / 255
    assert form(data) == {
        "image_size": 32,
        "crop": 0.8,
        "resize": "centred-square",
        "interpolation": "bicubic",
        "taken_from": "config.json",
    }


def test_what_the_user_gives_has_precedence(hub, images):
    data = opened(hub, images, image_size=24, crop=0.5)
    assert form(data) == {
        "image_size": 24,
        "crop": 0.5,
        "resize": "centred-square",
        "interpolation": "bicubic",
        "taken_from": "config.json, except for image size and crop",
    }


@pytest.mark.parametrize("given", [{}, {"crop": 0.5}, {"crop": 0.8}])
def test_the_origin_of_a_resumed_run_is_that_of_its_start(given, hub, images):
    """The flags of its config.yaml state everything."""
    started = opened(hub, images, **given)
    assert form(opened(hub, images, **form_flags(started))) == form(started)


def test_a_teacher_of_this_package_states_how_its_images_are_read(images, tmp_path):
    shape = ((3, 32, 32), (0.5,) * 3, (0.5,) * 3)
    spec = models.Spec("wrn-10-1", 2, *shape, resize="squash", crop=0.75, interpolation="box")
    models.save(models.build(spec, seed=0), tmp_path / "t.safetensors")
    expected = {"image_size": 32, "crop": 0.75, "resize": "squash", "interpolation": "box"}
    found = form(opened(tmp_path / "t.safetensors", images, "wrn-10-1"))
    assert found == {**expected, "taken_from": "the teacher's file"}
    (tmp_path / "t.safetensors").write_bytes(b"damaged")
    with pytest.raises(UnknownSizeError):
        opened(tmp_path / "t.safetensors", images, "wrn-10-1")


@pytest.fixture
def alone(tmp_path) -> Path:
    """Weights with nothing beside them."""
    return tmp_path / "teacher.pt"


def test_published_values_serve_where_the_size_is_theirs_or_unknown(alone, images, tmp_path):
    arch = "timm/test_resnet"
    theirs = timm.get_pretrained_cfg("test_resnet")
    expected = {"crop": theirs.crop_pct, "interpolation": theirs.interpolation}
    expected |= {"taken_from": f"published for {arch}"}
    for given in ({}, {"image_size": 160}):
        found = form(opened(alone, images, arch, **given))
        assert {**found, **expected, "image_size": 160} == found
    # Another size, or images of one small size, mean that the network was trained on others.
    usual = {"crop": 1.0, "interpolation": "bilinear", "taken_from": "flags and defaults"}
    small = photographs(tmp_path / "small", width=40, height=40)
    for folder, given, size in ((images, {"image_size": 32}, 32), (small, {}, 40)):
        found = form(opened(alone, folder, arch, **given))
        assert {**found, **usual, "image_size": size} == found


def test_other_architectures_need_a_size(alone, images):
    with pytest.raises(UnknownSizeError, match="give it with --image-size"):
        opened(alone, images, "wrn-10-1")


def test_arrays_are_used_as_they_are(hub):
    data = open_as_taught(hub, "timm/test_resnet", "digits", None, Reading(), ())
    assert (data.image_shape, form(data)) == ((1, 16, 16), {})


def test_the_architecture_is_that_of_the_folder_or_of_the_user(hub, alone):
    assert architecture(hub, None) == "timm/test_resnet"
    assert architecture(hub / "model.safetensors", None) == "timm/test_resnet"
    assert architecture(hub, "wrn-10-1") == "wrn-10-1"
    torch.save({}, alone)
    with pytest.raises(UsageError, match=r"^--arch is missing; expected the architecture"):
        architecture(alone, None)


def test_a_file_of_this_package_states_its_architecture(tmp_path):
    teacher = models.build(models.Spec("wrn-10-1", 2, (3, 8, 8), (0.5,) * 3, (0.2,) * 3), seed=0)
    models.save(teacher, tmp_path / "teacher.safetensors")
    # The folder is like that of an attack.
    for place in (tmp_path / "teacher.safetensors", tmp_path):
        assert architecture(place, None) == "wrn-10-1"
        assert architecture(place, "wrn-16-1") == "wrn-16-1"


def test_a_teacher_that_is_missing_needs_no_architecture(alone):
    with pytest.raises(InputError, match=r"teacher\.pt does not exist; expected the teacher's"):
        architecture(alone, None)


def run(capsys, *words: object) -> tuple[str, str]:
    cli.main([str(word) for word in words])
    return capsys.readouterr()


def test_a_folder_of_the_hub_becomes_a_student_that_keeps_its_preprocessing(
    hub, images, tmp_path, capsys
):
    out = tmp_path / "run"
    said = run(
        capsys, "distill", hub, "--data", images, "--student", "wrn-10-1", "--method", "kd",
        "--epochs", 1, "--batch-size", 16, "--out", out, "--no-audit",
    )  # fmt: skip
    assert (
        "images: 32 x 32 pixels from 80.0% of the shorter side, bicubic (config.json); mean 0.4, "
        "0.4, 0.4, std 0.3, 0.3, 0.3 (config.json next to the weights)"
    ) in said.err
    records = json.loads((out / "results.json").read_text())["records"]
    assert records["preprocessing"]["taken_from"] == "config.json"
    assert records["teacher_file"]["normalisation"] == "config.json next to the weights"
    assert "config.json" in (out / "report.html").read_text()
    student = out / "student.safetensors"
    spec = models.load(student).spec
    form = (spec.image_shape, spec.crop, spec.resize, spec.interpolation)
    assert form == ((3, 32, 32), 0.8, "centred-square", "bicubic")
    measured = json.loads(run(capsys, "evaluate", student, "--data", images, "--json").out)
    accuracy = json.loads((out / "results.json").read_text())["runs"][1]["acc"]
    assert measured["acc"] == accuracy
    # A run is not continued with another normalisation of the teacher.
    (hub / "config.json").rename(hub / "moved.json")
    with pytest.raises(SystemExit):
        cli.main(["distill", "--resume", str(out)])
    (hub / "moved.json").rename(hub / "config.json")
    assert "was started with teacher normalisation [[0.4, " in capsys.readouterr().err
    config = (out / "config.yaml").read_text()
    assert "interpolation: bicubic" in config
    assert "arch: timm/test_resnet" in config
    assert "already finished" in run(capsys, "distill", "--resume", out).err
