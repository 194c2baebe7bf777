/*
 * A stand-in for cuBLASLt: what aks uses of it. It computes nothing and remembers what it was asked: every
 * description in full, so that two callers can be compared. An algorithm carries the hash of the query that gave it.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char kind; uint64_t values[16]; } Object;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; } Result;

static int found_limit = 100, quiet, unusable, query_status, matmul_status;
static int (*probe)(void);
static atomic_int objects;
static _Thread_local char query[4096], last[4096];
static _Thread_local int probed[2];

void standin_lt_set(int found, int bits, int of_query, int of_matmul) {
    found_limit = found, unusable = bits, query_status = of_query, matmul_status = of_matmul;
}
void standin_lt_quiet(int on) { quiet = on; }
void standin_lt_probe(void *function) { probe = (int (*)(void))function; }
int standin_lt_probed(int which) { return probed[which]; }
int standin_lt_objects(void) { return objects; }
const char *standin_lt_query(void) { return query; }
const char *standin_lt_last(void) { return last; }

static int create(void **object, char kind, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    Object *made = calloc(1, sizeof *made);
    *made = (Object){kind, {a, b, c, d}};
    *object = made;
    ++objects;
    return 0;
}
static int destroy(void *object) { free(object); --objects; return 0; }
static int set(Object *object, int attribute, const void *value, size_t bytes) {
    if (attribute < 0 || attribute > 11 || (bytes != 4 && bytes != 8)) return 7;
    memcpy(&object->values[4 + attribute], value, bytes);
    return 0;
}
static int show(char *text, size_t size, const Object *object) {
    int length = snprintf(text, size, " %c", object->kind);
    for (int at = 0; at < 16; ++at) length += snprintf(text + length, size - (size_t)length, ",%llu", (unsigned long long)object->values[at]);
    return length;
}

int cublasLtCreate(void **handle) { return create(handle, 'H', 0, 0, 0, 0); }
int cublasLtDestroy(void *handle) { return destroy(handle); }
int cublasLtMatmulDescCreate(void **object, int compute, int scale) { return create(object, 'O', (uint64_t)compute, (uint64_t)scale, 0, 0); }
int cublasLtMatmulDescSetAttribute(void *object, int attribute, const void *value, size_t bytes) { return set(object, attribute, value, bytes); }
int cublasLtMatmulDescDestroy(void *object) { return destroy(object); }
int cublasLtMatrixLayoutCreate(void **object, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return create(object, 'L', (uint64_t)type, rows, columns, (uint64_t)stride);
}
int cublasLtMatrixLayoutDestroy(void *object) { return destroy(object); }
int cublasLtMatmulPreferenceCreate(void **object) { return create(object, 'P', 0, 0, 0, 0); }
int cublasLtMatmulPreferenceSetAttribute(void *object, int attribute, const void *value, size_t bytes) { return set(object, attribute, value, bytes); }
int cublasLtMatmulPreferenceDestroy(void *object) { return destroy(object); }

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int wanted,
                                   Result *results, int *found) {
    const Object *all[] = {handle, operation, a, b, c, d, preference};
    int length = snprintf(query, sizeof query, "wanted=%d", wanted);
    for (int at = 0; at < 7; ++at) length += show(query + length, sizeof query - (size_t)length, all[at]);
    if (probe) probed[0] = probe();
    if (query_status) return query_status;
    uint64_t hash = 1469598103934665603u;
    for (const char *at = query; *at; ++at) hash = (hash ^ (unsigned char)*at) * 1099511628211u;
    *found = wanted < found_limit ? wanted : found_limit;
    for (int at = 0; at < *found; ++at) {
        results[at] = (Result){{{(uint64_t)at, hash, 2, 3, 4, 5, 6, 7}}, 4096u * (size_t)at, unusable >> at & 1, 0.5f, {0}};
    }
    return 0;
}
int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm *algorithm, int attribute, void *value, size_t size, size_t *written) {
    (void)algorithm, (void)attribute, (void)value, (void)size, (void)written;
    return 7;
}
int cublasLtMatmul(void *handle, void *operation, const float *alpha, const void *a, void *a_layout, const void *b, void *b_layout,
                   const float *beta, const void *c, void *c_layout, void *d, void *d_layout, const Algorithm *algorithm,
                   void *workspace, size_t workspace_bytes, void *stream) {
    if (quiet) return 0;
    const Object *all[] = {handle, operation, a_layout, b_layout, c_layout, d_layout};
    int length = snprintf(last, sizeof last, "alpha=%g beta=%g a=%p b=%p c=%p d=%p workspace=%p,%zu stream=%p algorithm=", *alpha, *beta, a, b, c, d,
                          workspace, workspace_bytes, stream);
    for (int at = 0; at < 8; ++at) length += snprintf(last + length, sizeof last - (size_t)length, "%llx,", (unsigned long long)algorithm->data[at]);
    for (int at = 0; at < 6; ++at) length += show(last + length, sizeof last - (size_t)length, all[at]);
    if (probe) probed[1] = probe();
    return matmul_status;
}
