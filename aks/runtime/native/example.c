/*
 * Runs one product through aks.h: loads a folder, selects, launches, and says what it did.
 *
 *     cc example.c -I. -L. -laks -Wl,-rpath,'$ORIGIN' -o example
 *     ./example bundles/gemm/h200 16 4096 4096
 *
 * The operands are made with the driver itself, through the few functions declared here.
 */
#include <stdio.h>
#include <stdlib.h>

#include "aks.h"

extern int cuInit(unsigned flags);
extern int cuDevicePrimaryCtxRetain(void **context, int device);
extern int cuCtxPushCurrent_v2(void *context);
extern int cuMemAlloc_v2(unsigned long long *pointer, size_t bytes);
extern int cuStreamSynchronize(void *stream);

static void check(int failed, const char *what) {
    if (failed) {
        fprintf(stderr, "%s: %s\n", what, aks_message());
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: %s FOLDER M N K\n", argv[0]);
        return 2;
    }
    const int64_t m = atoll(argv[2]), n = atoll(argv[3]), k = atoll(argv[4]);
    unsigned long long x, w, out;
    void *context;
    aks_kernels *kernels;
    int config = -1;

    check(cuInit(0) || cuDevicePrimaryCtxRetain(&context, 0) || cuCtxPushCurrent_v2(context), "no GPU");
    check(aks_load(argv[1], 0, &kernels), "aks_load");

    /* The parameters of op gemm: m, n, k, dtype (0: bf16), w_layout (0: [N, K]), alignment, static_weights. */
    const int64_t problem[] = {m, n, k, 0, 0, 16, 1};
    check(aks_select(kernels, problem, sizeof problem / sizeof *problem, &config), "aks_select");
    printf("selected config %d\n", config);

    check(cuMemAlloc_v2(&x, (size_t)(2 * m * k)) || cuMemAlloc_v2(&w, (size_t)(2 * n * k)) ||
              cuMemAlloc_v2(&out, (size_t)(2 * m * n)), "no memory");
    const int64_t call[] = {m, n, k, 0, 0, 1, (int64_t)x, (int64_t)w, (int64_t)out, k, k, n};
    const int status = aks_launch(kernels, call, sizeof call / sizeof *call, NULL, &config);
    check(status != AKS_OK && status != AKS_NOT_LAUNCHED, "aks_launch");
    check(cuStreamSynchronize(NULL), "the kernel failed");
    printf("%s config %d\n", status == AKS_OK ? "launched" : "left to the vendor's library:", config);
    aks_unload(kernels);
    return 0;
}
