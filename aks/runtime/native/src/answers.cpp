// What follows from a problem alone: its config, kernel and grid; and the count of what the tree did not know.
#include <algorithm>
#include <utility>

#include "error.hpp"
#include "kernels.hpp"

namespace aks {

namespace {

// Answers to this thread's last problems: no other thread sees them, so they need no lock. An answer is right for
// as long as the kernels live, and the number of the kernels tells those of others from it.
struct Memo {
    static constexpr size_t kRows = 512, kMaxParameters = 12;
    struct Row {
        uint64_t kernels;  // 0: an empty row
        int64_t problem[kMaxParameters];
        Answer answer;
    };
    Row rows[kRows];

    Row &row(const int64_t *problem, size_t parameters) {
        uint64_t hash = 0;
        for (size_t at = 0; at < parameters; ++at) hash = hash * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(problem[at]);
        return rows[(hash * 0x9e3779b97f4a7c15) >> 55];
    }
};
static_assert(Memo::kRows == 1 << (64 - 55));
thread_local Memo memo;

}  // namespace

uint64_t Kernels::next_number() {
    static std::atomic<uint64_t> last{0};
    return ++last;
}

void Kernels::check_count(size_t got, size_t wanted, const char *what) {
    if (got != wanted) {
        throw Error(AKS_ERROR_ARGUMENT, std::string(what) + " has " + std::to_string(got) + " values; wanted " +
                                            std::to_string(wanted) + ": see aks.h and kernels.json");
    }
}

Choice Kernels::choose(const int64_t *variables) const noexcept {
    for (size_t at = 0; at < table_.parameters.size(); ++at) {
        if (!table_.parameters[at].supports(variables[at])) return {kVendor, 0, static_cast<int>(at)};
    }
    int place = table_.nodes.empty() ? -1 : 0;
    while (place >= 0) {
        const Node &node = table_.nodes[static_cast<size_t>(place)];
        place = table_.formulas[static_cast<size_t>(node.formula)](variables) <= node.threshold ? node.left : node.right;
    }
    const Leaf &leaf = table_.leaves[static_cast<size_t>(-1 - place)];
    if (leaf.abstains) return {kVendor, 0, static_cast<int>(table_.parameters.size())};
    for (size_t rank = 0;; ++rank) {
        const Option &option = leaf.options[rank];
        if (option.formula < 0 || table_.formulas[static_cast<size_t>(option.formula)](variables)) {
            return {option.config, rank, -1};
        }
    }
}

int Kernels::select(std::span<const int64_t> problem) const {
    check_count(problem.size(), table_.parameters.size(), "a problem");
    int64_t variables[kMaxVariables] = {};
    std::copy(problem.begin(), problem.end(), variables);
    return choose(variables).config;
}

const Answer &Kernels::answer(const int64_t *variables) const noexcept {
    const size_t parameters = table_.parameters.size();
    const bool kept = parameters <= Memo::kMaxParameters;  // others are worked out each time
    Memo::Row &row = memo.row(variables, parameters);
    if (kept && row.kernels == number_ && std::equal(variables, variables + parameters, row.problem)) return row.answer;
    row.kernels = 0;
    row.answer = work_out(variables);
    if (kept) {
        std::copy_n(variables, parameters, row.problem);
        row.kernels = number_;
    }
    return row.answer;
}

Answer Kernels::work_out(const int64_t *variables) const noexcept {
    Answer answer{choose(variables), nullptr, -1, 0, {}};
    const Config &config = table_.configs[static_cast<size_t>(answer.choice.config)];
    if (products_) {
        const int vendor = answer.choice.config == kVendor ? table_.product->vendor : -1;
        const bool is_first = vendor >= 0 && table_.formulas[static_cast<size_t>(vendor)](variables);
        answer.algorithm = is_first ? 0 : config.algorithm;
    }
    if (!config.has_kernel || !(answer.kernel = find(config, variables))) return answer;
    const auto value = [&](int formula) { return table_.formulas[static_cast<size_t>(formula)](variables); };
    answer.programs = value(config.programs);
    const FunctionRow &row = table_.functions[static_cast<size_t>(answer.kernel->function)];
    MapSides *sides = answer.sides;
    for (const Argument &argument : table_.signatures[static_cast<size_t>(row.signature)]) {
        if (argument.is_map) {
            *sides++ = {static_cast<uint64_t>(value(argument.rows)), static_cast<uint64_t>(value(argument.columns))};
        }
    }
    return answer;
}

const Kernel *Kernels::find(const Config &config, const int64_t *variables) const noexcept {
    const size_t parts = config.variant.size();
    int64_t key[kMaxKey];
    for (size_t at = 0; at < parts; ++at) key[at] = table_.formulas[static_cast<size_t>(config.variant[at])](variables);
    const auto found = std::lower_bound(
        config.kernels.begin(), config.kernels.end(), key, [parts](const Kernel &kernel, const int64_t *wanted) {
            return std::lexicographical_compare(kernel.key, kernel.key + parts, wanted, wanted + parts);
        });
    return found != config.kernels.end() && std::equal(key, key + parts, found->key) ? &*found : nullptr;
}

void Kernels::count(const Choice &choice, const int64_t *variables) {
    const size_t parameters = table_.parameters.size();
    const std::scoped_lock lock(misses_mutex_);
    misses_.reasons.resize(parameters + 2);
    if (choice.reason < 0) {
        ++misses_.reasons[parameters + 1];
        return;
    }
    ++misses_.reasons[static_cast<size_t>(choice.reason)];
    std::vector<int64_t> problem(variables, variables + parameters);
    const auto found = misses_.problems.find(problem);
    if (found != misses_.problems.end()) ++found->second;
    else if (misses_.problems.size() < Misses::kMaxProblems) misses_.problems.emplace(std::move(problem), 1);
}

Misses Kernels::take_misses() {
    const std::scoped_lock lock(misses_mutex_);
    return std::exchange(misses_, {});
}

}  // namespace aks
