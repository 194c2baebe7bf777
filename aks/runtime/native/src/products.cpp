#include "products.hpp"

#include <algorithm>
#include <optional>

#include "error.hpp"

namespace aks {

namespace {

void put_layout(int64_t *shape, const Matrix &matrix, const std::vector<Formula> &formulas, const int64_t *variables) {
    const auto value = [&](int formula) { return formulas[static_cast<size_t>(formula)](variables); };
    // Column-major, which is how cuBLASLt sees them, rows are columns.
    shape[0] = value(matrix.columns);
    shape[1] = value(matrix.rows);
    shape[2] = value(matrix.row_stride);
    if (shape[1] == 1) shape[2] = std::max(shape[0], shape[2]);  // the stride of a single row is never used
    if (shape[2] < shape[0]) {
        throw Error(AKS_ERROR_ARGUMENT, "an operand has rows of " + std::to_string(shape[0]) + " elements but row stride " +
                                            std::to_string(shape[2]) + "; it must be at least as much");
    }
}

}  // namespace

std::unique_ptr<Products> Products::open(const std::vector<std::string> &paths, const cuda::Driver &driver,
                                         const Product &product) {
    const cublaslt::Library *library = cublaslt::Library::open(paths);
    cublaslt::Object handle = nullptr;
    if (!library || library->cublasLtCreate(&handle) != 0) return nullptr;
    return std::unique_ptr<Products>(new Products(*library, handle, driver, product));
}

Products::~Products() { library_.cublasLtDestroy(handle_); }

Shape Products::shape_of(const std::vector<Formula> &formulas, const int64_t *variables) const {
    Shape shape;
    put_layout(shape.data(), product_.a, formulas, variables);
    put_layout(shape.data() + 3, product_.b, formulas, variables);
    put_layout(shape.data() + 6, product_.d, formulas, variables);
    shape[9] = formulas[static_cast<size_t>(product_.transpose_a)](variables) != 0;
    shape[10] = formulas[static_cast<size_t>(product_.element_type)](variables);
    return shape;
}

size_t Products::Hash::operator()(const Shape &shape) const noexcept {
    uint64_t hash = 0;
    for (const int64_t word : shape) {
        hash = (hash ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 32;
    }
    return hash;
}

std::shared_ptr<const Plan> Products::known(const Shape &shape) {
    Shard &shard = shards_[Hash()(shape) % kShards];
    const std::scoped_lock lock(shard.mutex);
    const auto found = shard.plans.find(shape);
    if (found == shard.plans.end()) return nullptr;
    found->second.used = ++shard.now;
    return found->second.plan;
}

std::shared_ptr<const Plan> Products::find(const Shape &shape) {
    if (std::shared_ptr<const Plan> plan = known(shape)) return plan;
    std::shared_ptr<const Plan> plan = query(shape), dropped;
    Shard &shard = shards_[Hash()(shape) % kShards];
    const std::scoped_lock lock(shard.mutex);
    if (shard.plans.size() >= kPlansPerShard) {
        const auto oldest = std::min_element(shard.plans.begin(), shard.plans.end(), [](const auto &one, const auto &other) {
            return one.second.used < other.second.used;
        });
        dropped = std::move(oldest->second.plan);  // whoever launches it now has it too
        shard.plans.erase(oldest);
    }
    // Another thread may have been first: the answers are the same.
    return shard.plans.try_emplace(shape, Entry{std::move(plan), ++shard.now}).first->second.plan;
}

std::shared_ptr<const Plan> Products::query(const Shape &shape) {
    const cuda::Relaxed relaxed(driver_);
    const auto made = [this](cublaslt::Object object, cublaslt::Status status, const char *call, auto destroy) {
        library_.check(status, call);
        return Plan::Owned(object, Plan::Destroy{destroy});
    };
    const auto layout = [&](const int64_t *part) {
        cublaslt::Object object = nullptr;
        const cublaslt::Status status = library_.cublasLtMatrixLayoutCreate(
            &object, static_cast<int>(shape[10]), static_cast<uint64_t>(part[0]), static_cast<uint64_t>(part[1]), part[2]);
        return made(object, status, "cublasLtMatrixLayoutCreate", library_.cublasLtMatrixLayoutDestroy);
    };
    const auto set = [this](auto function, const Plan::Owned &object, int attribute, auto value) {
        library_.check(function(object.get(), attribute, &value, sizeof value), "setting an attribute of cuBLASLt");
    };
    auto plan = std::make_shared<Plan>();
    cublaslt::Object object = nullptr;
    cublaslt::Status status = library_.cublasLtMatmulDescCreate(&object, cublaslt::kCompute32F, cublaslt::kReal32F);
    plan->operation = made(object, status, "cublasLtMatmulDescCreate", library_.cublasLtMatmulDescDestroy);
    set(library_.cublasLtMatmulDescSetAttribute, plan->operation, cublaslt::kTransposeA, static_cast<int32_t>(shape[9]));
    set(library_.cublasLtMatmulDescSetAttribute, plan->operation, cublaslt::kTransposeB, int32_t{0});
    plan->a = layout(shape.data());
    plan->b = layout(shape.data() + 3);
    plan->d = layout(shape.data() + 6);
    status = library_.cublasLtMatmulPreferenceCreate(&object);
    const Plan::Owned preference =
        made(object, status, "cublasLtMatmulPreferenceCreate", library_.cublasLtMatmulPreferenceDestroy);
    set(library_.cublasLtMatmulPreferenceSetAttribute, preference, cublaslt::kMaxWorkspaceBytes,
        uint64_t{product_.workspace_bytes});
    for (const int attribute : cublaslt::kMinAlignmentBytes) {
        set(library_.cublasLtMatmulPreferenceSetAttribute, preference, attribute, product_.alignment);
    }
    std::vector<cublaslt::HeuristicResult> results(static_cast<size_t>(product_.num_algorithms));
    int found = 0;
    status = library_.cublasLtMatmulAlgoGetHeuristic(handle_, plan->operation.get(), plan->a.get(), plan->b.get(),
                                                     plan->d.get(), plan->d.get(), preference.get(),
                                                     product_.num_algorithms, results.data(), &found);
    queries_.fetch_add(1, std::memory_order_relaxed);
    if (status == cublaslt::kNotSupported) return plan;
    library_.check(status, "cublasLtMatmulAlgoGetHeuristic");
    results.resize(static_cast<size_t>(std::clamp(found, 0, product_.num_algorithms)));
    for (const cublaslt::HeuristicResult &result : results) {
        if (result.state == 0) plan->algorithms.push_back(result.algorithm);
    }
    return plan;
}

bool Products::run(const Plan &plan, int algorithm, cuda::Pointer a, cuda::Pointer b, cuda::Pointer d,
                   cuda::Pointer workspace, cuda::Stream stream) const {
    static constexpr float kOne = 1, kZero = 0;
    // A first launch loads the kernel, which allocates; a thread that captures, this one or another, forbids that.
    std::optional<cuda::Relaxed> relaxed;
    if (!plan.launched.load(std::memory_order_relaxed)) relaxed.emplace(driver_);
    const auto pointer = [](cuda::Pointer address) { return reinterpret_cast<void *>(address); };
    const cublaslt::Status status = library_.cublasLtMatmul(
        handle_, plan.operation.get(), &kOne, pointer(a), plan.a.get(), pointer(b), plan.b.get(), &kZero, pointer(d),
        plan.d.get(), pointer(d), plan.d.get(), &plan.algorithms[static_cast<size_t>(algorithm)], pointer(workspace),
        product_.workspace_bytes, stream);
    if (status == cublaslt::kNotSupported) return false;
    library_.check(status, "cublasLtMatmul");
    if (relaxed) plan.launched.store(true, std::memory_order_relaxed);
    return true;
}

}  // namespace aks
