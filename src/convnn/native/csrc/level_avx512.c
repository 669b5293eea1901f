/* The level avx512: AVX-512 F, DQ, BW and VL. */
#if !defined(__AVX512F__) || !defined(__AVX512DQ__) || !defined(__AVX512BW__) || !defined(__AVX512VL__)
#error "the level avx512 is for x86-64 processors, compiled with -mavx512f -mavx512dq -mavx512bw -mavx512vl"
#endif

#define LEVEL_NAME(name) name##_avx512
#include "vector_avx512.h"
#include "kernels.h"
