"""Environment variables recorded in environment.json."""

from __future__ import annotations

import pytest

from robustkd.core.environment import is_kernel_choice, kernel_choices

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
