/* The level of every processor. */
#define LEVEL_NAME(name) name##_baseline
#include "vector_baseline.h"
#include "kernels.h"
