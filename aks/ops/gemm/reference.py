"""Inputs, the high-precision reference, the check against it, and the vendor's call, for ``gemm``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from aks.core.errors import InvalidProblemError
from aks.ops.gemm.spec import GemmProblem

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

_MAX_ALIGNMENT = 16
_PITCH = 256
"""Bytes that the start of each copy of w is a multiple of, as an allocator would give."""
_RANDOM_BLOCK = 16_777_213
"""Random values made at once, then repeated. Prime, so that rows and copies do not repeat with it."""
_CHUNK = 2**26
"""Elements converted at once to higher precision: 512 MiB in float64."""
_FLOAT64_LIMIT = 2**31
"""m * n * k up to which a GPU uses float64; many GPUs have 1/64 of their float32 rate there."""


@dataclass(eq=False)
class Inputs:
    """Operands of one problem.

    x [M, K]; w: copies [N, K] (or [K, N], as the problem's w_layout says) at different addresses, of
    different values; out [M, N], poisoned. All of the problem's dtype; rows contiguous, row strides
    and pointers as its alignment asks.
    """

    x: Tensor
    w: list[Tensor]
    out: Tensor


def make_inputs(problem: GemmProblem, *, copies: int = 1, device: str | torch.device = "cuda", seed: int = 0) -> Inputs:
    """Random operands aligned to exactly ``problem.alignment``, as ``GemmProblem`` says, for every copy of w.

    x is N(0, 1) and w N(0, 1/k), so outputs are about N(0, 1). Row strides are padded where rows
    would be less aligned than asked; where they would be more aligned, pointers are shifted by
    ``alignment`` bytes. Padding between rows is NaN: a kernel that reads it shows.

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1.
    """
    m, n, k = problem.m, problem.n, problem.k
    w_shape = (n, k) if problem.w_layout == "nk" else (k, n)
    wanted = ((m, k), 1, 1.0), (w_shape, copies, k**-0.5), ((m, n), 1, 0.0)
    (x,), w, (out,) = make_matrices(
        wanted, dtype=DTYPES[problem.dtype], alignment=problem.alignment, device=device, seed=seed
    )
    return Inputs(x, w, out)


def make_matrices(
    wanted: Sequence[tuple[tuple[int, int], int, float]],
    *,
    dtype: torch.dtype | Sequence[torch.dtype],
    alignment: int,
    device: str | torch.device,
    seed: int,
) -> list[list[Tensor]]:
    """For each (shape, copies, standard deviation) in ``wanted``: matrices of contiguous rows.

    Row strides and pointers of all of them together are aligned to exactly ``alignment`` bytes, as in
    ``make_inputs``. Values are random, or NaN where the standard deviation is 0. dtype is that of all, or one for each.
    Integers are rounded, and -128 is their NaN.

    Raises
    ------
    InvalidProblemError
        If a number of copies is less than 1, or alignment less than the bytes of an element.
    """
    for _, copies, _ in wanted:
        if copies < 1:
            raise InvalidProblemError(f"copies={copies}; w needs at least 1 copy")
    dtypes = [dtype] * len(wanted) if isinstance(dtype, torch.dtype) else dtype
    if alignment < min(one.itemsize for one in dtypes):
        raise InvalidProblemError(
            f"alignment {alignment}: elements of {dtypes[0]} have {dtypes[0].itemsize} bytes; align to these"
        )
    steps = [max(1, alignment // one.itemsize) for one in dtypes]
    strides = [math.ceil(row / step) * step for ((_, row), _, _), step in zip(wanted, steps, strict=True)]
    natural = _power_of_two(*(stride * one.itemsize for stride, one in zip(strides, dtypes, strict=True)))
    generator = torch.Generator(device=device).manual_seed(seed)
    made = []
    for ((rows, row), copies, std), stride, step, one in zip(wanted, strides, steps, dtypes, strict=True):
        offset = 0 if natural == alignment else step
        pitch = math.ceil((rows * stride + offset) / (_PITCH // one.itemsize)) * (_PITCH // one.itemsize)
        flat = torch.empty(copies * pitch, dtype=one, device=device)
        if std:
            _fill_random(flat, std, generator)
        starts = [copy * pitch + offset for copy in range(copies)]
        padded = [flat[start : start + rows * stride].view(rows, stride) for start in starts]
        for tensor in padded:
            tensor[:, row if std else 0 :].fill_(poison_of(one))
        made.append([tensor[:, :row] for tensor in padded])
    return made


def reference(problem: GemmProblem, x: Tensor, w: Tensor) -> Tensor:
    """``x @ w.T`` in higher precision: [M, N] float32 on x's device. w as ``problem.w_layout`` says.

    float64 on a CPU and up to m * n * k = 2^31, else float32 without TF32. Converted in pieces, so
    that beside the result at most about 1.5 GiB are in use.
    """
    return product(x, w.T if problem.w_layout == "nk" else w)


def multiply(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """``out = x @ w.T + bias`` by PyTorch's own product: x [M, K], w [N, K], bias [N] or None, out [M, N]."""
    if bias is None:
        torch.mm(x, w.T, out=out)
    else:
        torch.addmm(bias, x, w.T, out=out)


def product(x: Tensor, wt: Tensor) -> Tensor:
    """``x @ wt`` in higher precision, as ``reference``: x [M, K] and wt [K, N] of any strides."""
    (m, k), n = x.shape, wt.shape[1]
    exact = x.device.type == "cpu" or m * n * k <= _FLOAT64_LIMIT
    dtype = torch.float64 if exact else torch.float32
    result = torch.empty(m, n, dtype=torch.float32, device=x.device)
    step = max(1, _CHUNK // k)
    with float32_precision("highest"):
        for top in range(0, m, step):
            rows = x[top : top + step].to(dtype)
            # The product of a piece must stay small too.
            width = max(1, min(step, _CHUNK // rows.shape[0]))
            for left in range(0, n, width):
                columns = slice(left, left + width)
                result[top : top + step, columns] = rows @ wt[:, columns].to(dtype)
    return result


def tolerances(problem: GemmProblem) -> tuple[float, float, float]:
    """Allowed errors: (of the whole, relative), (of an element, relative to it), (of an element, absolute).

    Sources: N. Higham, Accuracy and Stability of Numerical Algorithms, 2.1-2.2 and 3.1, and M. Fasi et al.,
    Numerical behavior of NVIDIA tensor cores, 2021. For outputs of unit variance:

    - Rounding the output errs by at most u of each element, u = 2^-8 (bf16) or 2^-11 (fp16), and by
      u / 2.4 in root mean square (2^-9 and 2^-12 in round figures).
    - Vendors may also round the partial sums of a split k to the output type (PyTorch allows it by
      default). A partial sum is not small where the output is, so an element may err by several u of a
      standard deviation: 8 are allowed. Over the whole that stays below u (0.6 u for partial sums
      rounded once, 0.95 u for eight added one by one); of few outputs the mean is not yet settled,
      hence u * (1 + 2 / sqrt(m n)).
    - Tensor cores cut float32 sums off rather than round them: up to 2^-23 a step of at least 8
      products, always towards zero, so it grows as k. k * 2^-25 allows twice that mean.
    """
    return tolerances_at({"bf16": 2.0**-8, "fp16": 2.0**-11}[problem.dtype], problem.m, problem.n, problem.k)


def tolerances_at(unit: float, m: int, n: int, k: int) -> tuple[float, float, float]:
    """``tolerances`` where u is ``unit``."""
    accumulation = k * 2.0**-25
    whole = unit * (1 + 2 / math.sqrt(m * n)) + accumulation
    return whole, unit, 8 * (unit + accumulation)


def check(problem: GemmProblem, out: Tensor, expected: Tensor) -> str:
    """Say what is wrong with ``out`` [M, N], given ``expected`` [M, N] float32; empty if nothing is.

    ``out`` must have been poisoned before the launch. Errors are held against ``tolerances``, scaled
    by the root mean square of ``expected`` but by no less than 1, the scale of ``make_inputs``: a lone
    output near 0 has no meaningful relative error.
    """
    return compare(out, expected, DTYPES[problem.dtype], tolerances(problem))


def compare(out: Tensor, expected: Tensor, dtype: torch.dtype, allowed: tuple[float, float, float]) -> str:
    """``check`` for an ``out`` that should be of ``dtype``, with the errors that are ``allowed``."""
    if out.shape != expected.shape or out.dtype != dtype:
        return f"output is {tuple(out.shape)} {out.dtype}; wanted {tuple(expected.shape)} {dtype}"
    whole, element, absolute = allowed
    pieces = []
    for rows in _row_slices(out):
        exact = expected[rows]
        error = out[rows].float() - exact
        # Squares of large wrong values overflow float32.
        norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in (error, exact)]
        pieces.append(torch.stack([*norms, (error.abs_() - element * exact.abs()).amax().double()]))
    # One transfer: a sweep checks thousands of candidates.
    columns = list(zip(*torch.stack(pieces).tolist(), strict=True))
    if not all(math.isfinite(value) for column in columns for value in column):
        return _describe_non_finite(out, expected)
    error_norm, exact_norm = math.hypot(*columns[0]), math.hypot(*columns[1])
    count = math.sqrt(out.numel())
    scale = max(1.0, exact_norm / count)
    if max(columns[2]) > absolute * scale:
        return _describe_worst(out, expected, element, absolute * scale)
    relative = error_norm / (scale * count)
    if relative > whole:
        return f"relative error of the whole is {relative:.3g}; at most {whole:.3g} is allowed"
    return ""


def poison_of(dtype: torch.dtype) -> float:
    """What no operand holds: NaN, or of integers -128."""
    return math.nan if dtype.is_floating_point else -128


def poison(out: Tensor) -> None:
    """Fill ``out`` with NaN, so that an element that is not written shows."""
    out.fill_(math.nan)


def vendor(problem: GemmProblem, x: Tensor, w: Tensor, out: Tensor) -> Callable[[], object]:
    """A call that writes ``x @ w.T`` into ``out`` by ``torch.mm``, on the current stream."""
    return partial(torch.mm, x, w.T if problem.w_layout == "nk" else w, out=out)


def _power_of_two(*numbers: int) -> int:
    divisor = math.gcd(_MAX_ALIGNMENT, *numbers)
    return divisor & -divisor


def _fill_random(flat: Tensor, std: float, generator: torch.Generator) -> None:
    size = min(flat.numel(), _RANDOM_BLOCK)
    wide = flat.dtype if flat.dtype.itemsize > 1 else torch.float32  # random numbers of 8 bits there are none
    block = torch.randn(size, dtype=wide, device=flat.device, generator=generator).mul_(std)
    if flat.dtype == torch.int8:
        block = block.round_().clamp_(-127, 127)
    block = block.to(flat.dtype)
    for piece in flat.split(size):
        piece.copy_(block[: piece.numel()])


@contextmanager
def float32_precision(level: str) -> Iterator[None]:
    """Products of float32 matrices at PyTorch's precision ``level``: ``highest``, or ``high``, which is TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _row_slices(out: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK // out.shape[1])
    for top in range(0, out.shape[0], step):
        yield slice(top, top + step)


def _describe_non_finite(out: Tensor, expected: Tensor) -> str:
    unwritten = infinite = unusable = 0
    first = None
    for rows in _row_slices(out):
        nan, inf = out[rows].isnan(), out[rows].isinf()
        unwritten, infinite = unwritten + int(nan.sum()), infinite + int(inf.sum())
        unusable += int((~expected[rows].isfinite()).sum())
        if first is None and (unwritten or infinite):
            row, column = (nan | inf).nonzero()[0].tolist()
            first = (rows.start + row, column)
    if unusable:
        return f"the reference has {unusable} elements that are not finite: the inputs overflow or hold NaN"
    return f"{unwritten} of {out.numel()} elements are NaN (never written?), {infinite} infinite; the first at {first}"


def _describe_worst(out: Tensor, expected: Tensor, element: float, absolute: float) -> str:
    wrong, worst, place = 0, 0.0, (0, 0)
    for rows in _row_slices(out):
        exact = expected[rows]
        excess = (out[rows].float() - exact).abs_() - element * exact.abs()
        wrong += int((excess > absolute).sum())
        index = int(excess.argmax())
        if float(excess.flatten()[index]) > worst:
            worst = float(excess.flatten()[index])
            place = (rows.start + index // out.shape[1], index % out.shape[1])
    got, wanted = float(out[place]), float(expected[place])
    bound = element * abs(wanted) + absolute
    return (
        f"{wrong} of {out.numel()} elements are wrong; the worst at {place} is {got:.6g}, wanted {wanted:.6g} "
        f"within {bound:.3g}"
    )
