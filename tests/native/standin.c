/*
 * A stand-in for the CUDA driver: libcuda.so.1 as far as aks uses it. It launches nothing and remembers what it
 * was asked. A cubin is text here; what it has after "params=" are the bytes of the function's parameters.
 * STANDIN_LOG names a file that gets a line for each launch; standin_last() is the last of these lines.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned grid[3], block[3], shared; void *stream; struct { int id; char pad[4]; char value[64]; } *attributes; unsigned count; } Config;

static int version = 13000, capability = 90, sm_count = 132, capturing, device = 0;
static int modules, allocations, encodings, quiet, failing_after = -1;
static char failing[64];
static void *current;
static _Thread_local char last[8192];
static _Thread_local int capture_mode;  // of the thread: 0 global, 2 relaxed

static int answer(const char *call) {
    if (failing_after < 0 || strcmp(call, failing)) return 0;
    return failing_after-- == 0 ? 999 : 0;
}

void standin_set(int new_version, int new_capability, int new_sm_count) {
    version = new_version, capability = new_capability, sm_count = new_sm_count;
}
void standin_quiet(int on) { quiet = on; }  // launches cost nothing: to time what is around them
void standin_capture(int on) { capturing = on; }
void standin_fail(const char *call, int after) { snprintf(failing, sizeof failing, "%s", call); failing_after = after; }
int standin_capture_mode(void) { return capture_mode; }
int standin_encodings(void) { return encodings; }
int standin_modules(void) { return modules; }
int standin_allocations(void) { return allocations; }
const char *standin_last(void) { return last; }

int cuInit(unsigned flags) { (void)flags; return answer("cuInit"); }
int cuDriverGetVersion(int *value) { *value = version; return 0; }
int cuGetErrorString(int result, const char **text) { *text = result == 999 ? "made up" : "other"; return 0; }
int cuDeviceGet(int *handle, int ordinal) { *handle = ordinal; return ordinal < 2 ? 0 : 101; }
int cuDeviceGetAttribute(int *value, int attribute, int handle) {
    (void)handle;
    switch (attribute) {
        case 16: *value = sm_count; return 0;
        case 75: *value = capability / 10; return 0;
        case 76: *value = capability % 10; return 0;
        case 97: *value = 232448; return 0;
    }
    return 1;
}
int cuDevicePrimaryCtxRetain(void **context, int handle) { *context = (void *)(intptr_t)(handle + 1); return 0; }
int cuDevicePrimaryCtxRelease_v2(int handle) { (void)handle; return 0; }
int cuCtxGetCurrent(void **context) { *context = current; return 0; }
int cuCtxGetDevice(int *handle) { *handle = device; return 0; }
int cuCtxPushCurrent_v2(void *context) { current = context; return 0; }
int standin_has_context(void) { return current != NULL; }
int cuCtxPopCurrent_v2(void **context) { *context = current; current = NULL; return 0; }
int cuModuleLoadData(void **module, const void *image) {
    const int result = answer("cuModuleLoadData");
    if (result) return result;
    const char *text = image;
    if (memcmp(text, "\x7f" "ELF", 4)) return 200;
    *module = malloc(256);
    strncpy(*module, text + 5, 255);
    ((char *)*module)[255] = 0;
    ++modules;
    return 0;
}
int cuModuleUnload(void *module) { free(module); --modules; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { (void)name; *function = module; return answer("cuModuleGetFunction"); }
int cuFuncSetAttribute(void *function, int attribute, int value) { (void)function, (void)value; return attribute == 8 ? 0 : 1; }
int cuFuncSetCacheConfig(void *function, int config) { (void)function; return config == 1 ? 0 : 1; }
int cuFuncLoad(void *function) { (void)function; return 0; }
int cuMemAlloc_v2(unsigned long long *pointer, size_t bytes) {
    (void)bytes;
    const int result = answer("cuMemAlloc");
    if (!result) *pointer = 0x7000000000ull + 0x10000000ull * (unsigned)++allocations;
    return result;
}
int cuMemFree_v2(unsigned long long pointer) { (void)pointer; --allocations; return 0; }
int cuMemsetD8Async(unsigned long long pointer, unsigned char value, size_t bytes, void *stream) { (void)pointer, (void)bytes, (void)stream; return value; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)1; return flags == 1 ? 0 : 1; }
int cuStreamDestroy_v2(void *stream) { (void)stream; return 0; }
int cuStreamSynchronize(void *stream) { (void)stream; return 0; }
int cuStreamIsCapturing(void *stream, int *status) { (void)stream; *status = capturing; return 0; }
int cuThreadExchangeStreamCaptureMode(int *mode) { const int before = capture_mode; capture_mode = *mode; *mode = before; return 0; }
int cuTensorMapEncodeTiled(uint64_t *map, int type, uint32_t rank, void *address, const uint64_t *shape, const uint64_t *strides,
                           const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int promotion, int fill) {
    if (rank != 2 || interleave || promotion != 2 || fill || steps[0] != 1 || steps[1] != 1) return 1;
    const uint64_t words[] = {(uint64_t)(uintptr_t)address, ~0ull, shape[0], shape[1], strides[0], box[0], box[1], (uint64_t)type, (uint64_t)swizzle};
    ++encodings;
    memset(map, 0, 128);
    memcpy(map, words, sizeof words);
    return answer("cuTensorMapEncodeTiled");
}
int cuLaunchKernelEx(const Config *config, void *function, void **arguments, void **extra) {
    if (quiet) return 0;
    const int result = answer("cuLaunchKernelEx");
    if (result || extra) return result ? result : 1;
    const char *code = function, *sizes = strstr(code, "params=");
    int length = snprintf(last, sizeof last, "grid=%u block=%u shared=%u stream=%llu early=%d | %.*s |", config->grid[0], config->block[0],
                          config->shared, (unsigned long long)(uintptr_t)config->stream,
                          config->count ? config->attributes[0].id == 6 && config->attributes[0].value[0] == 1 : 0,
                          (int)strcspn(code, "|"), code);
    char *next = (char *)sizes + strlen("params=");
    for (int index = 0; sizes; ++index) {
        const long bytes = strtol(next, &next, 10);
        if (bytes == 128) {
            const uint64_t *words = arguments[index];
            length += snprintf(last + length, sizeof last - length, " map");
            for (int word = 0; word < 9; ++word) length += snprintf(last + length, sizeof last - length, ",%llx", (unsigned long long)words[word]);
        } else if (bytes == 4) {
            length += snprintf(last + length, sizeof last - length, " %d", *(int32_t *)arguments[index]);
        } else {
            length += snprintf(last + length, sizeof last - length, " %lld", (long long)*(int64_t *)arguments[index]);
        }
        if (*next != ',') break;
        ++next;
    }
    const char *path = getenv("STANDIN_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (log) { fprintf(log, "%s\n", last); fclose(log); }
    return 0;
}
