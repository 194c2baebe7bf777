// Kernels that are loaded on a device: chooses and launches. What aks.h and the Python module share.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "driver.hpp"
#include "products.hpp"
#include "table.hpp"

namespace aks {

inline constexpr const char *kDriver = "libcuda.so.1";
// cuBLASLt by the names that the dynamic loader knows, newest first.
inline const std::vector<std::string> kCublasLt{"libcublasLt.so.13", "libcublasLt.so.12"};
inline constexpr size_t kMaxStreams = 64;  // that get scratch memory
inline constexpr int kVendor = 0;          // the config that is the vendor's routine

// What happened since loading; the first two never change after it.
struct Counts {
    uint64_t modules = 0, allocations = 0, launches = 0, illegal_favourites = 0, without_kernel = 0,
             without_scratch = 0, plans = 0, without_plan = 0;
};

// What launches were answered that the tree has no good answer for, since it was taken last: how often, for each
// parameter that was the first outside the support, for leaves that abstain, and for favourites that were not legal;
// and the first problems of the former two kinds.
struct Misses {
    static constexpr size_t kMaxProblems = 256;  // MAX_MISSED of aks/runtime/predictor.py
    std::vector<uint64_t> reasons;
    std::map<std::vector<int64_t>, uint64_t> problems;
};

// What the tree says of a problem.
struct Choice {
    int config;
    size_t rank;  // in its leaf: 0 is the favourite
    int reason;   // why this is no leaf's answer: place in Misses::reasons; -1 if it is one
};

struct MapSides {
    uint64_t rows, columns;
};

// All of a launch that follows from its problem alone.
struct Answer {
    Choice choice;
    const Kernel *kernel;  // null if the config has none, or the bundle not the one for this problem
    int algorithm;         // of the product that it is; -1 if it is none
    int64_t programs;
    MapSides sides[kMaxMaps];
};

class Kernels {
  public:
    // Texts of kernels.json and kernels.bin, whose hashes the caller has checked; the code is not needed afterwards.
    // cuBLASLt is the first of these paths that can be had; where there is none, its configs are the caller's.
    // Throws Error.
    Kernels(std::string_view table, std::string_view code, int device, const std::string &driver = kDriver,
            const std::vector<std::string> &cublaslt = kCublasLt);
    // The same from a folder, with all hashes checked. Throws Error.
    static std::unique_ptr<Kernels> load(const std::string &folder, int device, const std::string &driver = kDriver);
    ~Kernels();
    Kernels(const Kernels &) = delete;
    Kernels &operator=(const Kernels &) = delete;

    // Index of the config for a problem: a value for each parameter.
    int select(std::span<const int64_t> problem) const;
    // Enqueues the chosen config; false if it has no kernel, or none may run now: then config is for the caller.
    bool launch(std::span<const int64_t> call, cuda::Stream stream, int &config);
    // Whether launch would enqueue such a call, so far as its problem tells. Of addresses only the alignment matters.
    bool is_ours(std::span<const int64_t> call);
    // All that launch does for this call, but enqueues nothing: afterwards a launch of its shape on its stream asks
    // cuBLASLt for nothing and allocates nothing. Of the operands' addresses only the alignment matters.
    bool prepare(std::span<const int64_t> call, cuda::Stream stream, int &config);
    // Host nanoseconds of each of so many launches of one call: whole, or of the driver's call alone. Throws Error if
    // the call is for the caller. The stream is emptied now and then, so that no launch waits for room in its queue.
    std::vector<int64_t> time(std::span<const int64_t> call, cuda::Stream stream, size_t repeats, bool driver_alone);

    // While it is set, launches ask cuBLASLt for the vendor's routine at shapes that are new, as prepare does.
    void plan_ahead(bool on) noexcept { plans_ahead_ = on; }
    bool plans_ahead() const noexcept { return plans_ahead_; }

    const Table &table() const { return table_; }
    Counts counts() const;
    // Misses since the last time; they are forgotten here.
    Misses take_misses();
    // Of the cuBLASLt that is used; empty if none is.
    std::string cublaslt() const { return products_ ? products_->path() : ""; }

  private:
    struct Scratch {
        cuda::Stream stream;
        std::vector<cuda::Pointer> buffers;
    };

    // A launch with everything that the driver reads, but for the maps, which the thread keeps. Its arguments point
    // into it: it is neither copied nor moved. Or, where there is a plan, a product.
    struct Prepared {
        Prepared() = default;
        Prepared(const Prepared &) = delete;
        Prepared &operator=(const Prepared &) = delete;
        bool counted = false;  // a launch that is served: what the tree did not know of it counts
        cuda::Function function = nullptr;
        cuda::LaunchConfig config{};
        cuda::LaunchAttribute early_start{};
        int64_t values[kMaxArguments];
        void *arguments[kMaxArguments];
        std::shared_ptr<const Plan> plan;
        int algorithm = -1;
        cuda::Pointer a = 0, b = 0, d = 0, workspace = 0;
        std::optional<cuda::Current> current;
    };

    bool prepare(std::span<const int64_t> call, cuda::Stream stream, int &config, Prepared &prepared);
    // A call's values, and what is derived of them; scratch memory is 0.
    void expand(std::span<const int64_t> call, int64_t *variables) const;
    static void check_count(size_t got, size_t wanted, const char *what);
    static uint64_t next_number();
    // Counts a call that is left to the caller, who runs the vendor's routine: false.
    static bool leave(std::atomic<uint64_t> &count, int &config) noexcept;
    Choice choose(const int64_t *variables) const noexcept;
    void count(const Choice &choice, const int64_t *variables);
    // The answer to a problem, worked out if it is new to this thread; valid until the thread's next call.
    const Answer &answer(const int64_t *variables) const noexcept;
    Answer work_out(const int64_t *variables) const noexcept;
    const Kernel *find(const Config &config, const int64_t *variables) const noexcept;
    bool add_scratch(cuda::Stream stream, int64_t *buffers);
    void publish(Scratch scratch);
    std::vector<cuda::Pointer> allocate();
    void fill(const Answer &known, const int64_t *variables, cuda::Stream stream, Prepared &prepared) const;
    bool fill_product(int algorithm, const int64_t *variables, cuda::Stream stream, Prepared &prepared) const;
    // False if cuBLASLt does not support a product after all.
    bool enqueue(Prepared &prepared) const;
    // A map of this thread, valid until its next launch.
    cuda::TensorMap *encode(const Argument &argument, const Box &box, size_t place, const MapSides &map,
                            const int64_t *variables) const;
    void load_functions();
    void release() noexcept;

    Table table_;
    const uint64_t number_;  // of these kernels, among all that the process ever had
    const cuda::Driver &driver_;
    cuda::Device device_ = 0;
    cuda::Context context_ = nullptr;
    bool fix_maps_ = false;
    std::vector<cuda::Module> modules_;
    std::vector<cuda::Function> functions_;
    std::mutex mutex_;  // held to add to scratch_, not to read it
    std::array<Scratch, kMaxStreams> scratch_;
    std::atomic<size_t> scratch_count_{0};
    std::vector<cuda::Pointer> spare_;
    std::unique_ptr<Products> products_;
    std::atomic<bool> plans_ahead_{false};
    std::mutex misses_mutex_;
    Misses misses_;
    std::atomic<uint64_t> allocations_{0}, launches_{0}, illegal_{0}, without_kernel_{0}, without_scratch_{0},
        without_plan_{0};
};

}  // namespace aks
