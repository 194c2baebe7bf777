// Changes the bytes and the numbers of kernels.json and kernels.bin at random: they load or are refused, and what
// loads chooses and launches, on the stand-in driver, without a read out of range (built with sanitizers).
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "error.hpp"
#include "kernels.hpp"

static std::string read(const char *path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

static std::string change(std::string text, std::mt19937_64 &random) {
    const auto below = [&](size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(random); };
    for (size_t times = 1 + below(3); times && !text.empty(); --times) {
        size_t at = below(text.size());
        if (below(4) == 0) {  // a byte, or a piece
            if (below(2)) text[at] = static_cast<char>(below(256));
            else text.erase(at, below(40));
            continue;
        }
        at = text.find_first_of("0123456789-", at);  // a number, which is where ranges are checked
        if (at == std::string::npos) continue;
        const size_t end = text.find_first_not_of("0123456789-", at);
        static const char *const numbers[] = {"0", "1", "-1", "2", "7", "16", "63", "64", "65", "255", "4096", "-2", "-600",
            "1048577", "2147483647", "2147483648", "4294967296", "9223372036854775807", "-9223372036854775808", "1e9", ""};
        text.replace(at, end - at, numbers[below(sizeof numbers / sizeof *numbers)]);
    }
    return text;
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    const std::string table = read(argv[1]), code = read(argv[2]), driver = argv[3], cublaslt = argv[4];
    std::mt19937_64 random(std::strtoull(argv[5], nullptr, 10));
    const long rounds = std::atol(argv[6]);
    long loaded = 0, refused = 0;
    unsigned long long plans = 0;
    for (long round = 0; round < rounds; ++round) {
        try {
            const bool change_code = round % 8 == 0;
            aks::Kernels kernels(change_code ? table : change(table, random), change_code ? change(code, random) : code, 0, driver,
                                 {cublaslt});
            ++loaded;
            for (int call = 0; call < 60; ++call) {
                int64_t values[64];
                for (int64_t &value : values) {
                    const unsigned bits = static_cast<unsigned>(random() % 64);
                    value = call % 3 ? static_cast<int64_t>(random() >> bits) : static_cast<int64_t>(random() % 16 + 1) * 64;
                }
                for (int at = 3; at < 6; ++at) values[at] = static_cast<int64_t>(random() % 2);
                for (int at = 9; at < 12; ++at) values[at] |= 1 << 14;  // row strides that hold some rows
                kernels.select({values, kernels.table().parameters.size()});
                int config = 0;
                try {
                    const std::span<const int64_t> posed{values, kernels.table().call_values};
                    if (call % 2) kernels.prepare(posed, nullptr, config);
                    kernels.launch(posed, nullptr, config);
                } catch (const aks::Error &) {
                }
                if (config < 0 || static_cast<size_t>(config) >= kernels.table().configs.size()) return 3;
            }
            plans += kernels.counts().plans;
        } catch (const aks::Error &error) {
            if (!*error.what()) return 4;
            ++refused;
        }
    }
    std::printf("%ld loaded, %ld refused, %llu plans\n", loaded, refused, plans);
    return 0;
}
