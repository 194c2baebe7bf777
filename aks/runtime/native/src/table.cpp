#include "table.hpp"

#include <algorithm>

#include "json.hpp"
#include "sha256.hpp"

namespace aks {

namespace {

constexpr int64_t kMax = INT64_MAX, kMin = INT64_MIN;
constexpr size_t kMaxEntries = 1 << 20;

[[noreturn]] void fail(const std::string &what) {
    throw Error(AKS_ERROR_FILE, "the kernels cannot be read: " + what + "; export them again (aks export --bundle)");
}

size_t limited(size_t count, size_t limit, const char *what) {
    if (count > limit) fail(std::string("there are ") + std::to_string(count) + " " + what);
    return count;
}

// An index below `size`; `least` is -1 where that stands for none.
int index(const Json &json, const char *what, size_t size, int64_t least = 0) {
    return static_cast<int>(json.integer(what, least, static_cast<int64_t>(size) - 1));
}

class Reader {
  public:
    Reader(Table &table, const Json &json, std::string_view code) : table_(table), json_(json), code_(code) {}

    void read() {
        if (json_.at("format").text("format") != "aks-kernels") fail("format is not aks-kernels");
        if (const int64_t version = json_.at("version").integer("version", 0, kMax); version != 3) {
            fail("they have version " + std::to_string(version) + ", and this aks reads 3");
        }
        table_.op = json_.at("op").text("op");
        table_.device = json_.at("device").text("device");
        table_.triton = json_.at("triton").text("triton");
        table_.capability = static_cast<int>(json_.at("capability").integer("capability", 10, 1000));
        table_.sm_count = static_cast<int>(json_.at("sm_count").integer("sm_count", 1, 1 << 20));
        table_.cuda = static_cast<int>(json_.at("cuda").integer("cuda", 0, 1 << 20));
        call();
        formulas();
        check_derived();
        tree();
        code();
        configs();
        product();
    }

  private:
    const Json::List &list(const char *name) const {
        const Json::List &found = json_.at(name).list(name);
        limited(found.size(), kMaxEntries, name);
        return found;
    }

    void call() {
        for (const Json &row : list("parameters")) {
            Parameter parameter;
            parameter.name = row.at("name").text("a parameter's name");
            const Json &support = row.at("support");
            if (support.is_list()) {
                for (const Json &value : support.list("support")) {
                    parameter.values.push_back(value.integer("a supported value", 0, kMax));
                }
                if (parameter.values.empty()) fail("a parameter supports nothing");
            } else {
                parameter.low = support.at("low").integer("low", 0, kMax);
                parameter.high = support.at("high").integer("high", 0, kMax);
            }
            parameter.derived = static_cast<int>(row.at("derived").integer("derived", -1, INT32_MAX));
            table_.parameters.push_back(std::move(parameter));
        }
        for (const Json &name : list("operands")) table_.operands.push_back(name.text("an operand"));
        for (const Json &row : list("scratch")) {
            const Json::List &pair = row.list("scratch");
            if (pair.size() != 2) fail("scratch is not a name and bytes");
            table_.scratch.push_back({pair[0].text("scratch"), static_cast<size_t>(pair[1].integer("bytes", 1, 1LL << 40))});
        }
        variables_ = table_.parameters.size() + table_.operands.size() + table_.scratch.size();
        limited(variables_, kMaxVariables, "variables");
        table_.call_values = table_.operands.size();
        for (const Parameter &parameter : table_.parameters) table_.call_values += parameter.derived < 0;
        if (table_.parameters.empty()) fail("there are no parameters");
    }

    void formulas() {
        for (const Json &program : list("formulas")) {
            std::vector<int64_t> code;
            for (const Json &word : program.list("a formula")) code.push_back(word.integer("a formula's word", kMin, kMax));
            table_.formulas.emplace_back(std::move(code), variables_);
        }
    }

    int formula(const Json &json, int64_t least = 0) const {
        return index(json, "the place of a formula", table_.formulas.size(), least);
    }

    // A formula over a problem alone: answers to problems are remembered.
    int problem_formula(const Json &json, int64_t least = 0) const {
        const int place = formula(json, least);
        if (place >= 0 && table_.formulas[static_cast<size_t>(place)].reads() > table_.parameters.size()) {
            fail("what depends on the problem alone reads an operand");
        }
        return place;
    }

