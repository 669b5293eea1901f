/* Vectors of floats with Advanced SIMD of aarch64. */
#include <arm_neon.h>

#define VF_LANES 4
typedef float32x4_t vf;

static inline vf vf_zero(void) { return vdupq_n_f32(0.0f); }

static inline vf vf_load(const float *from) { return vld1q_f32(from); }

static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }

static inline float vf_sum(vf x) { return vaddvq_f32(x); }

#define MR 8 /* rows of the register tile */

static inline void vf_store(float *p, vf a) { vst1q_f32(p, a); }

static inline vf vf_all(float a) { return vdupq_n_f32(a); }

static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }

static inline vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }

static inline vf vf_min(vf a, vf b) { return vminq_f32(a, b); }

static inline uint32_t vf_at_least(vf a, vf b) {
    static const uint32_t bits[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgeq_f32(a, b), vld1q_u32(bits)));
}

static inline vf vf_count_greater(vf count, vf a, vf b) {
    uint32x4_t one = vreinterpretq_u32_f32(vdupq_n_f32(1));
    return vaddq_f32(count, vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(a, b), one)));
}

static inline vf vf_where_less(vf count, vf limit, vf a, vf b) { return vbslq_f32(vcltq_f32(count, limit), a, b); }
