/* The kernels of one level, compiled once for each: included by level_*.c after LEVEL_NAME and the vectors.
 * Everything but the table is static: a level must define no other symbol, or the linker could choose the code of
 * another one. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define NR (2 * VF_LANES) /* columns of the register tile, and of a panel */
#define UNROLL _Pragma("GCC unroll 16")

/* Call range on 0 .. count; what fails first is kept. */
static void run_range(int64_t count, range_function range, void *context, atomic_int *failed) {
    int result = parallel_for(0, count, 1, range, context);
    if (result != CONVNN_OK) *failed = result;
}

/* Return 1 if an index is not in 0 .. rows - 1: a compiled program does not check those that it is given. */
static int outside(const int64_t *index, int64_t count, int64_t rows) {
    int64_t sign = 0; /* negative where an index, or its distance from the last row, is */
    for (int64_t i = 0; i < count; i++) sign |= index[i] | (rows - 1 - index[i]);
    return sign < 0;
}

/* Images worked on at a time, so that what is packed of them stays in the last cache. */
static int64_t images_at_a_time(int64_t batch, int64_t numbers) {
    int64_t count = (1 << 21) / (numbers > 0 ? numbers : 1);
    return count < 1 ? 1 : count < batch ? count : batch;
}

#include "row_dots.h"
#include "product.h"
#include "search.h"
#include "euclidean.h"
#include "slots.h"
#include "slots_backward.h"
#include "bags.h"

const struct kernels LEVEL_NAME(convnn_kernels) = {
#define CONVNN_ENTRY(name, parameters, arguments) .name = name,
    CONVNN_KERNELS(CONVNN_ENTRY)
#undef CONVNN_ENTRY
};
