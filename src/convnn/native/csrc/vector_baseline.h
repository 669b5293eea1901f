/* Vectors of floats for any processor: a type of the compiler, whose operations become what the processor has. */
#include <stdint.h>
#include <string.h>

#define VF_LANES 4
typedef float vf __attribute__((vector_size(16)));

static inline vf vf_zero(void) { return (vf){0}; }

static inline vf vf_load(const float *from) {
    vf x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline vf vf_fma(vf a, vf b, vf c) { return a * b + c; }

static inline float vf_sum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }

#define MR 4 /* rows of the register tile */
typedef int32_t vi __attribute__((vector_size(16)));

static inline void vf_store(float *p, vf a) { __builtin_memcpy(p, &a, sizeof a); }

static inline vf vf_all(float a) { return (vf){a, a, a, a}; }

static inline vf vf_pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

static inline vf vf_add(vf a, vf b) { return a + b; }

static inline vf vf_max(vf a, vf b) { return vf_pick(a > b, a, b); }

static inline vf vf_min(vf a, vf b) { return vf_pick(a < b, a, b); }

static inline uint32_t vf_at_least(vf a, vf b) {
    vi m = a >= b;
    return (uint32_t)((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8));
}

static inline vf vf_count_greater(vf count, vf a, vf b) { return count + vf_pick(a > b, vf_all(1), vf_all(0)); }

static inline vf vf_where_less(vf count, vf limit, vf a, vf b) { return vf_pick(count < limit, a, b); }
