/* Vectors of floats with Advanced SIMD of aarch64. */
#include <arm_neon.h>

#define VF_LANES 4
typedef float32x4_t vf;

static inline vf vf_zero(void) { return vdupq_n_f32(0.0f); }

static inline vf vf_load(const float *from) { return vld1q_f32(from); }

static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }

static inline float vf_sum(vf x) { return vaddvq_f32(x); }
