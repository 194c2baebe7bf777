"""A part of a GPU's SMs as a device of its own: a CUDA green context, and proof that kernels stay inside."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from aks.core.device import DeviceSpec
from aks.core.errors import UnknownDeviceError

_PROBES = 4096


@triton.jit
def _sm_of_programs(out):
    # Each stays for a while, so that every SM gets some.
    sm = tl.inline_asm_elementwise("nanosleep.u32 20000; mov.u32 $0, %smid;", "=r", [], tl.int32, False, 1)
    tl.store(out + tl.program_id(0), sm)


def stream_on(device: DeviceSpec) -> tuple[torch.cuda.Stream, Any]:
    """A stream whose kernels run on ``device.sm_count`` SMs of the current GPU, and what keeps it alive.

    A whole GPU gets an ordinary stream.

    Raises
    ------
    UnknownDeviceError
        If the GPU, the driver or this PyTorch cannot make such a partition: SM counts come in steps
        (8 on Hopper).
    """
    everything = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    if device.sm_count == everything:
        return torch.cuda.Stream(), None
    try:
        from torch.cuda.green_contexts import GreenContext

        torch.cuda.init()
        context = GreenContext.create(num_sms=device.sm_count, device_id=torch.cuda.current_device())
        stream = context.Stream()
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UnknownDeviceError(
            f"cannot make a partition of {device.sm_count} of this GPU's {everything} SMs: {error}; "
            "wanted a driver for CUDA 12.4 or newer, a PyTorch with green contexts, and a multiple of 8 SMs"
        ) from error
    found = count_sms(stream)
    if found != device.sm_count:
        raise UnknownDeviceError(
            f"asked for a partition of {device.sm_count} of this GPU's {everything} SMs, kernels ran on {found}; "
            "choose a count that the GPU can split off (on Hopper a multiple of 8)"
        )
    return stream, context


def count_sms(stream: torch.cuda.Stream) -> int:
    """How many SMs a kernel of many programs on ``stream`` runs on."""
    with torch.cuda.stream(stream):
        seen = torch.zeros(_PROBES, dtype=torch.int32, device="cuda")
        kernel: Any = _sm_of_programs
        kernel[(_PROBES,)](seen, num_warps=1)
        return int(seen.unique().numel())
