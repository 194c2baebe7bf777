#include "driver.hpp"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>

#include "error.hpp"

namespace aks::cuda {

const Driver &Driver::open(const std::string &path) {
    static std::mutex mutex;
    static std::map<std::string, std::unique_ptr<const Driver>> drivers;
    const std::scoped_lock lock(mutex);
    std::unique_ptr<const Driver> &driver = drivers[path];
    if (!driver) driver.reset(new Driver(path));
    return *driver;
}

Driver::Driver(const std::string &path) {
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        throw Error(AKS_ERROR_DRIVER, "the CUDA driver " + path + " cannot be opened (" + (why ? why : "no reason") +
                                          "); install NVIDIA's driver, or serve on a machine that has it");
    }
    const auto find = [&](auto &function, const char *name, bool optional = false) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
        if (!function && !optional) {
            throw Error(AKS_ERROR_DRIVER, path + " has no " + name + "; kernels of aks need a driver of CUDA 12 or newer");
        }
    };
    find(cuInit, "cuInit");
    find(cuDriverGetVersion, "cuDriverGetVersion");
    find(cuGetErrorString, "cuGetErrorString");
    find(cuDeviceGet, "cuDeviceGet");
    find(cuDeviceGetAttribute, "cuDeviceGetAttribute");
    find(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
    find(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2");
    find(cuCtxGetCurrent, "cuCtxGetCurrent");
    find(cuCtxGetDevice, "cuCtxGetDevice");
    find(cuCtxPushCurrent, "cuCtxPushCurrent_v2");
    find(cuCtxPopCurrent, "cuCtxPopCurrent_v2");
    find(cuModuleLoadData, "cuModuleLoadData");
    find(cuModuleUnload, "cuModuleUnload");
    find(cuModuleGetFunction, "cuModuleGetFunction");
    find(cuFuncSetAttribute, "cuFuncSetAttribute");
    find(cuFuncSetCacheConfig, "cuFuncSetCacheConfig");
    find(cuFuncLoad, "cuFuncLoad", true);
    find(cuMemAlloc, "cuMemAlloc_v2");
    find(cuMemFree, "cuMemFree_v2");
    find(cuMemsetD8Async, "cuMemsetD8Async");
    find(cuStreamCreate, "cuStreamCreate");
    find(cuStreamDestroy, "cuStreamDestroy_v2");
    find(cuStreamSynchronize, "cuStreamSynchronize");
    find(cuStreamIsCapturing, "cuStreamIsCapturing");
    find(cuThreadExchangeStreamCaptureMode, "cuThreadExchangeStreamCaptureMode");
    find(cuTensorMapEncodeTiled, "cuTensorMapEncodeTiled", true);
    find(cuLaunchKernelEx, "cuLaunchKernelEx");
}

void Driver::check(Result result, const char *call) const {
    if (result == 0) return;
    const char *text = nullptr;
    cuGetErrorString(result, &text);
    throw Error(AKS_ERROR_DRIVER, std::string(call) + " failed with " + std::to_string(result) + " (" +
                                      (text ? text : "unknown error") + ")");
}

}  // namespace aks::cuda
