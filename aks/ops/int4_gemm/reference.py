"""Inputs, the high-precision reference, the check against it, and PyTorch's routines, for ``int4_gemm``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aks.core.errors import InvalidProblemError
from aks.ops.gemm.reference import compare, make_matrices, multiply, poison, product, tolerances_at
from aks.ops.int4_gemm.call import Operands
from aks.ops.int4_gemm.packing import Int4Weight, by_k, dequantize, exact_rows, num_words, pack_meta, unpack
from aks.ops.int4_gemm.spec import Int4GemmProblem

__all__ = [
    "ROUTINES", "Inputs", "check", "make_inputs", "poison", "reference", "takes_tinygemm", "tinygemm", "to_tinygemm",
    "vendor",
]  # fmt: skip

_RANDOM_BLOCK = 16_777_213
"""Random words made at once, then repeated. Prime, so that rows and copies do not repeat with it."""
_CHUNK = 2**26
"""Weights converted at once to float32: 256 MiB."""


@dataclass(eq=False)
class Inputs:
    """x [M, K] bf16; w: copies of what there is beside x, at different addresses; out [M, N] bf16, poisoned."""

    x: Tensor
    w: list[Operands]
    out: Tensor


def make_inputs(
    problem: Int4GemmProblem, *, copies: int = 1, device: str | torch.device = "cuda", seed: int = 0
) -> Inputs:
    """Random operands, x and out aligned to exactly ``problem.alignment``, as ``aks.ops.gemm.reference`` makes them.

    x is N(0, 1). Weights are uniform from 0 to 15, zeros too, scales uniform between 0.5 and 1.5 times what makes
    outputs about N(0, 1). What lies in the packing beyond N and K is random, too. There is no bias: neither PyTorch's
    kernel nor most models have one. Each copy holds the weights as PyTorch's kernel wants them, where that takes them
    and there is a GPU, and in bf16 and k by k where the problem has that. Of x about ``density`` percent are not 0, and
    by so much larger that outputs are as they would be.

    Raises
    ------
    InvalidProblemError
        If ``copies`` is less than 1.
    """
    m, n, k = problem.m, problem.n, problem.k
    (x,), (out,) = make_matrices(
        (((m, k), 1, 1.0), ((m, n), 1, 0.0)),
        dtype=torch.bfloat16,
        alignment=problem.alignment,
        device=device,
        seed=seed,
    )
    if copies < 1:
        raise InvalidProblemError(f"copies={copies}; w needs at least 1 copy")
    generator = torch.Generator(device=device).manual_seed(seed + 1)
    if problem.density < 100:
        kept = torch.rand(x.shape, device=device, generator=generator) < problem.density / 100
        x.mul_((100 / problem.density) ** 0.5).mul_(kept)
    return Inputs(x, [_random_operands(problem, device, generator) for _ in range(copies)], out)


def _random_operands(problem: Int4GemmProblem, device: str | torch.device, generator: torch.Generator) -> Operands:
    n, k, group = problem.n, problem.k, problem.group
    words = torch.empty(num_words(n, k), dtype=torch.int32, device=device)
    block = torch.empty(min(words.numel(), _RANDOM_BLOCK), dtype=torch.int32, device=device)
    block.random_(-(2**31), 2**31, generator=generator)
    for piece in words.split(block.numel()):
        piece.copy_(block[: piece.numel()])
    shape = (n, -(-k // group))
    # The variance of uniform numbers from 0 to 15 is 21.25, of the difference of two 42.5; about 8 it is 21.5.
    unit = (k * (42.5 if problem.zeros else 21.5)) ** -0.5
    scales = (torch.rand(shape, device=device, generator=generator) + 0.5).mul_(unit).bfloat16()
    zeros = torch.randint(0, 16, shape, device=device, generator=generator) if problem.zeros else None
    weight = Int4Weight(words, pack_meta(scales, zeros, k, group), n, k, group, problem.zeros)
    tiny = to_tinygemm(weight) if words.device.type == "cuda" and takes_tinygemm(problem) else None
    dense = dequantize(weight) if problem.has_bf16 else None
    return Operands(weight, None, tiny, dense, by_k(weight) if problem.density < 100 else None)


def reference(problem: Int4GemmProblem, x: Tensor, w: Operands) -> Tensor:
    """The product in higher precision (``aks.ops.gemm.reference.product``): [M, N] float32.

    Weights are (q - zero) * scale without rounding. Kernels that scale weights, and bf16 copies, round them to bf16,
    which is as much as x was rounded by: ``check`` allows it.
    """
    q, scales, zeros = unpack(w.weight)
    result = torch.empty(x.shape[0], problem.n, dtype=torch.float32, device=x.device)
    step = max(1, _CHUNK // problem.k)
    for top in range(0, problem.n, step):
        rows = slice(top, top + step)
        result[:, rows] = product(x, exact_rows(w.weight, q, scales, zeros, rows).T)
    return result if w.bias is None else result.add_(w.bias)


def check(problem: Int4GemmProblem, out: Tensor, expected: Tensor) -> str:
    """Say what is wrong with ``out`` [M, N], given ``expected`` [M, N] float32; empty if nothing is.

    Beside what ``aks.ops.gemm.reference.tolerances`` allows, weights may be rounded: each by at most 2^-9, so that a
    sum errs by less than 2^-10 of a standard deviation in root mean square, and an element by several of these; so may
    PyTorch's zeros, which are zero * scale.
    """
    whole, element, absolute = tolerances_at(2.0**-8, problem.m, problem.n, problem.k)
    return compare(out, expected, torch.bfloat16, (whole + 2.0**-10, element, absolute + 2.0**-7))


def takes_tinygemm(weight: Int4GemmProblem | Int4Weight) -> bool:
    """Whether PyTorch's kernel takes weights of these n, k and groups."""
    return weight.n % 8 == 0 and weight.k % 32 == 0 and weight.k % weight.group == 0


