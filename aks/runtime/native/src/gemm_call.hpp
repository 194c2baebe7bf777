// From tensors to the call of gemm that they pose: what aks/ops/gemm/call.py does, at a twentieth of the cost.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "dlpack.hpp"

namespace aks {

struct GemmCall {
    int64_t m, n, k, dtype, w_layout, static_weights, x_pointer, w_pointer, out_pointer, x_row, w_row, out_row;
};

inline constexpr size_t kGemmValues = sizeof(GemmCall) / sizeof(int64_t);

namespace gemm {

struct Rows {
    int64_t count, stride;  // a stride of -1: they are not rows of contiguous elements
};

inline bool is_contiguous(const dlpack::Tensor &tensor) noexcept {
    int64_t step = 1;
    for (int32_t at = tensor.dimensions; at-- > 0; step *= tensor.shape[at]) {
        if (tensor.shape[at] != 1 && tensor.strides[at] != step) return false;
    }
    return true;
}

inline Rows rows_of(const dlpack::Tensor &tensor) noexcept {
    const int32_t last = tensor.dimensions - 1;
    if (last == 1) return {tensor.shape[0], tensor.strides[1] == 1 ? tensor.strides[0] : -1};
    int64_t count = 1;
    for (int32_t at = 0; at < last; ++at) count *= tensor.shape[at];
    return {count, is_contiguous(tensor) ? tensor.shape[last] : -1};
}

inline int64_t pointer_of(const dlpack::Tensor &tensor) noexcept {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset);
}

// The place of the elements' type in GemmProblem.CHOICES; -1 if it is none of them.
inline int64_t dtype_of(const dlpack::Tensor &tensor) noexcept {
    if (tensor.type_bits != 16 || tensor.type_lanes != 1) return -1;
    return tensor.type_code == dlpack::kBfloat ? 0 : tensor.type_code == dlpack::kFloat ? 1 : -1;
}

inline bool is_like(const dlpack::Tensor &one, const dlpack::Tensor &other) noexcept {
    return one.device_type == other.device_type && one.device_index == other.device_index &&
           one.type_code == other.type_code && one.type_bits == other.type_bits && one.type_lanes == other.type_lanes;
}

// The address and row stride of out. False if it is not a place for this product.
inline bool put_out(GemmCall &call, const dlpack::Tensor &x, const dlpack::Tensor &out) noexcept {
    const int32_t last = x.dimensions - 1;
    if (!is_like(out, x) || out.dimensions != x.dimensions) return false;
    if (!std::equal(x.shape, x.shape + last, out.shape) || out.shape[last] != call.n) return false;
    call.out_pointer = pointer_of(out);
    call.out_row = rows_of(out).stride;
    return call.out_row >= call.n;
}

// x [..., K] and w [N, K], as it is or a transposed view; out as if it had yet to be made. False if our kernels do
// not take them.
inline bool pose(GemmCall &call, const dlpack::Tensor &x, const dlpack::Tensor &w, bool static_weights) noexcept {
    const int64_t dtype = dtype_of(x);
    if (dtype < 0 || !is_like(w, x) || x.dimensions < 1 || w.dimensions != 2) return false;
    const auto [m, x_row] = rows_of(x);
    const int64_t n = w.shape[0], k = w.shape[1], outer = w.strides[0], inner = w.strides[1];
    if (m == 0 || n == 0 || k == 0 || x.shape[x.dimensions - 1] != k || x_row < k) return false;
    const bool is_nk = inner == 1 && outer >= k;
    if (!is_nk && !(outer == 1 && inner >= n)) return false;
    call = {m,     n,          k, dtype, !is_nk, static_weights, pointer_of(x), pointer_of(w), 0,
            x_row, is_nk ? outer : inner, n};
    return true;
}

}  // namespace gemm

}  // namespace aks
