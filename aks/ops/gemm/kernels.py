"""The Triton kernels of ``gemm``, ``fused_linear``, ``fp8_gemm`` and ``int8_gemm``, and nothing of when to use them.

All compute ``out = x @ w.T`` with float32 accumulation (int32 for int8). x [M, K] has rows of contiguous elements
``x_row`` elements apart; w is [N, K] (or [K, N] where W_KN) with rows ``w_row`` apart; out [M, N]
with rows ``out_row`` apart. Nothing needs to be a multiple of a block.

Some take more, which is None for ``gemm``, so that nothing of it is compiled. ``up``: a second weight
as w is, and ``out = act(x @ w.T) * (x @ up.T)``. ``bias_ptr`` [N] and ``residual_ptr`` [M, N], rows
``residual_row`` apart: ``out = act(x @ w.T + bias) + residual``, each as far as ``has_bias`` and
``has_residual`` say. act is the entry ``activation`` of ``ACTIVATIONS``. ``x_scale_ptr`` and ``w_scale_ptr``, float32:
the product is multiplied by the scales of its row and column first, each ``step`` elements from the one before (0: one
scale for all). Scales may be of blocks instead, where ``x_scale_block`` and ``w_scale_block`` are given: one for each
row of x and GROUP of K, and one for each GROUP of rows of w and GROUP of K. Then ``step`` leads to the next row or
rows, ``block`` to the next of K, and what a GROUP of K adds up to is scaled before it goes to a float32. Tiles lie
within a GROUP of columns, and tensor cores take a GROUP of K at a step.

MAX_IMPRECISE: of 8-bit floats, over how many of K a tensor core may add up by itself, which keeps some 14 bits; then
the sum is added to a float32. None: over all.

PDL (programmatic dependent launch): the kernel starts while the one before it still runs. 1: it
reads nothing before that one has ended, but may bring weights into L2: L2 is where all SMs meet, so
a weight that the kernel before still writes is not stale there. 2: its first weights go to
registers before that, so the caller must know that no running kernel writes them. Every program
waits: only then does the end of this kernel imply the end of the one before it, which the next one
relies on.

Split-K is deterministic: partial sums go to the workspace, and the program that arrives last adds
them in the order of the splits. It also returns its counter to 0, ready for the next launch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

GROUP = tl.constexpr(128)
"""Elements of a block that has a scale, along K and along N (DeepSeek-V3 Technical Report, 2024, 3.3.2)."""
PART = tl.constexpr(16)
"""Of these, elements of 8 bits that a thread loads at once."""
ACTIVATIONS = ("none", "silu", "gelu", "gelu_tanh")
"""As ``torch.nn.functional`` has them; gelu_tanh is gelu with ``approximate="tanh"``."""


@triton.jit
def _prefetch_l2(pointers):
    """Ask for the 128-byte lines at ``pointers`` to be brought into L2; returns at once."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _start(
    w_ptr, w_row, n_start, k_start, k_end, N, BLOCK_N: tl.constexpr, PREFETCH_K: tl.constexpr, W_KN: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """What every program does first: let the next kernel start, ask for weights, wait for the kernel before."""
    if PDL > 0:
        gdc_launch_dependents()
    if PREFETCH_K > 0:
        _prefetch_weights(w_ptr, w_row, n_start, k_start, k_end, N, BLOCK_N, PREFETCH_K, W_KN)
    if PDL > 0:
        gdc_wait()


