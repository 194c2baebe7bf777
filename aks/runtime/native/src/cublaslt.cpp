#include "cublaslt.hpp"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <type_traits>

#include "error.hpp"

namespace aks::cublaslt {

const Library *Library::open(const std::vector<std::string> &paths) {
    static std::mutex mutex;
    static std::map<void *, std::unique_ptr<const Library>> libraries;
    const std::scoped_lock lock(mutex);
    // One that is in the process already: two copies would each keep their kernels on the GPU.
    for (const int mode : {RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD, RTLD_NOW | RTLD_LOCAL}) {
        for (const std::string &path : paths) {
            void *const opened = dlopen(path.c_str(), mode);
            if (!opened) continue;
            std::unique_ptr<const Library> &library = libraries[opened];
            if (!library) {
                auto made = std::make_unique<Library>();
                made->path = path;
                if (!made->find(opened)) continue;
                library = std::move(made);
            }
            return library.get();
        }
    }
    return nullptr;
}

bool Library::find(void *library) {
    bool all = true;
    const auto one = [&](auto &function, const char *name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
        all = all && function;
    };
    one(cublasLtCreate, "cublasLtCreate");
    one(cublasLtDestroy, "cublasLtDestroy");
    one(cublasLtMatmulDescCreate, "cublasLtMatmulDescCreate");
    one(cublasLtMatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
    one(cublasLtMatmulDescDestroy, "cublasLtMatmulDescDestroy");
    one(cublasLtMatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
    one(cublasLtMatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
    one(cublasLtMatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
    one(cublasLtMatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
    one(cublasLtMatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
    one(cublasLtMatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
    one(cublasLtMatmul, "cublasLtMatmul");
    return all;
}

void Library::check(Status status, const char *call) {
    if (status == 0) return;
    throw Error(AKS_ERROR_DRIVER, std::string(call) + " failed with cublasStatus_t " + std::to_string(status));
}

}  // namespace aks::cublaslt
