#include "json.hpp"

#include <charconv>

#include "error.hpp"

namespace aks {

class JsonParser {
  public:
    JsonParser(std::string_view text, const std::string &file) : text_(text), file_(file) {}

    Json document() {
        Json value = parse(0);
        skip();
        if (at_ != text_.size()) fail("has more after its end");
        return value;
    }

  private:
    static constexpr int kMaxDepth = 64;

    [[noreturn]] void fail(const char *why) const {
        throw Error(AKS_ERROR_FILE, file_ + " is not JSON: at byte " + std::to_string(at_) + " it " + why +
                                        "; export it again (aks export --bundle)");
    }

    void skip() {
        while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
    }

    bool take(char wanted) {
        skip();
        if (at_ == text_.size() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }

    bool word(std::string_view wanted) {
        if (text_.substr(at_, wanted.size()) != wanted) return false;
        at_ += wanted.size();
        return true;
    }

    Json parse(int depth) {
        if (depth > kMaxDepth) fail("nests too deeply");
        skip();
        if (at_ == text_.size()) fail("ends early");
        Json json;
        const char first = text_[at_];
        if (first == '{') {
            json.value_ = object(depth);
        } else if (first == '[') {
            json.value_ = list(depth);
        } else if (first == '"') {
            json.value_ = string();
        } else if (word("null")) {
            json.value_ = std::monostate{};
        } else if (word("true") || word("false")) {
            json.value_ = Json::Other{};
        } else {
            json.value_ = number();
        }
        return json;
    }

    Json::Object object(int depth) {
        Json::Object members;
        ++at_;
        if (take('}')) return members;
        do {
            skip();
            if (at_ == text_.size() || text_[at_] != '"') fail("has no name where one is due");
            std::string name = string();
            if (!take(':')) fail("lacks a colon");
            members.emplace_back(std::move(name), parse(depth + 1));
        } while (take(','));
        if (!take('}')) fail("has an object without end");
        return members;
    }

    Json::List list(int depth) {
        Json::List entries;
        ++at_;
        if (take(']')) return entries;
        do {
            entries.push_back(parse(depth + 1));
        } while (take(','));
        if (!take(']')) fail("has a list without end");
        return entries;
    }

    std::string string() {
        std::string result;
        for (++at_; at_ < text_.size(); ++at_) {
            const char byte = text_[at_];
            if (byte == '"') {
                ++at_;
                return result;
            }
            if (static_cast<unsigned char>(byte) < 0x20) fail("has a control character in a text");
            // Texts that are read here (names, hashes) have no escapes; others are only passed over.
            if (byte == '\\' && ++at_ == text_.size()) break;
            result += text_[at_];
        }
        fail("has a text without end");
    }

    std::variant<std::monostate, Json::Other, int64_t, std::string, Json::List, Json::Object> number() {
        const size_t start = at_;
        while (at_ < text_.size() && std::string_view("+-.0123456789eE").find(text_[at_]) != std::string_view::npos) {
            ++at_;
        }
        if (start == at_) fail("has an unknown word");
        int64_t value = 0;
        const char *end = text_.data() + at_;
        const auto [stop, error] = std::from_chars(text_.data() + start, end, value);
        if (error == std::errc() && stop == end) return value;
        return Json::Other{};
    }

    std::string_view text_;
    const std::string &file_;
    size_t at_ = 0;
};

namespace {

[[noreturn]] void wrong(const char *what, const char *wanted) {
    throw Error(AKS_ERROR_FILE, std::string("the kernels cannot be read: ") + what + " is not " + wanted +
                                    "; export them again (aks export --bundle)");
}

}  // namespace

Json Json::parse(std::string_view text, const std::string &file) { return JsonParser(text, file).document(); }

const Json::List &Json::list(const char *what) const {
    const List *found = std::get_if<List>(&value_);
    if (!found) wrong(what, "a list");
    return *found;
}

const std::string &Json::text(const char *what) const {
    const std::string *found = std::get_if<std::string>(&value_);
    if (!found) wrong(what, "a text");
    return *found;
}

int64_t Json::integer(const char *what, int64_t low, int64_t high) const {
    const int64_t *found = std::get_if<int64_t>(&value_);
    if (!found || *found < low || *found > high) {
        wrong(what, ("an integer from " + std::to_string(low) + " to " + std::to_string(high)).c_str());
    }
    return *found;
}

const Json &Json::at(const char *name) const {
    const Object *members = std::get_if<Object>(&value_);
    if (!members) wrong(name, "part of an object");
    for (const auto &[key, value] : *members) {
        if (key == name) return value;
    }
    wrong(name, "there");
}

}  // namespace aks
