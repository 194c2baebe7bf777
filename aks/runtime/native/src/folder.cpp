// Kernels from a folder: the reading of aks/core/artifact.py, for callers without Python.
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "error.hpp"
#include "json.hpp"
#include "kernels.hpp"
#include "sha256.hpp"

namespace aks {

namespace {

constexpr const char *kRedo = "; export it again (aks export --bundle)";

std::string read(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::string data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file) throw Error(AKS_ERROR_FILE, path + " cannot be read (" + std::strerror(errno) + ")" + kRedo);
    return data;
}

// The manifest's own hash is over its text without white space and without the hash, which is its last entry.
std::string check_seal(const std::string &text, const std::string &path) {
    std::string compact;
    bool inside = false, escaped = false;
    for (const char byte : text) {
        if (inside || !std::strchr(" \t\r\n", byte) || byte == '\0') compact += byte;
        if (byte == '"' && !escaped) inside = !inside;
        escaped = inside && byte == '\\' && !escaped;
    }
    const std::string head = ",\"sha256\":\"", tail = "\"}";
    const size_t length = head.size() + 64 + tail.size();
    if (compact.size() > length) {
        const size_t at = compact.size() - length;
        const std::string hash = compact.substr(at + head.size(), 64);
        if (compact.compare(at, head.size(), head) == 0 && sha256(compact.substr(0, at) + "}\n") == hash) return hash;
    }
    throw Error(AKS_ERROR_FILE, path + " was altered: its content does not match its sha256" + kRedo);
}

std::string read_member(const std::string &folder, const std::string &version, const Json &files, const char *name) {
    const std::string &wanted = files.at(name).at("sha256").text("a file's sha256");
    const std::string path = folder + "/" + name;
    std::string reason;
    try {
        std::string data = read(path);
        if (sha256(data) == wanted) return data;
        reason = path + " was altered: its sha256 is not the manifest's" + kRedo;
    } catch (const Error &error) {
        reason = error.what();
    }
    // Another version may have taken its place, or be about to.
    std::ifstream kept(folder + "/versions/" + version + "/" + name, std::ios::binary);
    std::string data{std::istreambuf_iterator<char>(kept), std::istreambuf_iterator<char>()};
    if (kept && sha256(data) == wanted) return data;
    throw Error(AKS_ERROR_FILE, reason);
}

}  // namespace

std::unique_ptr<Kernels> Kernels::load(const std::string &folder, int device, const std::string &driver) {
    const std::string path = folder + "/manifest.json", text = read(path), hash = check_seal(text, path);
    const Json manifest = Json::parse(text, path), &files = manifest.at("files");
    if (manifest.at("format").text("format") != "aks-manifest") throw Error(AKS_ERROR_FILE, path + " is no manifest of aks");
    const std::string version = hash.substr(0, 12);
    const std::string table = read_member(folder, version, files, "kernels.json");
    const std::string code = read_member(folder, version, files, "kernels.bin");
    return std::make_unique<Kernels>(table, code, device, driver);
}

}  // namespace aks
