/* Vectors of floats with AVX-512. */
#include <immintrin.h>
#include <stdint.h>

#define VF_LANES 16
typedef __m512 vf;

static inline vf vf_zero(void) { return _mm512_setzero_ps(); }

static inline vf vf_load(const float *from) { return _mm512_loadu_ps(from); }

static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }

static inline float vf_sum(vf x) { return _mm512_reduce_add_ps(x); }

#define MR 14 /* rows of the register tile */

static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }

static inline vf vf_all(float a) { return _mm512_set1_ps(a); }

static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }

static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }

static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }

static inline uint32_t vf_at_least(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
/* count + 1 in the lanes where a > b */

static inline vf vf_count_greater(vf count, vf a, vf b) {
    return _mm512_mask_add_ps(count, _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), count, _mm512_set1_ps(1));
}
/* a in the lanes where count < limit, elsewhere b */

static inline vf vf_where_less(vf count, vf limit, vf a, vf b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(count, limit, _CMP_LT_OQ), b, a);
}
