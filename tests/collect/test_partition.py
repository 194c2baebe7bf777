"""Partitions of the GPU: kernels stay on their SMs, and what cannot be split off is told."""

from __future__ import annotations

import sys

import pytest

from aks.core.device import current_device
from aks.core.errors import UnknownDeviceError


@pytest.mark.gpu
@pytest.mark.parametrize("sm_count", [8, 64])
def test_kernels_stay_on_the_sms_of_their_partition(sm_count):
    from aks.collect.partition import count_sms, stream_on

    stream, owner = stream_on(current_device().partition(sm_count))
    assert owner is not None
    assert count_sms(stream) == sm_count


@pytest.mark.gpu
def test_the_whole_gpu_needs_no_partition():
    from aks.collect.partition import count_sms, stream_on

    device = current_device()
    stream, owner = stream_on(device)
    assert owner is None
    assert count_sms(stream) == device.sm_count


@pytest.mark.gpu
def test_a_count_that_the_gpu_cannot_split_off_is_told():
    from aks.collect.partition import stream_on

    with pytest.raises(UnknownDeviceError, match=r"20 of this GPU's \d+ SMs.*multiple of 8"):
        stream_on(current_device().partition(20))


def test_without_green_contexts_it_says_what_is_needed(monkeypatch):
    """As where PyTorch or the driver has none."""
    from types import SimpleNamespace

    import torch

    from aks.collect.partition import stream_on
    from aks.core.device import find_device

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setitem(sys.modules, "torch.cuda.green_contexts", None)
    with pytest.raises(UnknownDeviceError, match=r"64 of this GPU's 132 SMs.*CUDA 12\.4.*multiple of 8"):
        stream_on(find_device("h200-64sm"))
