"""Checkpoints as common trainers and benchmarks write them are read with equal weights.

Where a library is installed, its own code writes the file; otherwise the file is built as the
library builds it.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustkd.models import Spec, build
from robustkd.teacher.facts import Teacher
from robustkd.teacher.read import read_teacher

CLASSES, SIZE = 4, 32
PIXELS = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def network(arch: str = "resnet-8", seed: int = 0) -> nn.Module:
    made = build(Spec(arch, CLASSES, (3, SIZE, SIZE)), seed=seed).network
    made(torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)))
    return made.eval()


def read(path: Path, arch: str = "resnet-8", **changes: object) -> Teacher:
    options = {"arch": arch, "classes": CLASSES, "image_shape": (3, SIZE, SIZE)}
    return read_teacher(path, **options, **({"mean": (0.5,) * 3, "std": (0.25,) * 3} | changes))


def check(found: Teacher, expected: dict[str, Tensor]) -> None:
    state = found.model.network.state_dict()
    assert len(state) == len(expected)
    for (name, tensor), other in zip(state.items(), expected.values(), strict=True):
        assert torch.equal(tensor, other), name


def trained(made: nn.Module) -> torch.optim.Optimizer:
    """An optimiser with a state."""
    optimiser = torch.optim.AdamW(made.parameters())
    made(PIXELS).sum().backward()
    optimiser.step()
    return optimiser


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def namespace() -> argparse.Namespace:
    return argparse.Namespace(
        model="resnet8", lr=0.1, data_path=Path("data"), device=torch.device("cpu"), weights=None
    )


# Trainers.


@pytest.mark.parametrize("ema", [False, True])
def test_timm(ema, tmp_path):
    """Its train script saves by CheckpointSaver, with the namespace of the command line."""
    from timm.utils import CheckpointSaver, ModelEmaV2

    made = network("timm/resnet10t")
    averaged = ModelEmaV2(network("timm/resnet10t", 1)) if ema else None
    saver = CheckpointSaver(
        made,
        trained(made),
        args=argparse.Namespace(model="resnet10t", lr=0.1, start=datetime.datetime(2024, 1, 1)),
        model_ema=averaged,
        checkpoint_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=np.float64(71.5))
    path = tmp_path / "model_best.pth.tar"
    check(read(path, "timm/resnet10t", teacher_key="state_dict"), made.state_dict())
    if averaged is not None:
        found = read(path, "timm/resnet10t", teacher_key="state_dict_ema")
        check(found, averaged.module.state_dict())
        assert read(path, "timm/resnet10t", judge=lambda _: 0.5).file.candidates == (
            "'state_dict' (accuracy 50.0%)",
            "'state_dict_ema' (accuracy 50.0%)",
        )


def test_references_of_torchvision(tmp_path):
    made, averaged = network(), AveragedModel(network(seed=1))
    optimiser = trained(made)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10),
        ],
        [2],
    )
    content = {
        "model": made.state_dict(),
        "optimizer": optimiser.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 9,
        "args": namespace(),
        "model_ema": averaged.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }
    path = saved(tmp_path / "checkpoint.pth", content)
    check(read(path, teacher_key="model"), made.state_dict())
    check(read(path, teacher_key="model_ema"), averaged.module.state_dict())


class AttributeDict(dict):
    """As lightning.fabric.utilities.data.AttributeDict."""

    def __getattr__(self, name: str) -> object:
        return self[name]


class Mode(enum.Enum):
    MAX = "max"


def test_lightning(tmp_path):
    made = network()
    optimiser = trained(made)
    content = {
        "epoch": 4,
        "global_step": 500,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": collections.OrderedDict(
            {f"model.{n}": t for n, t in made.state_dict().items()}
            | {"criterion.weight": torch.ones(CLASSES), "accuracy.total": torch.tensor(7)}
        ),
        "loops": {
            "fit_loop": {
                "state_dict": {},
                "epoch_loop.state_dict": {"_batches_that_stepped": 500},
                "epoch_progress": {"total": {"ready": 5}, "current": {"ready": 5}},
            }
        },
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_acc', 'mode': 'max'}": {
                "best_model_score": torch.tensor(0.9),
                "best_k_models": {"a.ckpt": torch.tensor(0.9)},
                "dirpath": Path("checkpoints"),
                "mode": Mode.MAX,
            }
        },
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10).state_dict()],
        "MixedPrecision": {"scale": 65536.0, "_growth_tracker": 0},
        "hparams_name": "kwargs",
        "hyper_parameters": AttributeDict(lr=0.1, net=made.__class__, norm=nn.BatchNorm2d),
    }
    found = read(saved(tmp_path / "epoch=4.ckpt", content))
    check(found, made.state_dict())
    assert found.file.key == "state_dict"
    assert found.file.wrappers == ("state_dict", "model.")
    assert {"'criterion.weight'", "'accuracy.total'"} <= set(found.file.ignored)


def test_accelerate(tmp_path):
    from accelerate import Accelerator

    made = network()
    accelerator = Accelerator(cpu=True)
    accelerator.save_model(made, str(tmp_path / "safe"))
    accelerator.save_model(made, str(tmp_path / "pickled"), safe_serialization=False)
    check(read(tmp_path / "safe" / "model.safetensors"), made.state_dict())
    check(read(tmp_path / "pickled" / "pytorch_model.bin"), made.state_dict())


def test_save_pretrained_of_the_hub(tmp_path):
    from huggingface_hub import PyTorchModelHubMixin

    class OnHub(nn.Module, PyTorchModelHubMixin):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = network().to(memory_format=torch.contiguous_format)

    made = OnHub()
    made.save_pretrained(tmp_path)
    found = read(tmp_path / "model.safetensors")
    check(found, made.backbone.state_dict())
    assert found.file.wrappers == ("backbone.",)


def test_a_compiled_network_in_several_wrappers(tmp_path):
    made = network()
    content = {"net": {f"_orig_mod.module.{n}": t for n, t in made.state_dict().items()}}
    found = read(saved(tmp_path / "t.pt", content))
    check(found, made.state_dict())
    assert found.file.wrappers == ("net", "_orig_mod.", "module.")


# Benchmarks of backdoors.


def kuangliu(made: nn.Module) -> dict[str, Tensor]:
    """The names of a ResNet-18 in the most common code for CIFAR, which many benchmarks share."""
    return {
        name.replace("downsample", "shortcut").replace("fc.", "linear."): tensor
        for name, tensor in made.state_dict().items()
    }


def poisoned() -> dict[str, object]:
    return {
        "bd_data_container": {
            "save_folder_path": "record/x/bd_train_dataset",
            "data_dict": {
                i: {"path": f"bd_train_dataset/{i}.png", "other_info": (i, 0, 1, 2)}
                for i in range(300)
            },
        },
        "original_index_array": np.arange(50_000),
        "poison_indicator": np.zeros(50_000),
    }


def test_backdoorbench(tmp_path):
    """attack_result.pt, as save_attack_result of BackdoorBench builds it."""
    made = network("preactresnet-18")
    content = {
        "model_name": "preactresnet18",
        "num_classes": CLASSES,
        "model": made.state_dict(),
        "data_path": "../data",
        "img_size": (SIZE, SIZE, 3),
        "clean_data": "cifar10",
        "bd_train": poisoned(),
        "bd_test": poisoned(),
    }
    found = read(saved(tmp_path / "attack_result.pt", content), "preactresnet-18")
    check(found, made.state_dict())
    assert not found.file.by_order
    state = network("resnet-18")
    found = read(saved(tmp_path / "r.pt", content | {"model": kuangliu(state)}), "resnet-18")
    check(found, state.state_dict())
    assert found.file.by_order


@pytest.mark.slow
def test_backdoor_toolbox(tmp_path):
    """A plain state dict of its ResNet-18, and its models of WaNet with a grid beside."""
    made = network("resnet-18")
    found = read(saved(tmp_path / "full_base_aug.pt", kuangliu(made)), "resnet-18")
    check(found, made.state_dict())
    content = {
        "netC": kuangliu(made),
        "schedulerC": {"last_lr": [0.1]},
        "optimizerC": torch.optim.SGD(made.parameters(), 0.1).state_dict(),
        "best_clean_acc": torch.tensor(94.0),
        "best_bd_acc": np.float32(99.0),
        "identity_grid": torch.zeros(1, SIZE, SIZE, 2),
        "noise_grid": torch.zeros(1, SIZE, SIZE, 2),
        "epoch_current": 7,
    }
    found = read(saved(tmp_path / "wanet.pth.tar", content), "resnet-18")
    check(found, made.state_dict())
    assert found.file.key == "netC"


@pytest.mark.slow
def test_trojanzoo(tmp_path):
    """State dicts with the parts features and classifier, in zip format or before."""
    made = network("resnet-18")
    content = collections.OrderedDict(
        (f"classifier.{n}" if n.startswith("fc.") else f"features.{n}", t)
        for n, t in made.state_dict().items()
    )
    for legacy in (False, True):
        path = saved(
            tmp_path / "resnet18_comp.pth", content, _use_new_zipfile_serialization=not legacy
        )
        found = read(path, "resnet-18")
        check(found, made.state_dict())
        assert found.file.by_order


@pytest.mark.parametrize("legacy", [False, True])
def test_trojai(legacy, tmp_path):
    """model.pt is a whole pickled module, of torchvision in most rounds."""
    import torchvision

    made = torchvision.models.resnet18(num_classes=CLASSES)
    path = saved(tmp_path / "model.pt", made, _use_new_zipfile_serialization=not legacy)
    check(read(path, "torchvision/resnet18"), made.state_dict())


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"model": state},
        lambda state: {
            "epoch": 240,
            "model": {f"module.{n}": t for n, t in state.items()},
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
            "best_acc": np.float64(75.61),
        },
    ],
)
def test_mdistiller(content, tmp_path):
    """Teachers as it publishes them, and the checkpoints of its trainer, of its own WRN."""
    made = network("wrn-16-2")
    state = {name.replace("shortcut", "convShortcut"): t for name, t in made.state_dict().items()}
    for before, after in (("groups.0", "block1.layer"), ("groups.1", "block2.layer")):
        state = {name.replace(before, after): tensor for name, tensor in state.items()}
    for before, after in (("groups.2", "block3.layer"), ("head", "fc"), ("stem", "conv1")):
        state = {name.replace(before, after): tensor for name, tensor in state.items()}
    for legacy in (False, True):
        path = saved(
            tmp_path / "student_best", content(state), _use_new_zipfile_serialization=not legacy
        )
        found = read(path, "wrn-16-2")
        check(found, made.state_dict())
        assert found.file.by_order
        assert found.file.key == "model"


def test_a_normalising_layer_in_front(tmp_path):
    """nn.Sequential(Normalize(mean, std), network), which work on attacks uses."""

    class Normalize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            return (images - self.mean) / self.std

    made = nn.Sequential(Normalize(), network())
    found = read(saved(tmp_path / "t.pt", made.state_dict()), mean=(), std=())
    torch.testing.assert_close(found.model(PIXELS), made(PIXELS))
    assert found.file.normalisation == "the teacher's file"
