#include "kernels.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "error.hpp"

namespace aks {

namespace {

std::string version_text(int cuda) { return std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10); }

}  // namespace

Kernels::Kernels(std::string_view table, std::string_view code, int device, const std::string &driver,
                 const std::vector<std::string> &cublaslt)
    : table_(table, code), number_(next_number()), driver_(cuda::Driver::open(driver)) {
    int version = 0, major = 0, minor = 0, sm_count = 0;
    driver_.check(driver_.cuInit(0), "cuInit");
    driver_.check(driver_.cuDriverGetVersion(&version), "cuDriverGetVersion");
    if (version < table_.cuda) {
        throw Error(AKS_ERROR_DRIVER, "the driver has CUDA " + version_text(version) + "; these kernels need " +
                                          version_text(table_.cuda) +
                                          " or newer: update the driver, or export with an older Triton");
    }
    // Drivers up to 13.1 mark maps of less than 128 KiB wrongly; Triton 3.7 and CUTLASS clear the bit.
    fix_maps_ = version <= 13010;
    driver_.check(driver_.cuDeviceGet(&device_, device), "cuDeviceGet");
    driver_.check(driver_.cuDeviceGetAttribute(&major, cuda::kCapabilityMajor, device_), "cuDeviceGetAttribute");
    driver_.check(driver_.cuDeviceGetAttribute(&minor, cuda::kCapabilityMinor, device_), "cuDeviceGetAttribute");
    driver_.check(driver_.cuDeviceGetAttribute(&sm_count, cuda::kMultiprocessorCount, device_), "cuDeviceGetAttribute");
    if (10 * major + minor != table_.capability || sm_count != table_.sm_count) {
        throw Error(AKS_ERROR_DEVICE, "the kernels are for " + table_.device + " (capability " +
                                          version_text(table_.capability * 100) + ", " +
                                          std::to_string(table_.sm_count) + " SMs); device " + std::to_string(device) +
                                          " has capability " + std::to_string(major) + "." + std::to_string(minor) +
                                          " and " + std::to_string(sm_count) +
                                          " SMs: export for it (aks export --bundle --device ...)");
    }
    driver_.check(driver_.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
    try {
        const cuda::Current current(driver_, context_);
        load_functions();
        if (table_.product) products_ = Products::open(cublaslt, driver_, *table_.product);
        const bool any = products_ || std::any_of(table_.configs.begin(), table_.configs.end(), [](const Config &config) {
                             return config.needs_scratch && config.has_kernel;
                         });
        // Of the default stream, and for the first that is captured before it ever launched.
        if (any) {
            publish({nullptr, allocate()});
            spare_ = allocate();
        }
    } catch (...) {
        release();
        throw;
    }
}

Kernels::~Kernels() { release(); }

void Kernels::release() noexcept {
    if (!context_) return;
    if (driver_.cuCtxPushCurrent(context_) == 0) {
        products_.reset();
        for (const Scratch &scratch : scratch_) {
            for (const cuda::Pointer buffer : scratch.buffers) driver_.cuMemFree(buffer);
        }
        for (const cuda::Pointer buffer : spare_) driver_.cuMemFree(buffer);
        for (const cuda::Module module : modules_) driver_.cuModuleUnload(module);
        cuda::Context popped;
        driver_.cuCtxPopCurrent(&popped);
    }
    driver_.cuDevicePrimaryCtxRelease(device_);
}

void Kernels::load_functions() {
    int most_shared = 0;
    driver_.check(driver_.cuDeviceGetAttribute(&most_shared, cuda::kSharedBytesPerBlock, device_), "cuDeviceGetAttribute");
    for (const std::string_view cubin : table_.cubins) {
        const std::vector<char> image(cubin.begin(), cubin.end());  // aligned as allocators do
        cuda::Module module = nullptr;
        driver_.check(driver_.cuModuleLoadData(&module, image.data()), "cuModuleLoadData");
        modules_.push_back(module);
    }
    for (const FunctionRow &row : table_.functions) {
        if (row.shared_bytes > static_cast<unsigned>(most_shared)) {
            throw Error(AKS_ERROR_DEVICE, row.name + " needs " + std::to_string(row.shared_bytes) +
                                              " bytes of shared memory; the GPU has " + std::to_string(most_shared));
        }
        if (!row.boxes.empty() && !driver_.cuTensorMapEncodeTiled) {
            throw Error(AKS_ERROR_DRIVER, "the driver has no cuTensorMapEncodeTiled; update it to CUDA 12 or newer");
        }
        cuda::Function function = nullptr;
        driver_.check(driver_.cuModuleGetFunction(&function, modules_[static_cast<size_t>(row.cubin)], row.name.c_str()),
                      "cuModuleGetFunction");
        if (row.shared_bytes > 48 * 1024) {
            driver_.check(driver_.cuFuncSetCacheConfig(function, cuda::kPreferShared), "cuFuncSetCacheConfig");
            driver_.check(driver_.cuFuncSetAttribute(function, cuda::kMaxDynamicSharedBytes,
                                                     static_cast<int>(row.shared_bytes)),
                          "cuFuncSetAttribute");
        }
        // By default the driver would load it at its first launch, while serving.
        if (driver_.cuFuncLoad) driver_.check(driver_.cuFuncLoad(function), "cuFuncLoad");
        functions_.push_back(function);
    }
    table_.cubins.clear();  // the code is the caller's
}

bool Kernels::launch(std::span<const int64_t> call, cuda::Stream stream, int &chosen) {
    Prepared prepared;
    prepared.counted = true;
    if (!prepare(call, stream, chosen, prepared)) return false;
    if (!enqueue(prepared)) return leave(without_plan_, chosen);
    launches_.fetch_add(1, std::memory_order_relaxed);
    return true;
}

bool Kernels::prepare(std::span<const int64_t> call, cuda::Stream stream, int &chosen) {
    Prepared prepared;
    return prepare(call, stream, chosen, prepared);
}

std::vector<int64_t> Kernels::time(std::span<const int64_t> call, cuda::Stream stream, size_t repeats,
                                   bool driver_alone) {
    using Clock = std::chrono::steady_clock;
    constexpr size_t kQueue = 64;  // the driver's has room for a thousand
    Prepared prepared;
    int chosen = 0;
    if (!prepare(call, stream, chosen, prepared)) {
        throw Error(AKS_ERROR_ARGUMENT, "config " + std::to_string(chosen) + " is for the caller; time one with a kernel");
    }
    std::vector<int64_t> times;
    times.reserve(repeats);
    for (size_t at = 0; at < repeats; ++at) {
        if (at % kQueue == 0) driver_.check(driver_.cuStreamSynchronize(stream), "cuStreamSynchronize");
        const Clock::time_point start = Clock::now();
        if (driver_alone) enqueue(prepared);
        else launch(call, stream, chosen);
        times.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
    }
    return times;
}

void Kernels::expand(std::span<const int64_t> call, int64_t *variables) const {
    check_count(call.size(), table_.call_values, "a call");
    const size_t parameters = table_.parameters.size(), operands = table_.operands.size();
    size_t next = 0;
    for (size_t at = 0; at < parameters; ++at) {
        if (table_.parameters[at].derived < 0) variables[at] = call[next++];
    }
    std::copy(call.begin() + static_cast<std::ptrdiff_t>(next), call.end(), variables + parameters);
    std::fill_n(variables + parameters + operands, table_.scratch.size(), 0);
    for (size_t at = 0; at < parameters; ++at) {
        const int derived = table_.parameters[at].derived;
        if (derived >= 0) variables[at] = table_.formulas[static_cast<size_t>(derived)](variables);
    }
}

bool Kernels::is_ours(std::span<const int64_t> call) {
    int64_t variables[kMaxVariables];
    expand(call, variables);
    const Answer &known = answer(variables);
    if (known.algorithm < 0) return known.kernel;
    if (known.choice.config != kVendor || plans_ahead_) return true;
    return products_->known(products_->shape_of(table_.formulas, variables)) != nullptr;
}

bool Kernels::prepare(std::span<const int64_t> call, cuda::Stream stream, int &chosen, Prepared &prepared) {
    int64_t variables[kMaxVariables];
    expand(call, variables);
    const Answer &known = answer(variables);
    if (prepared.counted && (known.choice.rank || known.choice.reason >= 0)) {
        if (known.choice.rank) illegal_.fetch_add(1, std::memory_order_relaxed);
        count(known.choice, variables);
    }
    chosen = known.choice.config;
    const Config &config = table_.configs[static_cast<size_t>(chosen)];
    const bool by_product = known.algorithm >= 0;
    if (!config.has_kernel && !by_product) return false;
    // A bundle that aks exported has one for every problem inside the support.
    if (!known.kernel && !by_product) return leave(without_kernel_, chosen);
    cuda::Context now = nullptr;
    driver_.check(driver_.cuCtxGetCurrent(&now), "cuCtxGetCurrent");
    if (now != context_) {
        // Another context of this device is the caller's choice (a green context's stream needs its own).
        cuda::Device device = -1;
        if (!now || driver_.cuCtxGetDevice(&device) != 0 || device != device_) prepared.current.emplace(driver_, context_);
    }
    if (by_product) {
        const Shape shape = products_->shape_of(table_.formulas, variables);
        // Of the vendor's routine at a new shape the caller's library knows sooner than it takes to ask.
        const bool asks = chosen != kVendor || !prepared.counted || plans_ahead_;
        prepared.plan = asks ? products_->find(shape) : products_->known(shape);
        if (!prepared.plan) return false;
    }
    int64_t *const buffers = variables + table_.parameters.size() + table_.operands.size();
    if ((by_product || config.needs_scratch) && !add_scratch(stream, buffers)) return leave(without_scratch_, chosen);
    if (by_product) {
        return fill_product(known.algorithm, variables, stream, prepared) || leave(without_plan_, chosen);
    }
    fill(known, variables, stream, prepared);
    return true;
}

bool Kernels::leave(std::atomic<uint64_t> &count, int &chosen) noexcept {
    count.fetch_add(1, std::memory_order_relaxed);
    chosen = kVendor;
    return false;
}

bool Kernels::add_scratch(cuda::Stream stream, int64_t *buffers) {
    const auto find = [&] {
        // What is published never changes again, so a stream that is known needs no lock.
        const auto end = scratch_.begin() + scratch_count_.load(std::memory_order_acquire);
        const auto found = std::find_if(scratch_.begin(), end, [=](const Scratch &one) { return one.stream == stream; });
        if (found != end) std::copy(found->buffers.begin(), found->buffers.end(), buffers);
        return found != end;
    };
    if (find()) return true;
    const std::scoped_lock lock(mutex_);
    if (find()) return true;  // another thread was first
    if (scratch_count_ >= kMaxStreams) return false;
    int capturing = 0;
    driver_.check(driver_.cuStreamIsCapturing(stream, &capturing), "cuStreamIsCapturing");
    if (capturing) {
        if (spare_.empty()) return false;
        publish({stream, std::exchange(spare_, {})});
    } else {
        publish({stream, allocate()});
        if (spare_.empty()) spare_ = allocate();
    }
    return find();
}

void Kernels::publish(Scratch scratch) {
    const size_t count = scratch_count_.load(std::memory_order_relaxed);
    scratch_[count] = std::move(scratch);
    scratch_count_.store(count + 1, std::memory_order_release);
}

std::vector<cuda::Pointer> Kernels::allocate() {
    const cuda::Relaxed relaxed(driver_);
    std::vector<cuda::Pointer> buffers;
    cuda::Stream stream = nullptr;
    cuda::Result result = driver_.cuStreamCreate(&stream, cuda::kNonBlocking);
    for (const Buffer &buffer : table_.scratch) {
        cuda::Pointer pointer = 0;
        if (result == 0) result = driver_.cuMemAlloc(&pointer, buffer.bytes);
        if (result == 0) buffers.push_back(pointer);
        if (result == 0) result = driver_.cuMemsetD8Async(pointer, 0, buffer.bytes, stream);
    }
    if (result == 0) result = driver_.cuStreamSynchronize(stream);  // the zeros are there for every stream
    if (stream) driver_.cuStreamDestroy(stream);
    if (result != 0) {
        for (const cuda::Pointer pointer : buffers) driver_.cuMemFree(pointer);
        driver_.check(result, "allocating scratch memory");
    }
    allocations_.fetch_add(buffers.size(), std::memory_order_relaxed);
    return buffers;
}

// Maps of this thread's last launches. A map follows from its key alone, so one that was made is right for good;
// weights, and the buffers of activations too, come again at every step. Of a launch, each map has rows of its own.
struct MapCache {
    static constexpr size_t kRows = 256;
    struct Key {
        uint64_t address, rows, columns, row_bytes, box;
        bool operator==(const Key &) const = default;
    };
    struct Row {
        Key key{};
        cuda::TensorMap map;
    };
    Row rows[kMaxMaps][kRows];

    Row &row(size_t place, const Key &key) {
        uint64_t hash = key.address >> 4;
        for (const uint64_t word : {key.rows, key.columns, key.row_bytes, key.box}) hash = hash * 0x9e3779b97f4a7c15 + word;
        return rows[place][(hash * 0x9e3779b97f4a7c15) >> 56];
    }
};
static_assert(MapCache::kRows == 1 << (64 - 56));
thread_local MapCache map_cache;

cuda::TensorMap *Kernels::encode(const Argument &argument, const Box &box, size_t place, const MapSides &map,
                                 const int64_t *variables) const {
    const auto value = [&](int formula) {
        return static_cast<uint64_t>(table_.formulas[static_cast<size_t>(formula)](variables));
    };
    // Bit 63 keeps the key from being that of an empty row; the driver's version decides how a map is fixed.
    const uint64_t box_key = uint64_t{1} << 63 | uint64_t{fix_maps_} << 62 | uint64_t{box.rows} << 40 |
                             uint64_t{box.columns} << 20 | uint64_t{box.element_bytes} << 12 |
                             static_cast<uint64_t>(box.element_type) << 6 | static_cast<uint64_t>(box.swizzle);
    const MapCache::Key key{value(argument.formula), map.rows, map.columns,
                            value(argument.row_stride) * box.element_bytes, box_key};
    MapCache::Row &row = map_cache.row(place, key);
    if (row.key == key) return &row.map;
    row.key = {};
    const uint64_t shape[2] = {key.columns, key.rows}, strides[1] = {key.row_bytes};
    const uint32_t sides[2] = {box.columns, box.rows}, element_strides[2] = {1, 1};
    driver_.check(driver_.cuTensorMapEncodeTiled(&row.map, box.element_type, 2, reinterpret_cast<void *>(key.address),
                                                 shape, strides, sides, element_strides, 0, box.swizzle,
                                                 cuda::kL2Promotion128, 0),
                  "cuTensorMapEncodeTiled");
    if (fix_maps_ && (key.columns - 1) * box.element_bytes + (key.rows - 1) * key.row_bytes + 1 < 128 * 1024) {
        row.map.opaque[1] &= ~(uint64_t{1} << 21);
    }
    row.key = key;
    return &row.map;
}

void Kernels::fill(const Answer &known, const int64_t *variables, cuda::Stream stream, Prepared &prepared) const {
    const FunctionRow &row = table_.functions[static_cast<size_t>(known.kernel->function)];
    const std::vector<Argument> &signature = table_.signatures[static_cast<size_t>(row.signature)];
    size_t map = 0;
    for (size_t at = 0; at < signature.size(); ++at) {
        const Argument &argument = signature[at];
        if (argument.is_map) {
            prepared.arguments[at] = encode(argument, row.boxes[map], map, known.sides[map], variables);
            ++map;
        } else {
            // The driver reads the low 4 bytes of an argument that has 4: little-endian, as all CUDA hosts are.
            prepared.values[at] = table_.formulas[static_cast<size_t>(argument.formula)](variables);
            prepared.arguments[at] = &prepared.values[at];
        }
    }
    if (known.programs < 1 || known.programs > INT32_MAX) {
        throw Error(AKS_ERROR_ARGUMENT,
                    "a launch of " + std::to_string(known.programs) + " programs; a grid has 1 to 2147483647");
    }
    prepared.early_start.id = cuda::kEarlyStart;
    prepared.early_start.value.number = 1;
    prepared.config = {static_cast<unsigned>(known.programs), 1, 1, 32 * row.num_warps, 1, 1, row.shared_bytes, stream,
                       &prepared.early_start, row.early_start ? 1u : 0u};
    prepared.function = functions_[static_cast<size_t>(known.kernel->function)];
}

bool Kernels::fill_product(int algorithm, const int64_t *variables, cuda::Stream stream, Prepared &prepared) const {
    const Product &product = *table_.product;
    if (prepared.plan->algorithms.size() <= static_cast<size_t>(algorithm)) return false;
    const auto address = [&](const Matrix &matrix) {
        return static_cast<cuda::Pointer>(table_.formulas[static_cast<size_t>(matrix.pointer)](variables));
    };
    prepared.algorithm = algorithm;
    prepared.a = address(product.a);
    prepared.b = address(product.b);
    prepared.d = address(product.d);
    const size_t buffers = table_.parameters.size() + table_.operands.size();
    prepared.workspace = static_cast<cuda::Pointer>(variables[buffers + product.workspace]);
    prepared.config.stream = stream;
    return true;
}

bool Kernels::enqueue(Prepared &prepared) const {
    if (prepared.plan) {
        return products_->run(*prepared.plan, prepared.algorithm, prepared.a, prepared.b, prepared.d, prepared.workspace,
                              prepared.config.stream);
    }
    driver_.check(driver_.cuLaunchKernelEx(&prepared.config, prepared.function, prepared.arguments, nullptr),
                  "cuLaunchKernelEx");
    return true;
}

Counts Kernels::counts() const {
    return {modules_.size(),  allocations_, launches_, illegal_, without_kernel_, without_scratch_,
            products_ ? products_->queries() : 0, without_plan_};
}

}  // namespace aks
