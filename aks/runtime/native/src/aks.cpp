// aks.h over Kernels: exceptions become codes and a message of the thread.
#include "../aks.h"

#include <new>
#include <string>

#include "error.hpp"
#include "kernels.hpp"

struct aks_kernels {
    std::unique_ptr<aks::Kernels> kernels;
};

namespace {

thread_local std::string message;

template <typename Call>
int guarded(Call &&call) noexcept {
    try {
        return call();
    } catch (const aks::Error &error) {
        message = error.what();
        return error.code;
    } catch (const std::bad_alloc &) {
        return AKS_ERROR_MEMORY;
    } catch (const std::exception &error) {
        message = error.what();
        return AKS_ERROR_FILE;
    }
}

void require(bool given, const char *what) {
    if (!given) throw aks::Error(AKS_ERROR_ARGUMENT, std::string(what) + " is NULL; pass one");
}

}  // namespace

extern "C" {

int aks_load(const char *folder, int device, aks_kernels **kernels) {
    return guarded([&] {
        require(folder && kernels, "folder or kernels");
        *kernels = nullptr;
        *kernels = new aks_kernels{aks::Kernels::load(folder, device)};
        return AKS_OK;
    });
}

void aks_unload(aks_kernels *kernels) { delete kernels; }

int aks_select(const aks_kernels *kernels, const int64_t *problem, size_t count, int *config) {
    return guarded([&] {
        require(kernels && problem && config, "kernels, problem or config");
        *config = kernels->kernels->select({problem, count});
        return AKS_OK;
    });
}

int aks_launch(aks_kernels *kernels, const int64_t *call, size_t count, void *stream, int *config) {
    return guarded([&] {
        require(kernels && call && config, "kernels, call or config");
        *config = 0;
        const bool launched = kernels->kernels->launch({call, count}, static_cast<aks::cuda::Stream>(stream), *config);
        return launched ? AKS_OK : AKS_NOT_LAUNCHED;
    });
}

int aks_prepare(aks_kernels *kernels, const int64_t *call, size_t count, void *stream, int *config) {
    return guarded([&] {
        require(kernels && call && config, "kernels, call or config");
        *config = 0;
        const bool ready = kernels->kernels->prepare({call, count}, static_cast<aks::cuda::Stream>(stream), *config);
        return ready ? AKS_OK : AKS_NOT_LAUNCHED;
    });
}

size_t aks_problem_count(const aks_kernels *kernels) { return kernels ? kernels->kernels->table().parameters.size() : 0; }

size_t aks_call_count(const aks_kernels *kernels) { return kernels ? kernels->kernels->table().call_values : 0; }

const char *aks_message(void) { return message.c_str(); }
}
