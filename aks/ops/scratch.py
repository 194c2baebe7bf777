"""Memory of a stream, for ops whose kernels need none. Imports torch, not triton."""

from __future__ import annotations

import torch


class NoScratch:
    """Memory of one stream that launches share: these kernels need none, or bring their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
