// Postfix programs of aks/core/postfix.py: checked once, then run without a check.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "error.hpp"

namespace aks {

enum class Operation : int64_t {
    constant, variable, add, multiply, divide, modulo, le, lt, ge, gt, eq, ne, and_, or_, ceil_div, gcd, min, max,
    not_, next_pow2, count
};

inline constexpr size_t kMaxStack = 32;

class Formula {
  public:
    // Throws Error unless the program leaves one value, of at most kMaxStack on the way, and reads variables below
    // `variables` alone.
    Formula(std::vector<int64_t> code, size_t variables) : code_(std::move(code)) {
        size_t depth = 0;
        for (size_t at = 0; at < code_.size(); ++at) {
            if (code_[at] < 0 || code_[at] >= static_cast<int64_t>(Operation::count)) fail("an unknown operation");
            const auto operation = static_cast<Operation>(code_[at]);
            if (operation <= Operation::variable) {
                if (++at == code_.size()) fail("no value at its end");
                const int64_t value = code_[at];
                if (operation == Operation::variable && (value < 0 || static_cast<uint64_t>(value) >= variables)) {
                    fail("a variable that is not there");
                }
                if (operation == Operation::variable) reads_ = std::max(reads_, static_cast<size_t>(value) + 1);
                if (++depth > kMaxStack) fail("too many values");
            } else if (operation >= Operation::not_) {
                if (depth < 1) fail("too few values");
            } else {
                if (depth < 2) fail("too few values");
                --depth;
            }
        }
        if (depth != 1) fail("not one value at its end");
        if (code_.size() == 2 && code_[0] == static_cast<int64_t>(Operation::variable)) variable_ = code_[1];
    }

    int64_t operator()(const int64_t *variables) const noexcept {
        return variable_ >= 0 ? variables[variable_] : run(variables);
    }

    // It reads variables below this alone.
    size_t reads() const noexcept { return reads_; }

  private:
    [[noreturn]] static void fail(const char *what) {
        throw Error(AKS_ERROR_FILE, std::string("a formula of the kernels has ") + what +
                                        "; export them again (aks export --bundle)");
    }

    // What means nothing (overflow, division by 0) has some value, and no undefined behaviour.
    static int64_t wrap(uint64_t value) { return static_cast<int64_t>(value); }

    // std::has_single_bit is a call where the compiler may not assume that the CPU counts bits.
    static bool is_power(uint64_t value) { return value && !(value & (value - 1)); }

    static int64_t gcd(int64_t a, int64_t b) {
        uint64_t x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
        if (is_power(x) && y) return wrap(std::min(x, y & (~y + 1)));
        while (y) {
            const uint64_t rest = x % y;
            x = y;
            y = rest;
        }
        return wrap(x);
    }

    int64_t run(const int64_t *variables) const noexcept {
        int64_t stack[kMaxStack];
        int64_t *top = stack - 1;  // of the values so far
        const int64_t *const end = code_.data() + code_.size();
        for (const int64_t *at = code_.data(); at != end; ++at) {
            const auto operation = static_cast<Operation>(*at);
            if (operation == Operation::constant) {
                *++top = *++at;
            } else if (operation == Operation::variable) {
                *++top = variables[*++at];
            } else if (operation < Operation::not_) {
                const int64_t right = *top--;
                *top = binary(operation, *top, right);
            } else if (operation == Operation::not_) {
                *top = *top == 0;
            } else {
                const uint64_t value = static_cast<uint64_t>(*top);
                *top = value >> 62 ? 0 : wrap(std::bit_ceil(value));
            }
        }
        return *top;
    }

    static int64_t binary(Operation operation, int64_t a, int64_t b) noexcept {
        const uint64_t x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
        switch (operation) {
            case Operation::add: return wrap(x + y);
            case Operation::multiply: return wrap(x * y);
            case Operation::divide: return y ? divide(x, y) : 0;
            case Operation::modulo: return y ? wrap(is_power(y) ? x & (y - 1) : x % y) : 0;
            case Operation::le: return a <= b;
            case Operation::lt: return a < b;
            case Operation::ge: return a >= b;
            case Operation::gt: return a > b;
            case Operation::eq: return a == b;
            case Operation::ne: return a != b;
            case Operation::and_: return a != 0 && b != 0;
            case Operation::or_: return a != 0 || b != 0;
            case Operation::ceil_div: return y ? divide(x + y - 1, y) : 0;
            case Operation::gcd: return gcd(a, b);
            case Operation::min: return std::min(a, b);
            case Operation::max: return std::max(a, b);
            default: return 0;
        }
    }

    // Most divisors are powers of two, and dividing takes as long as ten shifts.
    static int64_t divide(uint64_t x, uint64_t y) { return wrap(is_power(y) ? x >> std::countr_zero(y) : x / y); }

    std::vector<int64_t> code_;
    size_t reads_ = 0;
    int64_t variable_ = -1;  // of a formula that is one variable and nothing else
};

}  // namespace aks
