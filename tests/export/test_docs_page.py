"""The page *Export and deploy*: its code runs as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustkd import models
from robustkd.data.images.decode import decode
from robustkd.export import FILES, OnnxClassifier
from robustkd.export.onnx import stamp, trace
from robustkd.export.weights import write_program, write_state_dict
from robustkd.models.architectures.libraries import torchvision_network

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "export.md").read_text()
CODE = dict(re.findall(r'```python title="([\w.]+)"\n(.*?)```', PAGE, re.DOTALL))
BARE = ("onnxruntime", "numpy", "pillow")


def drawn(folder: Path) -> list[Path]:
    """Images of several forms: wide, tall, transparent, turned by the camera, of just the size."""
    random = np.random.default_rng(0)
    sizes = {"wide": (40, 25), "tall": (17, 60), "just": (16, 16), "large": (300, 200)}
    for name, (width, height) in sizes.items():
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    clear = random.integers(0, 256, (30, 20, 4), dtype=np.uint8)
    Image.fromarray(clear).save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "wide.png").save(folder / "turned.jpg", exif=exif)
    return sorted(folder.glob("*.*g"))


def expected(file: Path, image: Path, crop: float = 1.0) -> torch.Tensor:
    """Logits of the file for an image read by robustkd itself."""
    with image.open("rb") as stream:
        pixels = decode(stream, size=16, channels=1, crop=crop)
    return OnnxClassifier(file)(torch.tensor(pixels)[None] / 255)


@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_images_are_read_as_robustkd_reads_them(exported, tmp_path, crop):
    page: dict[str, object] = {"__name__": "page"}
    exec(CODE["classify.py"], page)  # noqa: S102 (our own docs)
    file = tmp_path / "student.onnx"
    file.write_bytes((exported.folder / FILES["onnx"]).read_bytes())
    names = tuple("abcdefghij")
    stamp(file, models.Spec("wrn-10-1", 10, (1, 16, 16), class_names=names, crop=crop))
    session, about = page["load"](file)
    for image in drawn(tmp_path):
        logits = expected(file, image, crop)
        name, share = page["classify"](session, about, image)
        assert name == names[int(logits.argmax())], image.name
        assert share == pytest.approx(logits.softmax(1).max().item(), rel=1e-4), image.name


def test_the_traced_program_loads(exported, monkeypatch):
    monkeypatch.chdir(exported.folder)
    page: dict[str, object] = {}
    exec(CODE["program.py"], page)  # noqa: S102 (our own docs)
    assert page["logits"].shape == (2, 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_state_dict_is_timms_own(tmp_path, monkeypatch, channels):
    monkeypatch.chdir(tmp_path)
    spec = models.Spec("timm/test_efficientnet", 4, (channels, 32, 32))
    model = models.build(spec, seed=0).eval()
    write_state_dict(model, tmp_path / FILES["state_dict"])
    page: dict[str, object] = {}
    exec(CODE["plain.py"], page)  # noqa: S102 (our own docs)
    with torch.no_grad():
        torch.testing.assert_close(page["logits"], model(page["images"]))


@pytest.mark.parametrize(
    ("name", "size"),
    [("squeezenet1_1", 32), ("googlenet", 32), ("vit_b_32", 64), ("maxvit_t", 224)],
)
def test_the_state_dict_is_torchvisions_own(name, size):
    with torch.device("meta"):
        own = torchvision_network(name, classes=4, image_shape=(3, size, size)).state_dict()
        about = {"arch": f"torchvision/{name}", "class_names": tuple("abcd")}
        page: dict[str, object] = {"about": about, "height": size, "width": size}
        exec(CODE["plain_torchvision.py"], page)  # noqa: S102 (our own docs)
    theirs = page["model"].state_dict()
    assert {key: value.shape for key, value in own.items()} == {
        key: value.shape for key, value in theirs.items()
    }


def test_a_program_has_no_source_lines(tmp_path):
    model = models.build(models.Spec("wrn-10-1", 4, (1, 8, 8)), seed=0).eval()
    program = trace(model)
    write_program(model, program, tmp_path / "p")
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)


@pytest.mark.slow
def test_the_file_runs_in_a_bare_environment(exported, tmp_path):
    """In a fresh virtual environment with onnxruntime, numpy and pillow alone."""
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    wanted = [f"{name}=={version(name)}" for name in BARE]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    (tmp_path / "classify.py").write_text(CODE["classify.py"])
    (tmp_path / "images").mkdir()
    images = drawn(tmp_path / "images")
    for package in ("torch", "robustkd"):
        absent = [python, "-I", "-c", f"import {package}"]
        assert subprocess.run(absent, capture_output=True, check=False).returncode == 1
    for kind in ("onnx", "int8"):
        file = exported.folder / FILES[kind]
        command = [python, "-I", tmp_path / "classify.py", file, *images]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        names = json.loads(json.dumps(exported.source.classes))
        for image, line in zip(images, done.stdout.splitlines(), strict=True):
            name = names[int(expected(file, image).argmax())]
            assert line.startswith(f"{image}: {name!a} "), (kind, line)
            assert re.search(r" \d+\.\d%$", line)
