/* The level avx2: AVX2 and FMA. */
#if !defined(__AVX2__) || !defined(__FMA__)
#error "the level avx2 is for x86-64 processors, compiled with -mavx2 -mfma"
#endif

#define LEVEL_NAME(name) name##_avx2
#include "vector_avx2.h"
#include "kernels.h"
