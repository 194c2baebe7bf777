// The part of cuBLASLt that is used here, opened at run time like the driver.
//
// Names, values and layouts are those of NVIDIA's public header cublasLt.h (13.1), as in aks/ops/gemm/cublaslt.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "driver.hpp"

namespace aks::cublaslt {

using Status = int;
using Object = void *;  // a handle, description, layout or preference: opaque

struct Algorithm {
    uint64_t data[8];
};

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace_bytes;
    Status state;
    float waves;
    int reserved[4];
};
static_assert(sizeof(HeuristicResult) == 96 && offsetof(HeuristicResult, state) == 72);

inline constexpr Status kNotSupported = 15;                // CUBLAS_STATUS_NOT_SUPPORTED
inline constexpr int kCompute32F = 68, kReal32F = 0;       // CUBLAS_COMPUTE_32F, CUDA_R_32F
inline constexpr int kTransposeA = 3, kTransposeB = 4;     // CUBLASLT_MATMUL_DESC_TRANSA, _TRANSB
inline constexpr int kMaxWorkspaceBytes = 1;               // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
inline constexpr int kMinAlignmentBytes[] = {5, 6, 7, 8};  // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, _B, _C, _D

class Library {
  public:
    // The first of these that the process has loaded, else the first that can be opened; null if none can.
    // Kept for good: its kernels are loaded on GPUs.
    static const Library *open(const std::vector<std::string> &paths);

    // Throws Error (AKS_ERROR_DRIVER) that names `call` unless status is success.
    static void check(Status status, const char *call);

    std::string path;
    Status (*cublasLtCreate)(Object *);
    Status (*cublasLtDestroy)(Object);
    Status (*cublasLtMatmulDescCreate)(Object *, int compute_type, int scale_type);
    Status (*cublasLtMatmulDescSetAttribute)(Object, int, const void *, size_t);
    Status (*cublasLtMatmulDescDestroy)(Object);
    Status (*cublasLtMatrixLayoutCreate)(Object *, int type, uint64_t rows, uint64_t columns, int64_t stride);
    Status (*cublasLtMatrixLayoutDestroy)(Object);
    Status (*cublasLtMatmulPreferenceCreate)(Object *);
    Status (*cublasLtMatmulPreferenceSetAttribute)(Object, int, const void *, size_t);
    Status (*cublasLtMatmulPreferenceDestroy)(Object);
    Status (*cublasLtMatmulAlgoGetHeuristic)(Object handle, Object operation, Object a, Object b, Object c, Object d,
                                             Object preference, int wanted, HeuristicResult *results, int *found);
    Status (*cublasLtMatmul)(Object handle, Object operation, const void *alpha, const void *a, Object a_layout,
                             const void *b, Object b_layout, const void *beta, const void *c, Object c_layout, void *d,
                             Object d_layout, const Algorithm *algorithm, void *workspace, size_t workspace_bytes,
                             cuda::Stream stream);

  private:
    bool find(void *library);
};

}  // namespace aks::cublaslt