@triton.jit
def _prefetch_weights(
    w_ptr, w_row, n_start, k_start, k_end, N, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, W_KN: tl.constexpr
):
    """Ask for the weights of BLOCK_N outputs and BLOCK_K steps, line by line (of 128 bytes)."""
    LINE: tl.constexpr = 1024 // w_ptr.dtype.element_ty.primitive_bitwidth
    if W_KN:
        rows = k_start + tl.arange(0, BLOCK_K)
        columns = n_start + tl.arange(0, (BLOCK_N + LINE - 1) // LINE) * LINE
        inside = (rows[:, None] < k_end) & (columns[None, :] < N)
    else:
        rows = n_start + tl.arange(0, BLOCK_N)
        columns = k_start + tl.arange(0, (BLOCK_K + LINE - 1) // LINE) * LINE
        inside = (rows[:, None] < N) & (columns[None, :] < k_end)
    lines = w_ptr + rows.to(tl.int64)[:, None] * w_row + columns[None, :]
    # A prefetch has no mask: past the edge, ask for the first line again.
    _prefetch_l2(tl.where(inside, lines, w_ptr))


@triton.jit
def _store(out_ptr, out_row, acc, offs_m, offs_n, M, N, SWAP_AB: tl.constexpr):
    """Write a tile: acc is [BLOCK_M, BLOCK_N], or [BLOCK_N, BLOCK_M] where SWAP_AB."""
    value = acc.to(out_ptr.dtype.element_ty)
    rows = offs_m.to(tl.int64) * out_row
    if SWAP_AB:
        tl.store(out_ptr + rows[None, :] + offs_n[:, None], value, mask=(offs_m[None, :] < M) & (offs_n[:, None] < N))
    else:
        tl.store(out_ptr + rows[:, None] + offs_n[None, :], value, mask=(offs_m[:, None] < M) & (offs_n[None, :] < N))


@triton.jit
def _activate(value, activation):
    """The entry ``activation`` of ``ACTIVATIONS``; every program takes the same branch."""
    if activation == 1:
        value = value * tl.sigmoid(value)
    elif activation == 2:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    elif activation == 3:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value * tl.sigmoid(2.0 * inner)
    return value


@triton.jit
def _fuse(
    acc, up, x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step,
    bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation, offs_m, offs_n, M, N,
    SWAP_AB: tl.constexpr,
):  # fmt: skip
    """What follows the product of a tile; the tile itself where nothing does."""
    if w_scale_ptr is not None:
        x_scale = tl.load(x_scale_ptr + offs_m * x_scale_step, mask=offs_m < M, other=0.0)
        w_scale = tl.load(w_scale_ptr + offs_n * w_scale_step, mask=offs_n < N, other=0.0)
        if SWAP_AB:
            acc = acc * x_scale[None, :] * w_scale[:, None]
        else:
            acc = acc * x_scale[:, None] * w_scale[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_n, mask=(offs_n < N) & (has_bias != 0), other=0.0).to(tl.float32)
        if SWAP_AB:
            bias = bias[:, None]
        else:
            bias = bias[None, :]
        acc = _activate(acc + bias, activation)
    if residual_ptr is not None:
        if SWAP_AB:
            places = offs_m.to(tl.int64)[None, :] * residual_row + offs_n[:, None]
            inside = (offs_m[None, :] < M) & (offs_n[:, None] < N)
        else:
            places = offs_m.to(tl.int64)[:, None] * residual_row + offs_n[None, :]
            inside = (offs_m[:, None] < M) & (offs_n[None, :] < N)
        acc += tl.load(residual_ptr + places, mask=inside & (has_residual != 0), other=0.0).to(tl.float32)
    if up is not None:
        acc = _activate(acc, activation) * up
    return acc


@triton.jit
def _finish(
    acc, up, x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step,
    bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation, out_ptr, out_row,
    workspace_ptr, counter_ptr, tile, split, offs_m, offs_n, M, N, SPLIT_K: tl.constexpr, SWAP_AB: tl.constexpr,
):  # fmt: skip
    """Write the tile, or hand the partial sums over and let the last program write it."""
    acc = acc.to(tl.float32)
    if SPLIT_K > 1:
        ROWS: tl.constexpr = acc.shape[0]
        COLUMNS: tl.constexpr = acc.shape[1]
        SIZE: tl.constexpr = ROWS * COLUMNS
        # Sums of w and of up lie side by side.
        STEP: tl.constexpr = SIZE if up is None else 2 * SIZE
        within = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        partial = workspace_ptr + tile.to(tl.int64) * (SPLIT_K * STEP) + within
        tl.store(partial + split * STEP, acc)
        if up is not None:
            tl.store(partial + split * STEP + SIZE, up)
        tl.debug_barrier()  # every thread has written before one of them announces it
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel")
        if arrived == SPLIT_K - 1:
            total = _total(partial, SPLIT_K, STEP)
            if up is None:
                up_total = None
            else:
                up_total = _total(partial + SIZE, SPLIT_K, STEP)
            total = _fuse(
                total, up_total, x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step,
                bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation, offs_m, offs_n, M, N, SWAP_AB,
            )  # fmt: skip
            _store(out_ptr, out_row, total, offs_m, offs_n, M, N, SWAP_AB)
            tl.store(counter_ptr + tile, 0)
    else:
        acc = _fuse(
            acc, up, x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step,
            bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation, offs_m, offs_n, M, N, SWAP_AB,
        )  # fmt: skip
        _store(out_ptr, out_row, acc, offs_m, offs_n, M, N, SWAP_AB)


@triton.jit
def _total(partial, SPLIT_K: tl.constexpr, STEP: tl.constexpr):
    """The partial sums of a tile, added in the order of the splits."""
    total = tl.load(partial, cache_modifier=".cg")
    for other in tl.static_range(1, SPLIT_K):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(partial + other * STEP, cache_modifier=".cg")
    return total


@triton.jit
def gemv_kernel(
    x_ptr, w_ptr, out_ptr, workspace_ptr, counter_ptr, M, N, K, x_row, w_row, out_row,
    up_ptr, x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, x_scale_block, w_scale_block,
    bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr, W_KN: tl.constexpr, PDL: tl.constexpr, PREFETCH_K: tl.constexpr, DEEP: tl.constexpr,
):  # fmt: skip
    """Few rows of x (BLOCK_M covers them all): multiply-adds in registers, one sum over K at the end."""
    pid = tl.program_id(0)
    tile = pid // SPLIT_K
    split = pid % SPLIT_K
    k_per_split = tl.cdiv(tl.cdiv(K, SPLIT_K), BLOCK_K) * BLOCK_K
    k_start = split * k_per_split
    k_end = min(K, k_start + k_per_split)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    if W_KN:
        w_ptrs = w_ptr + (k_start + offs_k).to(tl.int64)[None, :] * w_row + offs_n[:, None]
        w_step = w_row * BLOCK_K
    else:
        w_ptrs = w_ptr + offs_n.to(tl.int64)[:, None] * w_row + (k_start + offs_k)[None, :]
        w_step = BLOCK_K
    if up_ptr is None:
        up_ptrs = w_ptrs
    else:
        up_ptrs = up_ptr + offs_n.to(tl.int64)[:, None] * w_row + (k_start + offs_k)[None, :]
    x_ptrs = x_ptr + offs_m.to(tl.int64)[:, None] * x_row + (k_start + offs_k)[None, :]
    row_mask = offs_m[:, None] < M
    column_mask = offs_n[:, None] < N
    w_mask = column_mask & ((k_start + offs_k) < k_end)[None, :]
    if PDL == 2:
        w, up = _load_weights(w_ptrs, up_ptrs, w_mask, up_ptr)
        _start(w_ptr, w_row, tile * BLOCK_N, k_start + BLOCK_K, k_end, N, BLOCK_N, PREFETCH_K, W_KN, PDL)
    else:
        _start(w_ptr, w_row, tile * BLOCK_N, k_start, k_end, N, BLOCK_N, PREFETCH_K, W_KN, PDL)
        w, up = _load_weights(w_ptrs, up_ptrs, w_mask, up_ptr)
    up_acc = None
    if x_scale_block is not None:
        x_scales, w_scales = _scale_rows(
            x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, offs_m, tile * BLOCK_N, M
        )  # fmt: skip
    if DEEP:
        # So many weights in registers leave no room for sums by position: add over K block by block.
        x = tl.load(x_ptrs, mask=row_mask & ((k_start + offs_k) < k_end)[None, :], other=0.0)
        if x_scale_block is None:
            acc = tl.sum(_products(x, w), axis=2)
        else:
            scales = _load_scales(x_scales, w_scales, x_scale_block, w_scale_block, k_start, K, BLOCK_K)
            acc = tl.sum(_scaled_products(x, w, scales), axis=2)
        if up_ptr is not None:
            up_acc = tl.sum(_products(x, up), axis=2)
        for k in range(k_start + BLOCK_K, k_end, BLOCK_K):
            w_ptrs += w_step
            if up_ptr is not None:
                up_ptrs += w_step
            x_ptrs += BLOCK_K
            inside = ((k + offs_k) < k_end)[None, :]
            w, up = _load_weights(w_ptrs, up_ptrs, column_mask & inside, up_ptr)
            x = tl.load(x_ptrs, mask=row_mask & inside, other=0.0)
            if x_scale_block is None:
                acc += tl.sum(_products(x, w), axis=2)
            else:
                scales = _load_scales(x_scales, w_scales, x_scale_block, w_scale_block, k, K, BLOCK_K)
                acc += tl.sum(_scaled_products(x, w, scales), axis=2)
            if up_ptr is not None:
                up_acc += tl.sum(_products(x, up), axis=2)
    else:
        POSITIONS: tl.constexpr = BLOCK_K if x_scale_block is None else BLOCK_K // PART
        sums = tl.zeros(
            (BLOCK_M, BLOCK_N, POSITIONS), dtype=tl.int32 if w_ptr.dtype.element_ty == tl.int8 else tl.float32
        )
        if up_ptr is not None:
            up_sums = tl.zeros((BLOCK_M, BLOCK_N, BLOCK_K), dtype=tl.float32)
        for k in range(k_start, k_end, BLOCK_K):
            w_ptrs += w_step
            if up_ptr is not None:
                up_ptrs += w_step
            inside = ((k + BLOCK_K + offs_k) < k_end)[None, :]
            w_next, up_next = _load_weights(w_ptrs, up_ptrs, column_mask & inside, up_ptr)
            if EVEN_K:
                x = tl.load(x_ptrs, mask=row_mask, other=0.0)
            else:
                x = tl.load(x_ptrs, mask=row_mask & ((k + offs_k) < k_end)[None, :], other=0.0)
            if x_scale_block is None:
                sums += _products(x, w)
            else:
                scales = _load_scales(x_scales, w_scales, x_scale_block, w_scale_block, k, K, BLOCK_K)
                sums += _scaled_products(x, w, scales)
            x_ptrs += BLOCK_K
            w = w_next
            if up_ptr is not None:
                up_sums += _products(x, up)
                up = up_next
        acc = tl.sum(sums, axis=2)
        if up_ptr is not None:
            up_acc = tl.sum(up_sums, axis=2)
    _finish(
        acc, up_acc, x_scale_ptr, w_scale_ptr if w_scale_block is None else None, x_scale_step, w_scale_step,
        bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation, out_ptr, out_row,
        workspace_ptr, counter_ptr, tile, split, offs_m, offs_n, M, N, SPLIT_K, False,
    )  # fmt: skip


@triton.jit
def _load_weights(w_ptrs, up_ptrs, mask, up_ptr):
    """A tile of w, and of up (w again if there is none). A weight is used once, so L2 may forget it first."""
    w = tl.load(w_ptrs, mask=mask, other=0.0, eviction_policy="evict_first")
    if up_ptr is None:
        up = w
    else:
        up = tl.load(up_ptrs, mask=mask, other=0.0, eviction_policy="evict_first")
    return w, up


@triton.jit
def _products(x, w):
    """[BLOCK_M, BLOCK_N, BLOCK_K] of x [BLOCK_M, BLOCK_K] and w [BLOCK_N, BLOCK_K], in the type of sums."""
    DTYPE: tl.constexpr = tl.int32 if w.dtype == tl.int8 else tl.float32  # pyright: ignore[reportAssignmentType]
    return x.to(DTYPE)[:, None, :] * w.to(DTYPE)[None, :, :]


@triton.jit
def _scale_rows(x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, offs_m, n_start, M):
    """Where scales of a tile are, for the first GROUP of K: [BLOCK_M] of x and one of w."""
    # Rows past the edge, whose results are not stored, have the last row's.
    return x_scale_ptr + tl.minimum(offs_m, M - 1) * x_scale_step, w_scale_ptr + n_start // GROUP * w_scale_step


@triton.jit
def _load_scale(x_scales, w_scales, x_scale_block, w_scale_block, k, K):
    """Scales of a tile's products over the GROUP of K from k, or the last one there is: [BLOCK_M] of x, one of w."""
    group = tl.minimum(k, K - 1) // GROUP
    return tl.load(x_scales + group * x_scale_block), tl.load(w_scales + group * w_scale_block)


@triton.jit
def _load_scales(x_scales, w_scales, x_scale_block, w_scale_block, k, K, BLOCK_K: tl.constexpr):
    """``_load_scale`` of each GROUP in BLOCK_K from k: [BLOCK_M, groups]."""
    groups = tl.minimum(tl.arange(0, BLOCK_K // GROUP) + k // GROUP, (K - 1) // GROUP)
    x_scale = tl.load(x_scales[:, None] + groups[None, :] * x_scale_block)
    return x_scale * tl.load(w_scales + groups * w_scale_block)[None, :]


@triton.jit
def _scaled_products(x, w, scales):
    """``_products``, each PART of K added up and multiplied by its scale: [BLOCK_M, BLOCK_N, BLOCK_K // PART].

    scales [BLOCK_M, groups]. A thread that loads PART elements at once has a single multiplication for them.
    """
    products = _products(x, w)
    ROWS: tl.constexpr = products.shape[0]
    COLUMNS: tl.constexpr = products.shape[1]
    GROUPS: tl.constexpr = products.shape[2] // GROUP
    PARTS: tl.constexpr = GROUP // PART
    sums = tl.sum(tl.reshape(products, (ROWS, COLUMNS, GROUPS, PARTS, PART)), axis=4)
    return tl.reshape(sums * scales[:, None, :, None], (ROWS, COLUMNS, GROUPS * PARTS))


@triton.jit
def stream_kernel(
    x_ptr, w_ptr, out_ptr, M, N, K, x_row, w_row, out_row,
    up_ptr, x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, x_scale_block, w_scale_block,
    bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As ``gemv_kernel`` for rows of w that BLOCK_K covers; programs walk over tiles and keep x in registers.

    Few enough programs that those of the next kernel find room beside them, with their first tile
    on the way before this kernel has ended.
    """
    pid = tl.program_id(0)
    step = tl.num_programs(0)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    inside = (offs_k < K)[None, :]
    if PDL > 0:
        gdc_launch_dependents()
    if PDL == 1:
        gdc_wait()
    w_ptrs = w_ptr + offs_n.to(tl.int64)[:, None] * w_row + offs_k[None, :]
    up_ptrs = w_ptrs
    if up_ptr is not None:
        up_ptrs = up_ptr + offs_n.to(tl.int64)[:, None] * w_row + offs_k[None, :]
    w, up = _load_weights(w_ptrs, up_ptrs, (offs_n < N)[:, None] & inside, up_ptr)  # pyright: ignore[reportGeneralTypeIssues]
    if PDL == 2:
        gdc_wait()
    x_ptrs = x_ptr + offs_m.to(tl.int64)[:, None] * x_row + offs_k[None, :]
    x = tl.load(x_ptrs, mask=(offs_m < M)[:, None] & inside, other=0.0)
    if x_scale_block is not None:
        groups = tl.minimum(tl.arange(0, BLOCK_K // GROUP), (K - 1) // GROUP)
        x_scales = x_scale_ptr + tl.minimum(offs_m, M - 1) * x_scale_step
        x_scale = tl.load(x_scales[:, None] + groups[None, :] * x_scale_block)
        w_scales = w_scale_ptr + groups * w_scale_block
        w_scale = tl.load(w_scales + pid * BLOCK_N // GROUP * w_scale_step)
    for tile in range(pid, tl.cdiv(N, BLOCK_N), step):
        next_n = (tile + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        w_ptrs = w_ptr + next_n.to(tl.int64)[:, None] * w_row + offs_k[None, :]
        if up_ptr is not None:
            up_ptrs = up_ptr + next_n.to(tl.int64)[:, None] * w_row + offs_k[None, :]
        w_next, up_next = _load_weights(w_ptrs, up_ptrs, (next_n < N)[:, None] & inside, up_ptr)
        if x_scale_block is None:
            acc = tl.sum(_products(x, w), axis=2)
        else:
            acc = tl.sum(_scaled_products(x, w, x_scale * w_scale[None, :]), axis=2)
            # Of the next tile, as its weights; past the last one, those of the last again.
            row = tl.minimum((tile + step) * BLOCK_N, N - 1) // GROUP
            w_scale = tl.load(w_scales + row * w_scale_step)
        if up_ptr is None:
            up_acc = None
        else:
            up_acc = tl.sum(_products(x, up), axis=2)
            up = up_next
        offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = _fuse(
            acc.to(tl.float32), up_acc,
            x_scale_ptr, w_scale_ptr if w_scale_block is None else None, x_scale_step, w_scale_step,
            bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation, offs_m, offs_n, M, N, False,
        )  # fmt: skip
        _store(out_ptr, out_row, acc, offs_m, offs_n, M, N, False)
        w = w_next


@triton.jit
def tiled_kernel(
    x_ptr, w_ptr, out_ptr, workspace_ptr, counter_ptr, M, N, K, x_row, w_row, out_row,
    x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, x_scale_block, w_scale_block, bias_ptr, has_bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
    SWAP_AB: tl.constexpr, EVEN_K: tl.constexpr, W_KN: tl.constexpr, PDL: tl.constexpr,
    PREFETCH_K: tl.constexpr, MAX_IMPRECISE: tl.constexpr,
):  # fmt: skip
    """Tensor cores, loads through pointers: any alignment, any row stride."""
    pid = tl.program_id(0)
    split = pid % SPLIT_K
    tile = pid // SPLIT_K
    tiles_m = tl.cdiv(M, BLOCK_M)
    tile_m = tile % tiles_m  # programs that share weights run side by side
    tile_n = tile // tiles_m
    k_per_split = tl.cdiv(tl.cdiv(K, SPLIT_K), BLOCK_K) * BLOCK_K
    k_start = split * k_per_split
    k_end = min(K, k_start + k_per_split)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows past the edge read the last row again: no mask in the loop, and their results are not stored.
    x_ptrs = x_ptr + tl.minimum(offs_m, M - 1).to(tl.int64)[:, None] * x_row + (k_start + offs_k)[None, :]
    if W_KN:
        w_ptrs = w_ptr + (k_start + offs_k).to(tl.int64)[None, :] * w_row + offs_n[:, None]
        w_step = w_row * BLOCK_K
    else:
        w_ptrs = w_ptr + tl.minimum(offs_n, N - 1).to(tl.int64)[:, None] * w_row + (k_start + offs_k)[None, :]
        w_step = BLOCK_K
    acc = _zeros(w_ptr, BLOCK_M, BLOCK_N, SWAP_AB)
    x_scale = None
    w_scale = None
    if x_scale_block is not None:
        x_scales, w_scales = _scale_rows(
            x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, offs_m, tile_n * BLOCK_N, M
        )  # fmt: skip
    if PDL == 2:
        w = _load_w(w_ptrs, offs_n, N, k_start + offs_k, k_end, EVEN_K, W_KN)
        k_start += BLOCK_K
    _start(w_ptr, w_row, tile_n * BLOCK_N, k_start, k_end, N, BLOCK_N, PREFETCH_K, W_KN, PDL)
    if PDL == 2:
        x = _load_x(x_ptrs, k_start - BLOCK_K + offs_k, k_end, EVEN_K)
        if x_scale_block is not None:
            x_scale, w_scale = _load_scale(x_scales, w_scales, x_scale_block, w_scale_block, k_start - BLOCK_K, K)
        acc = _multiply(x, w, acc, x_scale, w_scale, SWAP_AB, MAX_IMPRECISE)
        x_ptrs += BLOCK_K
        w_ptrs += w_step
    if x_scale_block is not None:
        x_scale, w_scale = _load_scale(x_scales, w_scales, x_scale_block, w_scale_block, k_start, K)
    for k in range(k_start, k_end, BLOCK_K):
        x = _load_x(x_ptrs, k + offs_k, k_end, EVEN_K)
        w = _load_w(w_ptrs, offs_n, N, k + offs_k, k_end, EVEN_K, W_KN)
        if x_scale_block is None:
            acc = _multiply(x, w, acc, None, None, SWAP_AB, MAX_IMPRECISE)
        else:
            next_scales = _load_scale(x_scales, w_scales, x_scale_block, w_scale_block, k + BLOCK_K, K)
            acc = _multiply(x, w, acc, x_scale, w_scale, SWAP_AB, MAX_IMPRECISE)
            x_scale, w_scale = next_scales
        x_ptrs += BLOCK_K
        w_ptrs += w_step
    _finish(
        acc, None, x_scale_ptr, w_scale_ptr if w_scale_block is None else None, x_scale_step, w_scale_step,
        bias_ptr, None, None, has_bias, None, None,
        out_ptr, out_row, workspace_ptr, counter_ptr, tile, split, offs_m, offs_n, M, N, SPLIT_K, SWAP_AB,
    )  # fmt: skip


@triton.jit
def _load_x(x_ptrs, offs_k, k_end, EVEN_K: tl.constexpr):
    if EVEN_K:
        x = tl.load(x_ptrs)
    else:
        x = tl.load(x_ptrs, mask=(offs_k < k_end)[None, :], other=0.0)
    return x


@triton.jit
def _load_w(w_ptrs, offs_n, N, offs_k, k_end, EVEN_K: tl.constexpr, W_KN: tl.constexpr):
    if W_KN:  # columns cannot be clamped: the compiler must see that they are contiguous
        w = tl.load(w_ptrs, mask=(offs_n[:, None] < N) & (offs_k < k_end)[None, :], other=0.0)
    elif EVEN_K:
        w = tl.load(w_ptrs)
    else:
        w = tl.load(w_ptrs, mask=(offs_k < k_end)[None, :], other=0.0)
    return w


@triton.jit
def _zeros(w_ptr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAP_AB: tl.constexpr):
    """What products of a tile are added to: [BLOCK_M, BLOCK_N], or its transpose."""
    DTYPE: tl.constexpr = tl.int32 if w_ptr.dtype.element_ty == tl.int8 else tl.float32  # pyright: ignore
    if SWAP_AB:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=DTYPE)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=DTYPE)
    return acc


@triton.jit
def _multiply(x, w, acc, x_scale, w_scale, SWAP_AB: tl.constexpr, MAX_IMPRECISE: tl.constexpr):
    """acc + x @ w.T, or its transpose; x [BLOCK_M, BLOCK_K], w [BLOCK_N, BLOCK_K].

    Where there are scales, [BLOCK_M] of x and one of w, what is added is multiplied by them first.
    """
    if x_scale is not None:
        # The tensor cores are at work before anybody waits for a scale.
        if SWAP_AB:
            product = tl.dot(w, x.T, out_dtype=acc.dtype)
            acc += product * (x_scale * w_scale)[None, :]
        else:
            product = tl.dot(x, w.T, out_dtype=acc.dtype)
            acc += product * (x_scale * w_scale)[:, None]
    elif SWAP_AB:
        acc = tl.dot(w, x.T, acc, max_num_imprecise_acc=MAX_IMPRECISE, out_dtype=acc.dtype)
    else:
        acc = tl.dot(x, w.T, acc, max_num_imprecise_acc=MAX_IMPRECISE, out_dtype=acc.dtype)
    return acc


@triton.jit
def tma_kernel(
    x_desc, w_desc, w_ptr, out_ptr, workspace_ptr, counter_ptr, M, N, K, w_row, out_row,
    up_desc, x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, x_scale_block, w_scale_block,
    bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
    SWAP_AB: tl.constexpr, W_KN: tl.constexpr, PDL: tl.constexpr, PREFETCH_K: tl.constexpr,
    MAX_IMPRECISE: tl.constexpr,
):  # fmt: skip
    """Tensor cores, loads through tensor descriptors, one tile a program."""
    pid = tl.program_id(0)
    split = pid % SPLIT_K
    tile = pid // SPLIT_K
    tiles_m = tl.cdiv(M, BLOCK_M)
    tile_m = tile % tiles_m
    tile_n = tile // tiles_m
    k_per_split = tl.cdiv(tl.cdiv(K, SPLIT_K), BLOCK_K) * BLOCK_K
    k_start = split * k_per_split
    k_end = min(K, k_start + k_per_split)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = _zeros(w_ptr, BLOCK_M, BLOCK_N, SWAP_AB)
    if up_desc is None:
        up_acc = None
    else:  # [N, K]; legal without weights in registers alone
        up_acc = tl.zeros(acc.shape, dtype=tl.float32)
    if PDL == 2:
        # Through pointers: a descriptor load would block until its weights are there.
        offs_k = k_start + tl.arange(0, BLOCK_K)
        if W_KN:
            w_ptrs = w_ptr + offs_k.to(tl.int64)[None, :] * w_row + offs_n[:, None]
        else:
            w_ptrs = w_ptr + offs_n.to(tl.int64)[:, None] * w_row + offs_k[None, :]
        w = tl.load(w_ptrs, mask=(offs_n < N)[:, None] & (offs_k < k_end)[None, :], other=0.0)
        k_start += BLOCK_K
    _start(w_ptr, w_row, tile_n * BLOCK_N, k_start, k_end, N, BLOCK_N, PREFETCH_K, W_KN, PDL)
    x_scale = None
    w_scale = None
    if x_scale_block is not None:
        x_scales, w_scales = _scale_rows(
            x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, offs_m, tile_n * BLOCK_N, M
        )  # fmt: skip
    if PDL == 2:
        if x_scale_block is not None:
            x_scale, w_scale = _load_scale(x_scales, w_scales, x_scale_block, w_scale_block, k_start - BLOCK_K, K)
        x = x_desc.load([tile_m * BLOCK_M, k_start - BLOCK_K])
        acc = _multiply(x, w, acc, x_scale, w_scale, SWAP_AB, MAX_IMPRECISE)
    if x_scale_block is not None:
        x_scale, w_scale = _load_scale(x_scales, w_scales, x_scale_block, w_scale_block, k_start, K)
    # A split ends on a block, except the last one, which K ends: the descriptor reads zeros past it.
    for k in range(k_start, k_end, BLOCK_K):
        x = x_desc.load([tile_m * BLOCK_M, k])
        if W_KN:
            w = w_desc.load([k, tile_n * BLOCK_N]).T
        else:
            w = w_desc.load([tile_n * BLOCK_N, k])
        if x_scale_block is None:
            acc = _multiply(x, w, acc, None, None, SWAP_AB, MAX_IMPRECISE)
        else:
            # A step ahead: it is there before the products are.
            next_scales = _load_scale(x_scales, w_scales, x_scale_block, w_scale_block, k + BLOCK_K, K)
            acc = _multiply(x, w, acc, x_scale, w_scale, SWAP_AB, MAX_IMPRECISE)
            x_scale, w_scale = next_scales
        if up_desc is not None:
            up = up_desc.load([tile_n * BLOCK_N, k])
            up_acc = _multiply(x, up, up_acc, None, None, SWAP_AB, MAX_IMPRECISE)
    _finish(
        acc, up_acc, x_scale_ptr, w_scale_ptr if w_scale_block is None else None, x_scale_step, w_scale_step,
        bias_ptr, residual_ptr, residual_row, has_bias, has_residual, activation, out_ptr, out_row,
        workspace_ptr, counter_ptr, tile, split, offs_m, offs_n, M, N, SPLIT_K, SWAP_AB,
    )  # fmt: skip


@triton.jit
def persistent_kernel(
    x_desc, w_desc, w_ptr, out_ptr, M, N, K, w_row, out_row,
    x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step, x_scale_block, w_scale_block, bias_ptr, has_bias,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    W_KN: tl.constexpr, PDL: tl.constexpr, MAX_IMPRECISE: tl.constexpr,
):  # fmt: skip
    """Tensor cores and descriptors, each program walking over tiles: for many rows of x."""
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    _start(w_ptr, w_row, 0, 0, K, N, BLOCK_N, 0, W_KN, PDL)
    for tile in tl.range(pid, tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        # GROUP_M rows of tiles go together, so that what they read stays in L2.
        group = tile // (GROUP_M * tiles_n)
        group_rows = min(tiles_m - group * GROUP_M, GROUP_M)
        tile_m = group * GROUP_M + tile % (GROUP_M * tiles_n) % group_rows
        tile_n = tile % (GROUP_M * tiles_n) // group_rows
        acc = _zeros(w_ptr, BLOCK_M, BLOCK_N, False)
        if x_scale_block is not None:
            x_scales, w_scales = _scale_rows(
                x_scale_ptr, w_scale_ptr, x_scale_step, w_scale_step,
                tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N, M,
            )  # fmt: skip
        for k in range(0, tl.cdiv(K, BLOCK_K)):
            x = x_desc.load([tile_m * BLOCK_M, k * BLOCK_K])
            if W_KN:
                w = w_desc.load([k * BLOCK_K, tile_n * BLOCK_N])
                acc = tl.dot(x, w, acc, max_num_imprecise_acc=MAX_IMPRECISE, out_dtype=acc.dtype)
            else:
                w = w_desc.load([tile_n * BLOCK_N, k * BLOCK_K])
                if x_scale_block is None:
                    acc = tl.dot(x, w.T, acc, max_num_imprecise_acc=MAX_IMPRECISE, out_dtype=acc.dtype)
                else:
                    x_scale, w_scale = _load_scale(x_scales, w_scales, x_scale_block, w_scale_block, k * BLOCK_K, K)
                    acc = _multiply(x, w, acc, x_scale, w_scale, False, None)
        offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = _fuse(
            acc.to(tl.float32), None,
            x_scale_ptr, w_scale_ptr if w_scale_block is None else None, x_scale_step, w_scale_step,
            bias_ptr, None, None, has_bias, None, None, offs_m, offs_n, M, N, False,
        )  # fmt: skip
        _store(out_ptr, out_row, acc, offs_m, offs_n, M, N, False)
