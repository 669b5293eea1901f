/* The interface of the library: what it exports. Everything else is hidden. */
#ifndef CONVNN_H
#define CONVNN_H

#include <stdint.h>

#define CONVNN_API __attribute__((visibility("default")))

/* What functions return that can fail. */
enum { CONVNN_OK = 0, CONVNN_NO_MEMORY = 1, CONVNN_NO_THREADS = 2, CONVNN_BAD_INDEX = 3 };

enum { CONVNN_MOST_K = 32 };

/* A search: the k keys with the largest <query, key> + bias, equal ones lowest index first. Strides of a tensor
 * (B, rows, C) in elements; every other array is contiguous, and NULL where there is none. */
struct convnn_search {
    int64_t batch, queries, keys, channels, k;
    const float *query, *key;
    const float *bias;     /* (B, keys) */
    const uint8_t *masked; /* (B, keys): 1 for keys that may not be chosen */
    const int64_t *skip;   /* (queries): one more such key per query, or -1 */
    int64_t *index;        /* (B, queries, k), the result */
    int64_t query_stride[3], key_stride[3];
};

/* A search by Euclidean distance: the smallest factor^2 |query - key|^2 + |query_position - key_position|^2. */
struct convnn_euclidean {
    int64_t batch, queries, keys, channels, axes, k;
    const float *query, *key;                   /* (B, queries, C), (B, keys, C) */
    const float *factor;                        /* (B); read where there are axes */
    const float *query_position, *key_position; /* (queries, axes), (keys, axes) */
    const uint8_t *masked;
    const int64_t *skip;
    int64_t *index;
};

/* Aggregation by slot matrices: result[n] = sum over m < k of rho[n,m] W_m value[index[n,m]], and its gradients, of which
 * those that are NULL are not computed. Forward, the bias is added, and row added_index[n,m] * added_k + m of a table
 * for every m < added_k. */
struct convnn_slots {
    int64_t batch, queries, values, channels, out, k, added_rows, added_k;
    const float *value, *weight, *rho, *grad; /* (B, values, C), (out, C, k), (B, queries, k), (B, queries, out) */
    const int64_t *index;                     /* (B, queries, k) */
    const float *bias, *added;                /* (out), (B, added_rows, out), or NULL */
    const int64_t *added_index;               /* (B, queries, added_k) */
    float *result;                            /* (B, queries, out) */
    float *grad_value, *grad_weight, *grad_rho;
    int64_t value_stride[3], weight_stride[3], grad_stride[3], result_stride[3];
    int64_t grad_value_stride[3], grad_weight_stride[3];
};

/* Rows of a table by index, one bag of k a query: bags.h has the sums that use it. Of every tensor but the source of a
 * scatter the channels are contiguous. */
struct convnn_bags {
    int64_t batch, queries, rows, channels, k;
    int64_t by_slot;               /* 1: row index * k + m of the table, in place of row index */
    const float *table, *source;   /* (B, rows, C), (B, queries, C) */
    const float *weight, *vectors; /* (B, queries, k), (k, C), or NULL for ones */
    const int64_t *index;          /* (B, queries, k) */
    float *result;                 /* contiguous: (B, queries, C), (B, rows, C), (B, queries, k) or (k, C) */
    int64_t table_stride[3], source_stride[3];
};

/* ------------------------------------------------------------------------------------------------------- the kernels
 * KERNEL(name, parameters, arguments): a function `int convnn_name parameters`. It returns one of the values above.
 * Every level has its own, written once in the headers that kernels.h includes; signatures.py repeats the types for
 * ctypes, and a test compares the two. */
#define CONVNN_KERNELS(KERNEL)                                                                                         \
    /* out[r] = sum over c of a[r,c] b[r,c], for row-major matrices */                                                 \
    KERNEL(row_dots, (const float *a, const float *b, float *out, int64_t rows, int64_t columns),                      \
           (a, b, out, rows, columns))                                                                                 \
    KERNEL(search, (const struct convnn_search *problem), (problem))                                                   \
    KERNEL(search_euclidean, (const struct convnn_euclidean *problem), (problem))                                      \
    KERNEL(slot_mix, (const struct convnn_slots *problem), (problem))                                                  \
    KERNEL(slot_mix_backward, (const struct convnn_slots *problem), (problem))                                         \
    KERNEL(bag_sum, (const struct convnn_bags *problem), (problem))                                                    \
    KERNEL(bag_scatter, (const struct convnn_bags *problem), (problem))                                                \
    KERNEL(pair_product, (const struct convnn_bags *problem), (problem))                                               \
    KERNEL(pair_distance, (const struct convnn_bags *problem), (problem))                                              \
    KERNEL(vector_gradient, (const struct convnn_bags *problem), (problem))

#define CONVNN_DECLARE(name, parameters, arguments) CONVNN_API int convnn_##name parameters;
CONVNN_KERNELS(CONVNN_DECLARE)
#undef CONVNN_DECLARE

/* --------------------------------------------------------------------------------------------------------- the levels
 * A level is a set of instructions: "baseline", "avx2", "avx512" or "neon". The first one in use is "baseline". */
enum { CONVNN_LEVEL_UNKNOWN = -1, CONVNN_LEVEL_THERE = 0, CONVNN_LEVEL_NOT_COMPILED = 1, CONVNN_LEVEL_NO_PROCESSOR = 2 };

/* Whether a level can be used, as above. */
CONVNN_API int convnn_level_status(const char *name);
/* Let all kernels use a level. Returns its status; the level is changed only if that is CONVNN_LEVEL_THERE. */
CONVNN_API int convnn_set_level(const char *name);
CONVNN_API const char *convnn_level(void);

/* -------------------------------------------------------------------------------------------------------- the threads
 * Hand over the addresses of PyTorch's torch_parallel_for and torch_get_num_threads: kernels then run on its threads.
 * Without the first (NULL) they start threads of their own, as many as the second says. */
CONVNN_API void convnn_use_torch(void *parallel_for, void *get_num_threads);
/* How many threads this thread may use where neither address is known; 1 until it is set. */
CONVNN_API void convnn_set_threads(int threads);
CONVNN_API int convnn_threads(void);

#endif
