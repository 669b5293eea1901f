/* What the files of the library share; nothing here is exported. */
#ifndef CONVNN_INTERNAL_H
#define CONVNN_INTERNAL_H

#include "convnn.h"

/* The kernels of one level. */
struct kernels {
#define CONVNN_MEMBER(name, parameters, arguments) int(*name) parameters;
    CONVNN_KERNELS(CONVNN_MEMBER)
#undef CONVNN_MEMBER
};

extern const struct kernels convnn_kernels_baseline, convnn_kernels_avx2, convnn_kernels_avx512, convnn_kernels_neon;

/* Call range(begin, end, context) on parts of a range of at least `grain` items, on several threads. A call from
 * inside a range runs in the thread that makes it. Returns CONVNN_OK, or CONVNN_NO_THREADS where PyTorch failed.
 * A range runs on threads whose stacks may be small (512 KiB on macOS): large scratch belongs on the heap. */
typedef void (*range_function)(int64_t begin, int64_t end, void *context);
int parallel_for(int64_t begin, int64_t end, int64_t grain, range_function range, void *context);

/* The most parts that the next parallel_for of this thread makes. */
int parallel_threads(void);

#endif
