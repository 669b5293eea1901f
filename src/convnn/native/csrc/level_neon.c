/* The level neon: Advanced SIMD of aarch64. */
#if !defined(__aarch64__)
#error "the level neon is for aarch64 processors"
#endif

#define LEVEL_NAME(name) name##_neon
#include "vector_neon.h"
#include "kernels.h"
