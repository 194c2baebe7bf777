"""Ops whose programs hold rows of x in registers (``rms_norm``, ``quantize_rows``): what their specs have in common.

Standard library and core only.
"""

from __future__ import annotations

from collections.abc import Sequence

from aks.core.config import Rule
from aks.core.features import Feature

MAX_K = 16384
MIN_K = 65
BLOCKS = tuple(1 << power for power in range((MIN_K - 1).bit_length(), MAX_K.bit_length()))
"""What next_pow2(k) can be for a row that is held whole."""

RESIDENT = "max(1, min(32, 64 // max(1, num_warps)))"
"""Formula of the programs that an SM holds at once."""

THREADS_RULE = Rule("threads fit a block", "32 * num_warps <= max_threads_per_block")
LAUNCH_RULE = Rule("dependent launch needs capability 9.0", "pdl == 0 or capability >= 90")


def row_features(bytes_moved: str, own: Sequence[Feature]) -> tuple[Feature, ...]:
    """Features of a problem with the axes m and k: own are the op's, beside what rows have."""
    return (
        Feature("m", "m"),
        Feature("k", "k"),
        Feature("fp16", "dtype"),
        *own,
        Feature("alignment", "alignment", "bytes"),
        Feature("io_kib", f"{bytes_moved} // 1024", "bytes moved"),
        Feature("io_l2_percent", f"{bytes_moved} * 100 // l2_bytes", "as a share of L2"),
        Feature("dram_ns", f"{bytes_moved} // dram_gb_s", "time to move all bytes once"),
        Feature("rows_per_sm", "m * 100 // sm_count", "percent"),
        Feature("block_k", "next_pow2(k)"),
    )
