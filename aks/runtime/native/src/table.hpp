// kernels.json and kernels.bin as read: every index was checked, so that what follows needs no check.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formula.hpp"

namespace aks {

inline constexpr size_t kMaxVariables = 64, kMaxArguments = 64, kMaxMaps = 4, kMaxKey = 16,
                        kMaxAlgorithms = 64;

struct Parameter {
    std::string name;
    std::vector<int64_t> values;  // of an attribute; of an axis, none
    int64_t low = 0, high = 0;
    int derived = -1;  // formula over the call

    bool supports(int64_t value) const noexcept {
        if (values.empty()) return low <= value && value <= high;
        for (const int64_t known : values) {
            if (known == value) return true;
        }
        return false;
    }
};

struct Node {
    int formula;
    int64_t threshold;
    int left, right;  // node, or -1 - leaf
};

struct Option {
    int config;
    int formula;  // -1: always
};

struct Leaf {
    bool abstains;
    std::vector<Option> options;
};

struct Kernel {
    int64_t key[kMaxKey];
    int function;
};

struct Config {
    bool has_kernel = false, needs_scratch = false;
    int algorithm = -1;  // of the product that the config is; -1 if it is none
    std::vector<int> variant;
    int programs = -1;
    std::vector<Kernel> kernels;  // in the order of their keys
};

// Formulas of a matrix whose rows are contiguous.
struct Matrix {
    int pointer, rows, columns, row_stride;
};

// What configs that are a product ask of cuBLASLt.
struct Product {
    Matrix a, b, d;
    int transpose_a, element_type;  // formulas
    size_t workspace;               // place among the scratch buffers
    size_t workspace_bytes;
    uint32_t alignment;
    int num_algorithms;
    int vendor;  // formula: where the vendor's routine is the ranking's first; -1: nowhere
};

struct Argument {
    bool is_map;
    int formula;                    // of a value
    int rows, columns, row_stride;  // of a map, with `formula` its address
};

struct Box {
    uint32_t rows, columns;
    int element_type;
    uint32_t element_bytes;
    int swizzle;
};

struct FunctionRow {
    std::string name;
    int cubin;
    unsigned num_warps, shared_bytes;
    bool early_start;
    int signature;
    std::vector<Box> boxes;
};

struct Buffer {
    std::string name;
    size_t bytes;
};

struct Table {
    // Throws Error (AKS_ERROR_FILE) if the text is malformed, or names what is not there.
    Table(std::string_view text, std::string_view code);

    std::string op, device, triton;
    int capability, sm_count, cuda;
    std::vector<Parameter> parameters;
    std::vector<std::string> operands;
    std::vector<Buffer> scratch;
    std::vector<Formula> formulas;
    std::vector<Node> nodes;
    std::vector<Leaf> leaves;
    std::vector<Config> configs;
    std::optional<Product> product;
    std::vector<FunctionRow> functions;
    std::vector<std::vector<Argument>> signatures;
    std::vector<std::string_view> cubins;  // into the code that was given
    size_t call_values;                    // parameters that are not derived, and operands
};

}  // namespace aks
