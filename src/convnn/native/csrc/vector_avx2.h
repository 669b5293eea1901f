/* Vectors of floats with AVX2 and FMA. */
#include <immintrin.h>

#define VF_LANES 8
typedef __m256 vf;

static inline vf vf_zero(void) { return _mm256_setzero_ps(); }

static inline vf vf_load(const float *from) { return _mm256_loadu_ps(from); }

static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }

static inline float vf_sum(vf x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