    void check_derived() const {
        for (const Parameter &parameter : table_.parameters) {
            if (parameter.derived >= static_cast<int>(table_.formulas.size())) fail("a parameter's formula is not there");
        }
    }

    void tree() {
        const Json::List &leaves = list("leaves"), &nodes = list("nodes");
        const size_t configs = limited(json_.at("configs").list("configs").size(), kMaxEntries, "configs");
        if (leaves.empty() || configs == 0) fail("there is no leaf or no config");
        for (const Json &row : leaves) {
            const Json::List &numbers = row.list("a leaf");
            if (numbers.size() < 3 || numbers.size() % 2 == 0) fail("a leaf is not a flag and pairs");
            Leaf leaf{numbers[0].integer("a leaf's flag", 0, 1) == 1, {}};
            for (size_t at = 1; at < numbers.size(); at += 2) {
                leaf.options.push_back({index(numbers[at], "a leaf's config", configs), problem_formula(numbers[at + 1], -1)});
            }
            if (leaf.options.back().formula != -1) fail("a leaf's last config has a condition");
            table_.leaves.push_back(std::move(leaf));
        }
        for (const Json &row : nodes) {
            const Json::List &numbers = row.list("a node");
            if (numbers.size() != 4) fail("a node is not four numbers");
            // Children come later: no walk can go round in a circle.
            const int64_t self = static_cast<int64_t>(table_.nodes.size());
            const auto child = [&](const Json &json) {
                const int64_t place = json.integer("a node's child", -static_cast<int64_t>(leaves.size()),
                                                   static_cast<int64_t>(nodes.size()) - 1);
                if (place >= 0 && place <= self) fail("a node's child comes before it");
                return static_cast<int>(place);
            };
            table_.nodes.push_back({problem_formula(numbers[0]), numbers[1].integer("a threshold", kMin, kMax), child(numbers[2]),
                                    child(numbers[3])});
        }
    }

    void code() {
        for (const Json &row : list("cubins")) {
            const Json::List &numbers = row.list("a cubin");
            if (numbers.size() != 3) fail("a cubin is not an offset, bytes and a hash");
            const int64_t size = static_cast<int64_t>(code_.size());
            const int64_t offset = numbers[0].integer("a cubin's offset", 0, size);
            const int64_t bytes = numbers[1].integer("a cubin's bytes", 64, size - offset);
            const std::string_view cubin = code_.substr(static_cast<size_t>(offset), static_cast<size_t>(bytes));
            // The driver is told no length: what it gets must be whole.
            if (sha256(cubin) != numbers[2].text("a cubin's hash")) fail("a cubin was altered");
            if (cubin.substr(0, 4) != "\x7f" "ELF") fail("a cubin is no ELF file");
            table_.cubins.push_back(cubin);
        }
        for (const Json &row : list("signatures")) {
            std::vector<Argument> arguments;
            for (const Json &entry : row.list("a signature")) arguments.push_back(argument(entry));
            limited(arguments.size(), kMaxArguments, "arguments");
            table_.signatures.push_back(std::move(arguments));
        }
        for (const Json &row : list("functions")) {
            FunctionRow function;
            function.name = row.at("name").text("a function's name");
            function.cubin = index(row.at("cubin"), "a function's cubin", table_.cubins.size());
            function.num_warps = static_cast<unsigned>(row.at("num_warps").integer("num_warps", 1, 32));
            function.shared_bytes = static_cast<unsigned>(row.at("shared_bytes").integer("shared_bytes", 0, 1 << 22));
            function.early_start = row.at("early_start").integer("early_start", 0, 1) == 1;
            function.signature = index(row.at("signature"), "a function's signature", table_.signatures.size());
            for (const Json &box : row.at("boxes").list("boxes")) function.boxes.push_back(read_box(box));
            size_t maps = 0;
            for (const Argument &one : table_.signatures[static_cast<size_t>(function.signature)]) maps += one.is_map;
            if (maps != function.boxes.size() || maps > kMaxMaps) fail("a function has not one box for each map");
            table_.functions.push_back(std::move(function));
        }
    }

    Argument argument(const Json &entry) const {
        const Json::List &parts = entry.list("an argument");
        const std::string &kind = parts.empty() ? std::string() : parts[0].text("an argument's kind");
        if (kind == "value" && parts.size() == 3) {
            const int64_t bytes = parts[1].integer("an argument's bytes", 4, 8);
            if (bytes != 4 && bytes != 8) fail("an argument has neither 4 nor 8 bytes");
            return {false, formula(parts[2]), -1, -1, -1};
        }
        if (kind == "map" && parts.size() == 5) {
            return {true, formula(parts[1]), problem_formula(parts[2]), problem_formula(parts[3]), formula(parts[4])};
        }
        fail("an argument is neither a value nor a map");
    }

