/*
 * aks in C and C++: load a folder that `aks export --bundle` wrote, select a config, launch its kernel.
 *
 * Link with libaks.so. It opens the CUDA driver (libcuda.so.1) at run time, and cuBLASLt if the process has
 * loaded it or the dynamic loader finds it; nothing else of CUDA is needed. All functions may be called from several
 * threads at once, aks_unload excepted.
 *
 *     aks_kernels *kernels;
 *     if (aks_load("bundles/gemm/h200", 0, &kernels) != AKS_OK) { puts(aks_message()); }
 *     int64_t call[] = {m, n, k, 0, 0, 1, x, w, out, k, k, n};    // bf16, w as [N, K], weights static
 *     int config;
 *     switch (aks_launch(kernels, call, 12, stream, &config)) { ... }
 */
#ifndef AKS_H
#define AKS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    AKS_OK = 0,
    AKS_NOT_LAUNCHED = 1,     /* nothing was enqueued: run `config`, a vendor's routine, yourself */
    AKS_ERROR_FILE = 2,       /* a file is missing, truncated, altered or malformed */
    AKS_ERROR_DEVICE = 3,     /* the kernels are for another GPU */
    AKS_ERROR_DRIVER = 4,     /* the driver is missing, older than the kernels need, or a call of it or of cuBLASLt failed */
    AKS_ERROR_ARGUMENT = 5,   /* a call has another number of values, or a null pointer */
    AKS_ERROR_MEMORY = 6      /* the host is out of memory */
};

#ifdef AKS_BUILDING
#define AKS_API __attribute__((visibility("default")))
#else
#define AKS_API
#endif

typedef struct aks_kernels aks_kernels;

/*
 * Load all kernels of `folder` for CUDA device `device` (its ordinal), in the device's primary context.
 * Files are checked against their hashes and every index in them against its range. Afterwards nothing is
 * compiled, loaded or allocated, except what a new stream and a new shape of cuBLASLt need (see aks_launch).
 */
AKS_API int aks_load(const char *folder, int device, aks_kernels **kernels);

/* Free everything. No launch may still be running. NULL is allowed. */
AKS_API void aks_unload(aks_kernels *kernels);

/*
 * Index of the config for a problem: `count` values, one for each parameter of the op in order, attributes
 * as formulas see them: a text as its index among the choices (tree.json), other values as they are.
 * Config 0 is the vendor's routine: the answer outside the training data's support, too.
 */
AKS_API int aks_select(const aks_kernels *kernels, const int64_t *problem, size_t count, int *config);

/*
 * Select and launch on `stream` (a CUstream of the device, 0 for the default one). A call has `count` values:
 * the parameters as above, without those that follow from addresses and strides (alignment), then the
 * operands in the order of kernels.json: addresses, and row strides in elements. For op gemm:
 *
 *     m, n, k, dtype (0 bf16, 1 fp16), w_layout (0 [N, K], 1 [K, N]), static_weights,
 *     x, w, out, x_row, w_row, out_row
 *
 * Rows must be contiguous, and addresses valid on the device. `config` is set in either case.
 *
 * Kernels that share memory between programs take it from the stream: 64 MiB, allocated when the stream is
 * first seen. While a stream is being captured nothing may be allocated; one set is kept in reserve for the
 * first stream that is captured before it ever launched. Without memory: AKS_NOT_LAUNCHED, config 0.
 *
 * Some configs are algorithms of cuBLASLt. A shape that is new to one costs a query of its heuristics, on the host
 * alone, at many times the cost of a launch; the last 4,096 shapes are kept. It may happen while a stream is being
 * captured. Without the library: AKS_NOT_LAUNCHED with that config; where it lacks the algorithm, with config 0.
 */
AKS_API int aks_launch(aks_kernels *kernels, const int64_t *call, size_t count, void *stream, int *config);

/*
 * All that aks_launch does for this call, but enqueues nothing: to ask cuBLASLt for shapes ahead, and to allocate a
 * stream's scratch memory before it is captured. Of addresses, only the alignment matters. AKS_OK: a launch of this
 * shape on this stream will find everything, but for the module that cuBLASLt loads at a kernel's first launch.
 */
AKS_API int aks_prepare(aks_kernels *kernels, const int64_t *call, size_t count, void *stream, int *config);

/* Values that aks_select and aks_launch take. */
AKS_API size_t aks_problem_count(const aks_kernels *kernels);
AKS_API size_t aks_call_count(const aks_kernels *kernels);

/* What the last call of this thread that failed has to say; "" if none has. */
AKS_API const char *aks_message(void);

#ifdef __cplusplus
}
#endif

#endif /* AKS_H */
