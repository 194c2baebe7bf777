// Kernels that are loaded on a device: chooses and launches. What aks.h and the Python module share.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "driver.hpp"
#include "table.hpp"

namespace aks {

inline constexpr const char *kDriver = "libcuda.so.1";
inline constexpr size_t kMaxStreams = 64;  // that get scratch memory

// What happened since loading; the first two never change after it.
struct Counts {
    uint64_t modules = 0, allocations = 0, launches = 0, illegal_favourites = 0, without_kernel = 0,
             without_scratch = 0;
};

class Kernels {
  public:
    // Texts of kernels.json and kernels.bin, whose hashes the caller has checked; the code is not needed afterwards.
    // Throws Error.
    Kernels(std::string_view table, std::string_view code, int device, const std::string &driver = kDriver);
    // The same from a folder, with all hashes checked. Throws Error.
    static std::unique_ptr<Kernels> load(const std::string &folder, int device, const std::string &driver = kDriver);
    ~Kernels();
    Kernels(const Kernels &) = delete;
    Kernels &operator=(const Kernels &) = delete;

    // Index of the config for a problem: a value for each parameter.
    int select(std::span<const int64_t> problem) const;
    // Enqueues the chosen config's kernel; false if it has none, or none may run now: then config is for the caller.
    bool launch(std::span<const int64_t> call, cuda::Stream stream, int &config);
    // Host nanoseconds of each of so many launches of one call: whole, or of the driver's call alone. Throws Error if
    // the call is for the caller. The stream is emptied now and then, so that no launch waits for room in its queue.
    std::vector<int64_t> time(std::span<const int64_t> call, cuda::Stream stream, size_t repeats, bool driver_alone);

    const Table &table() const { return table_; }
    Counts counts() const;

  private:
    struct Scratch {
        cuda::Stream stream;
        std::vector<cuda::Pointer> buffers;
    };

    // A launch with everything that the driver reads, but for the maps, which the thread keeps. Its arguments point
    // into it: it is neither copied nor moved.
    struct Prepared {
        Prepared() = default;
        Prepared(const Prepared &) = delete;
        Prepared &operator=(const Prepared &) = delete;
        size_t rank = 0;
        cuda::Function function = nullptr;
        cuda::LaunchConfig config{};
        cuda::LaunchAttribute early_start{};
        int64_t values[kMaxArguments];
        void *arguments[kMaxArguments];
        std::optional<cuda::Current> current;
    };

    bool prepare(std::span<const int64_t> call, cuda::Stream stream, int &config, Prepared &prepared);
    int choose(const int64_t *variables, size_t &rank) const noexcept;
    const Kernel *find(const Config &config, const int64_t *variables) const noexcept;
    bool add_scratch(cuda::Stream stream, int64_t *buffers);
    std::vector<cuda::Pointer> allocate();
    void fill(const Kernel &kernel, const Config &config, const int64_t *variables, cuda::Stream stream,
              Prepared &prepared) const;
    void enqueue(Prepared &prepared) const;
    // A map of this thread, valid until its next launch.
    cuda::TensorMap *encode(const Argument &argument, const Box &box, size_t place, const int64_t *variables) const;
    void load_functions();
    void release() noexcept;

    Table table_;
    const cuda::Driver &driver_;
    cuda::Device device_ = 0;
    cuda::Context context_ = nullptr;
    bool fix_maps_ = false;
    std::vector<cuda::Module> modules_;
    std::vector<cuda::Function> functions_;
    std::mutex mutex_;  // of scratch
    std::vector<Scratch> scratch_;
    std::vector<cuda::Pointer> spare_;
    std::atomic<uint64_t> allocations_{0}, launches_{0}, illegal_{0}, without_kernel_{0}, without_scratch_{0};
};

}  // namespace aks
