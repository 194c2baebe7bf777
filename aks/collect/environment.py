"""The software that measurements are taken with, as the running process sees it."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch
import triton

from aks.core.record import Environment


def current_environment() -> Environment:
    """Versions of driver, CUDA, cuBLAS, torch, triton and Python; ``unknown`` where nothing tells."""
    return Environment(
        driver=_driver_version(),
        cuda=str(torch.version.cuda or "none"),
        cublas=_cublas_version(),
        torch=torch.__version__,
        triton=triton.__version__,
        python=platform.python_version(),
    )


def _driver_version() -> str:
    if not shutil.which("nvidia-smi"):
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return answer.stdout.strip() or "unknown"


def _cublas_version() -> str:
    from aks.ops.gemm import cublaslt

    try:
        return cublaslt.version()
    except OSError:
        return "unknown"
