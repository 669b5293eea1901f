/* Vectors of floats with AVX2 and FMA. */
#include <immintrin.h>
#include <stdint.h>

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

#define MR 6 /* rows of the register tile */

static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }

static inline vf vf_all(float a) { return _mm256_set1_ps(a); }

static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }

static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }

static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }

static inline uint32_t vf_at_least(vf a, vf b) { return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }

static inline vf vf_count_greater(vf count, vf a, vf b) {
    return _mm256_add_ps(count, _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), _mm256_set1_ps(1)));
}

static inline vf vf_where_less(vf count, vf limit, vf a, vf b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(count, limit, _CMP_LT_OQ));
}
