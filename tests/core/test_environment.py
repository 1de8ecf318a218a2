"""Environment variables recorded in environment.json."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from robustkd.core.environment import (
    environment,
    is_kernel_choice,
    kernel_choices,
    usable_cores,
)

CHOICES = [
    "OMP_NUM_THREADS",
    "MKL_CBWR",
    "KMP_AFFINITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_DEFAULT_FPMATH_MODE",
    "ATEN_CPU_CAPABILITY",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "OPENBLAS_CORETYPE",
]


@pytest.mark.parametrize("name", CHOICES)
def test_variables_that_choose_kernels_are_recorded(name, monkeypatch):
    monkeypatch.setenv(name, "avx2")
    assert kernel_choices()[name] == "avx2"


@pytest.mark.parametrize("name", ["HOME", "TORCH_HOME", "CUDA_PATH", "MKL_", "XOMP_A", "omp_a"])
def test_paths_and_other_variables_are_not_recorded(name, monkeypatch):
    monkeypatch.setenv(name, "/home/somebody")
    assert not is_kernel_choice(name)
    assert name not in kernel_choices()


def test_values_are_cut_to_one_short_line(monkeypatch):
    monkeypatch.setenv("OMP_A", "x\n" + "y" * 100)
    assert kernel_choices()["OMP_A"] == "x\\n" + "y" * 57


def test_the_device_is_the_one_that_trains(monkeypatch):
    """On a machine with an accelerator, ``--device cpu`` trains on the CPU."""
    accelerator = torch.device("cuda")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: accelerator)
    assert environment()["device"] == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert environment()["device"] == "cpu"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "250000"}, 8),
    ],
)
def test_a_quota_of_a_container_restricts_the_cores(files, cores, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert usable_cores(tmp_path) == cores
