// JSON as values that are asked for by type: what is missing or of another type is an Error, never a crash.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace aks {

class Json {
  public:
    using List = std::vector<Json>;
    using Object = std::vector<std::pair<std::string, Json>>;

    // Throws Error (AKS_ERROR_FILE) for text that is no JSON, or nests deeper than 64 levels. `file` is for messages.
    static Json parse(std::string_view text, const std::string &file);

    bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
    bool is_list() const { return std::holds_alternative<List>(value_); }
    const List &list(const char *what) const;
    const std::string &text(const char *what) const;
    // The integer, which must be from low to high.
    int64_t integer(const char *what, int64_t low, int64_t high) const;
    // The entry of an object.
    const Json &at(const char *name) const;

  private:
    friend class JsonParser;
    struct Other {};  // true, false, and numbers that are no int64: nothing here reads them
    std::variant<std::monostate, Other, int64_t, std::string, List, Object> value_;
};

}  // namespace aks
