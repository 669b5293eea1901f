/* Vectors of floats for any processor: a type of the compiler, whose operations become what the processor has. */
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
