// The part of the CUDA driver that is used here, opened at run time: building needs no CUDA headers.
//
// Names, values and layouts are those of NVIDIA's public header cuda.h (12.8); a test compares them with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace aks::cuda {

using Result = int;
using Device = int;
using Pointer = unsigned long long;
struct ContextTag;
struct ModuleTag;
struct FunctionTag;
struct StreamTag;
using Context = ContextTag *;
using Module = ModuleTag *;
using Function = FunctionTag *;
using Stream = StreamTag *;

struct alignas(128) TensorMap {
    uint64_t opaque[16];
};

struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int number;
    } value;
};

struct LaunchConfig {
    unsigned grid_x, grid_y, grid_z;
    unsigned block_x, block_y, block_z;
    unsigned shared_bytes;
    Stream stream;
    LaunchAttribute *attributes;
    unsigned num_attributes;
};

inline constexpr int kEarlyStart = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
inline constexpr int kMultiprocessorCount = 16, kCapabilityMajor = 75, kCapabilityMinor = 76;
inline constexpr int kSharedBytesPerBlock = 97;   // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
inline constexpr int kMaxDynamicSharedBytes = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
inline constexpr int kPreferShared = 1;           // CU_FUNC_CACHE_PREFER_SHARED
inline constexpr int kL2Promotion128 = 2;         // CU_TENSOR_MAP_L2_PROMOTION_L2_128B
inline constexpr unsigned kNonBlocking = 1;       // CU_STREAM_NON_BLOCKING
inline constexpr int kCaptureRelaxed = 2;         // CU_STREAM_CAPTURE_MODE_RELAXED

class Driver {
  public:
    // The driver in `path`, by default libcuda.so.1; opened once a process. Throws Error (AKS_ERROR_DRIVER).
    static const Driver &open(const std::string &path);

    // Throws Error (AKS_ERROR_DRIVER) that names `call` unless result is success.
    void check(Result result, const char *call) const;

    Result (*cuInit)(unsigned);
    Result (*cuDriverGetVersion)(int *);
    Result (*cuGetErrorString)(Result, const char **);
    Result (*cuDeviceGet)(Device *, int);
    Result (*cuDeviceGetAttribute)(int *, int, Device);
    Result (*cuDevicePrimaryCtxRetain)(Context *, Device);
    Result (*cuDevicePrimaryCtxRelease)(Device);
    Result (*cuCtxGetCurrent)(Context *);
    Result (*cuCtxGetDevice)(Device *);
    Result (*cuCtxPushCurrent)(Context);
    Result (*cuCtxPopCurrent)(Context *);
    Result (*cuModuleLoadData)(Module *, const void *);
    Result (*cuModuleUnload)(Module);
    Result (*cuModuleGetFunction)(Function *, Module, const char *);
    Result (*cuFuncSetAttribute)(Function, int, int);
    Result (*cuFuncSetCacheConfig)(Function, int);
    Result (*cuFuncLoad)(Function);  // null before CUDA 12.4
    Result (*cuMemAlloc)(Pointer *, size_t);
    Result (*cuMemFree)(Pointer);
    Result (*cuMemsetD8Async)(Pointer, unsigned char, size_t, Stream);
    Result (*cuStreamCreate)(Stream *, unsigned);
    Result (*cuStreamDestroy)(Stream);
    Result (*cuStreamSynchronize)(Stream);
    Result (*cuStreamIsCapturing)(Stream, int *);
    Result (*cuThreadExchangeStreamCaptureMode)(int *);
    Result (*cuTensorMapEncodeTiled)(TensorMap *, int type, uint32_t rank, void *address, const uint64_t *shape,
                                     const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides,
                                     int interleave, int swizzle, int l2_promotion, int fill);  // null before 12.0
    Result (*cuLaunchKernelEx)(const LaunchConfig *, Function, void **, void **);

  private:
    explicit Driver(const std::string &path);
};

// Makes a context current while it lives, and the one before it afterwards. Throws Error (AKS_ERROR_DRIVER).
class Current {
  public:
    Current(const Driver &driver, Context context) : driver_(driver) {
        driver_.check(driver_.cuCtxPushCurrent(context), "cuCtxPushCurrent");
    }
    ~Current() {
        Context popped;
        driver_.cuCtxPopCurrent(&popped);
    }
    Current(const Current &) = delete;
    Current &operator=(const Current &) = delete;

  private:
    const Driver &driver_;
};

// This thread may allocate while it lives, though a thread, perhaps this one, is capturing a stream: by default that
// forbids it to all. Throws Error (AKS_ERROR_DRIVER).
class Relaxed {
  public:
    explicit Relaxed(const Driver &driver) : driver_(driver) {
        driver_.check(driver_.cuThreadExchangeStreamCaptureMode(&mode_), "cuThreadExchangeStreamCaptureMode");
    }
    ~Relaxed() { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
    Relaxed(const Relaxed &) = delete;
    Relaxed &operator=(const Relaxed &) = delete;

  private:
    const Driver &driver_;
    int mode_ = kCaptureRelaxed;
};

}  // namespace aks::cuda
