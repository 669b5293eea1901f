/* The interface of the library: what it exports. Everything else is hidden. */
#ifndef CONVNN_H
#define CONVNN_H

#include <stdint.h>

#define CONVNN_API __attribute__((visibility("default")))

/* What functions return that can fail. */
enum { CONVNN_OK = 0, CONVNN_NO_MEMORY = 1, CONVNN_NO_THREADS = 2 };

/* ------------------------------------------------------------------------------------------------------- the kernels
 * KERNEL(name, parameters, arguments): a function `int convnn_name parameters`. It returns one of the values above.
 * Every level has its own, written once in the headers that kernels.h includes; signatures.py repeats the types for
 * ctypes, and a test compares the two. */
#define CONVNN_KERNELS(KERNEL)                                                                                         \
    /* out[r] = sum over c of a[r,c] b[r,c], for row-major matrices */                                                 \
    KERNEL(row_dots, (const float *a, const float *b, float *out, int64_t rows, int64_t columns),                      \
           (a, b, out, rows, columns))

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
