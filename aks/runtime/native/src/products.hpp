// Matrix products that cuBLASLt runs, each with an entry of its own ranking of algorithms.
//
// Asking for that ranking takes many times as long as a launch, so the answer is kept for each shape. What is asked
// is exactly what aks/ops/gemm/cublaslt.py asks: trees were trained on what its entries are.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cublaslt.hpp"
#include "table.hpp"

namespace aks {

// All that a ranking depends on: of a, b and d rows, columns and stride (column-major), whether a is transposed, and
// the type of the elements.
using Shape = std::array<int64_t, 11>;

// A shape's descriptions, which are only read, and its algorithms, best first.
struct Plan {
    struct Destroy {
        cublaslt::Status (*function)(cublaslt::Object);
        void operator()(cublaslt::Object object) const { function(object); }
    };
    using Owned = std::unique_ptr<void, Destroy>;

    Owned operation, a, b, d;
    std::vector<cublaslt::Algorithm> algorithms;
    mutable std::atomic<bool> launched{false};
};

class Products {
  public:
    static constexpr size_t kShards = 16, kPlansPerShard = 256;  // a server sees ever new shapes

    // With a handle of the current context; null if there is no library, or it has none to give.
    static std::unique_ptr<Products> open(const std::vector<std::string> &paths, const cuda::Driver &driver,
                                          const Product &product);
    ~Products();
    Products(const Products &) = delete;
    Products &operator=(const Products &) = delete;

    // The shape of a call, or throws Error (AKS_ERROR_ARGUMENT) where rows overlap.
    Shape shape_of(const std::vector<Formula> &formulas, const int64_t *variables) const;
    // Asks cuBLASLt if the shape is new, or has long not been seen. Throws Error if it fails.
    std::shared_ptr<const Plan> find(const Shape &shape);
    // The same, but asks nothing: null if the shape is new.
    std::shared_ptr<const Plan> known(const Shape &shape);
    // Enqueues; false if the algorithm does not support these operands. Throws Error if it fails.
    bool run(const Plan &plan, int algorithm, cuda::Pointer a, cuda::Pointer b, cuda::Pointer d, cuda::Pointer workspace,
             cuda::Stream stream) const;

    uint64_t queries() const { return queries_; }
    const std::string &path() const { return library_.path; }

  private:
    struct Hash {
        size_t operator()(const Shape &shape) const noexcept;
    };
    struct Entry {
        std::shared_ptr<const Plan> plan;
        uint64_t used;
    };
    struct alignas(64) Shard {
        std::mutex mutex;  // held for as long as a look into a hash table takes, never while cuBLASLt works
        std::unordered_map<Shape, Entry, Hash> plans;
        uint64_t now = 0;
    };

    Products(const cublaslt::Library &library, cublaslt::Object handle, const cuda::Driver &driver, const Product &product)
        : library_(library), handle_(handle), driver_(driver), product_(product) {}
    std::shared_ptr<const Plan> query(const Shape &shape);

    const cublaslt::Library &library_;
    const cublaslt::Object handle_;
    const cuda::Driver &driver_;
    const Product &product_;
    Shard shards_[kShards];
    std::atomic<uint64_t> queries_{0};
};

}  // namespace aks
