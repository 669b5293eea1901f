/* Vectors of floats with AVX-512. */
#include <immintrin.h>

#define VF_LANES 16
typedef __m512 vf;

static inline vf vf_zero(void) { return _mm512_setzero_ps(); }

static inline vf vf_load(const float *from) { return _mm512_loadu_ps(from); }

static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }

static inline float vf_sum(vf x) { return _mm512_reduce_add_ps(x); }