    static Box read_box(const Json &json) {
        const Json::List &parts = json.list("a box");
        if (parts.size() != 5) fail("a box is not five numbers");
        return {static_cast<uint32_t>(parts[0].integer("a box's rows", 1, 256)),
                static_cast<uint32_t>(parts[1].integer("a box's columns", 1, 256)),
                static_cast<int>(parts[2].integer("a box's element type", 0, 15)),
                static_cast<uint32_t>(parts[3].integer("a box's element bytes", 1, 16)),
                static_cast<int>(parts[4].integer("a box's swizzle", 0, 15))};
    }

    void configs() {
        for (const Json &row : list("configs")) {
            Config config;
            if (!row.is_null()) {
                config.has_kernel = true;
                config.needs_scratch = row.at("scratch").integer("scratch", 0, 1) == 1;
                config.programs = problem_formula(row.at("programs"));
                for (const Json &part : row.at("variant").list("variant")) config.variant.push_back(problem_formula(part));
                limited(config.variant.size(), kMaxKey, "parts of a variant");
                for (const Json &kernel : row.at("kernels").list("kernels")) config.kernels.push_back(read_kernel(config, kernel));
            }
            table_.configs.push_back(std::move(config));
        }
        if (table_.configs[0].has_kernel) fail("config 0 is not the vendor's");
    }

    void product() {
        const Json &json = json_.at("product");
        if (json.is_null()) return;
        const auto matrix = [&](const char *name) {
            const Json::List &parts = json.at(name).list(name);
            if (parts.size() != 4) fail("a matrix is not four formulas");
            return Matrix{formula(parts[0]), formula(parts[1]), formula(parts[2]), formula(parts[3])};
        };
        Product product{matrix("a"), matrix("b"), matrix("d"), formula(json.at("transpose_a")),
                        formula(json.at("element_type")), 0, 0, 0, 0, formula(json.at("vendor"), -1)};
        product.workspace = static_cast<size_t>(index(json.at("workspace"), "a workspace's buffer", table_.scratch.size()));
        product.workspace_bytes = static_cast<size_t>(json.at("workspace_bytes").integer(
            "workspace_bytes", 0, static_cast<int64_t>(table_.scratch[product.workspace].bytes)));
        product.alignment = static_cast<uint32_t>(json.at("alignment").integer("alignment", 1, 1 << 20));
        product.num_algorithms =
            static_cast<int>(json.at("num_algorithms").integer("num_algorithms", 1, kMaxAlgorithms));
        for (const Json &row : json.at("configs").list("configs")) {
            const Json::List &pair = row.list("a config of a product");
            if (pair.size() != 2) fail("a config of a product is not a config and an algorithm");
            Config &config = table_.configs[static_cast<size_t>(index(pair[0], "a product's config", table_.configs.size(), 1))];
            if (config.has_kernel) fail("a config is a product and has a kernel");
            config.algorithm = index(pair[1], "an algorithm", static_cast<size_t>(product.num_algorithms));
            config.needs_scratch = true;
        }
        table_.product = product;
    }

    Kernel read_kernel(const Config &config, const Json &json) const {
        const Json::List &numbers = json.list("a kernel");
        const size_t parts = config.variant.size();
        if (numbers.size() != parts + 1) fail("a kernel has not one value for each part of the variant");
        Kernel kernel{};
        for (size_t at = 0; at < parts; ++at) kernel.key[at] = numbers[at].integer("a kernel's value", kMin, kMax);
        kernel.function = index(numbers[parts], "a kernel's function", table_.functions.size());
        if (!config.kernels.empty() &&
            !std::lexicographical_compare(config.kernels.back().key, config.kernels.back().key + parts, kernel.key,
                                          kernel.key + parts)) {
            fail("kernels are not in order");
        }
        return kernel;
    }

    Table &table_;
    const Json &json_;
    std::string_view code_;
    size_t variables_ = 0;
};

}  // namespace

Table::Table(std::string_view text, std::string_view code) {
    const Json json = Json::parse(text, "kernels.json");
    Reader(*this, json, code).read();
}

}  // namespace aks
