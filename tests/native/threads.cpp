// Threads that launch, prepare, take misses, and load and drop kernels of their own, all at once, on the stand-in driver
// (built with a sanitizer that sees races). What they were answered must be what one thread alone is.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "error.hpp"
#include "kernels.hpp"

static std::string read(const char *path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A launch's values: a problem of gemm on operands that are aligned to 16 bytes or to 2.
static std::vector<int64_t> random_call(std::mt19937_64 &random) {
    const auto below = [&](uint64_t limit) { return static_cast<int64_t>(random() % limit); };
    const int64_t m = 1 + (below(2) ? below(64) : below(40'000)), n = 64 * (1 + below(100)), k = 64 * (1 + below(100));
    const int64_t shift = below(4) ? 0 : 2;
    std::vector<int64_t> call{m, n, k, below(2), 0, below(2)};
    for (int operand = 0; operand < 3; ++operand) call.push_back(((below(8) + 1) << 32) + shift);
    call.insert(call.end(), {k, k, n});
    return call;
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    const std::string table = read(argv[1]), code = read(argv[2]), driver = argv[3];
    const std::vector<std::string> cublaslt{argv[4]};
    const int threads = std::atoi(argv[5]), rounds = std::atoi(argv[6]);
    std::mt19937_64 random(1);
    std::vector<std::vector<int64_t>> calls;
    for (int call = 0; call < 1000; ++call) calls.push_back(random_call(random));

    const auto answer = [](aks::Kernels &kernels, const std::vector<int64_t> &call, size_t stream, bool prepare) {
        int config = 0;
        auto *const handle = reinterpret_cast<aks::cuda::Stream>(16 * stream);
        const bool ours = prepare ? kernels.prepare(call, handle, config) : kernels.launch(call, handle, config);
        return ours ? config : -1 - config;
    };
    std::vector<int> wanted;
    {
        aks::Kernels alone(table, code, 0, driver, cublaslt);
        for (const auto &call : calls) wanted.push_back(answer(alone, call, 0, false));
    }

    aks::Kernels shared(table, code, 0, driver, cublaslt);
    std::atomic<uint64_t> launched{0}, missed{0}, wrong{0};
    const auto take = [&](aks::Kernels &kernels) {
        uint64_t count = 0;
        for (const uint64_t reason : kernels.take_misses().reasons) count += reason;
        return count;
    };
    const auto work = [&](size_t thread) {
        std::mt19937_64 mine(thread);
        for (int round = 0; round < rounds; ++round) {
            for (size_t at = 0; at < calls.size(); ++at) {
                const size_t place = mine() % calls.size(), stream = mine() % 60;
                const bool prepare = at % 16 == 0;
                const int got = answer(shared, calls[place], stream, prepare);
                launched += got >= 0 && !prepare;
                wrong += got != wanted[place] && !(got == 0 && wanted[place] == -1);  // 0: the vendor's, once prepared
            }
            missed += take(shared);
            if (shared.counts().without_kernel) ++wrong;
            aks::Kernels own(table, code, 0, driver, cublaslt);
            for (size_t at = 0; at < 50; ++at) wrong += answer(own, calls[at], thread, false) != wanted[at];
        }
    };
    std::vector<std::thread> running;
    for (int thread = 0; thread < threads; ++thread) running.emplace_back(work, static_cast<size_t>(thread));
    for (std::thread &one : running) one.join();
    missed += take(shared);
    const bool counted = shared.counts().launches == launched;
    std::printf("%llu launches, %llu misses, %llu wrong, counted %d\n", static_cast<unsigned long long>(launched),
                static_cast<unsigned long long>(missed), static_cast<unsigned long long>(wrong), counted);
    return wrong || !counted ? 3 : 0;
}