def to_tinygemm(weight: Int4Weight) -> tuple[Tensor, Tensor]:
    """A weight on a GPU as ``torch._weight_int4pack_mm`` takes it, and its scales and zeros [K / group, N, 2] bf16.

    There a weight is (q - 8) * scale + zero, with a zero of bf16.
    """
    q, scales, zeros = unpack(weight)
    tiles = next(tiles for tiles in (8, 4, 2) if weight.k % (16 * tiles) == 0)
    packed = torch.ops.aten._convert_weight_to_int4pack((q[:, ::2] << 4 | q[:, 1::2]).contiguous(), tiles)
    shift = torch.zeros_like(scales) if zeros is None else ((8 - zeros.float()) * scales).bfloat16()
    return packed, torch.stack([scales.T, shift.T], dim=-1).contiguous()


def vendor(problem: Int4GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that multiplies by ``torch._weight_int4pack_mm``, on the current stream, and writes ``out``.

    PyTorch's call makes its own output. While a stream is captured it stays there, and ``out`` is not written: what is
    timed in a graph is the call as users have it, without a copy. Weights that it does not take (``takes_tinygemm``)
    are dequantised at each call, and multiplied by ``torch.mm``. On a CPU it is the reference.
    """
    if x.device.type == "cpu":
        return lambda: out.copy_(reference(problem, x, w))
    tiny = w.tiny
    if tiny is None:
        return unpacked(problem, x, w, out)

    def run() -> None:
        made = tinygemm(problem, x, tiny, w.bias)
        if not torch.cuda.is_current_stream_capturing():
            out.copy_(made)

    return run


def tinygemm(problem: Int4GemmProblem, x: Tensor, tiny: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
    """The product [M, N] by ``torch._weight_int4pack_mm``, in memory that it allocates; tiny: ``to_tinygemm``."""
    packed, scales = tiny
    as_it_is = x.is_contiguous() and problem.alignment == 16
    made = torch.ops.aten._weight_int4pack_mm(
        x if as_it_is else x.clone(memory_format=torch.contiguous_format), packed, problem.group, scales
    )
    return made if bias is None else made.add_(bias)


def dequantized(problem: Int4GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that writes the product with the bf16 copy of the weights into ``out`` by ``torch.mm``."""
    if x.device.type == "cpu":
        return lambda: out.copy_(reference(problem, x, w))
    dense = w.dense
    if dense is None:
        raise InvalidProblemError("no bf16 copy of the weights is at hand; give Operands.dense, or has_bf16=False")
    return lambda: multiply(x, dense, w.bias, out)


def unpacked(problem: Int4GemmProblem, x: Tensor, w: Operands, out: Tensor) -> Callable[[], object]:
    """A call that dequantises the weights, for some 40 operations of PyTorch, and multiplies by ``torch.mm``."""
    if x.device.type == "cpu":
        return lambda: out.copy_(reference(problem, x, w))
    return lambda: multiply(x, dequantize(w.weight), w.bias, out)


ROUTINES = {"torch": vendor, "dequantized": dequantized, "unpacked": unpacked}
"""By kind of config, those that are not our kernels."""
