// Tensors as DLPack describes them, and the functions by which a library lends its own: no headers of PyTorch.
//
// Names, values and layouts are those of the public header dlpack.h (1.3); a test compares them with PyTorch's copy.
#pragma once

#include <cstdint>

namespace aks::dlpack {

inline constexpr const char *kCapsule = "dlpack_exchange_api";
inline constexpr uint32_t kMajorVersion = 1;
inline constexpr uint8_t kFloat = 2, kBfloat = 4;

// Whoever lent it owns what it points to. Strides are in elements.
struct Tensor {
    void *data;
    int32_t device_type, device_index;
    int32_t dimensions;
    uint8_t type_code, type_bits;
    uint16_t type_lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major, minor;
    ExchangeApi *previous;
    void (*unused[3])();
    // Of an object of the library; not 0, with an exception of Python, if it cannot be described.
    int (*lend)(void *object, Tensor *tensor);
    void (*current_stream)();
};

}  // namespace aks::dlpack
