"""What every test shares: GPU tests skip themselves, and no test fails for being slow."""

from __future__ import annotations

import functools

import pytest
from hypothesis import settings

# A deadline would make tests fail on a busy machine.
settings.register_profile("aks", deadline=None)
settings.load_profile("aks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@functools.cache
def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
