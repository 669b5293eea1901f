/* The kernels of one level, compiled once for each: included by level_*.c after LEVEL_NAME and the vectors.
 * Everything but the table is static: a level must define no other symbol, or the linker could choose the code of
 * another one. */
#include "internal.h"

#include "row_dots.h"

const struct kernels LEVEL_NAME(convnn_kernels) = {
#define CONVNN_ENTRY(name, parameters, arguments) .name = name,
    CONVNN_KERNELS(CONVNN_ENTRY)
#undef CONVNN_ENTRY
};
