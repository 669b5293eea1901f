/* The choice of a level, and the exported kernels, which call those of the level in use.
 * Compiled without any level's flags: it runs on every processor. */
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* The parts of the processor's state that the system saves: bits 1 and 2 for AVX, and 5 to 7 for AVX-512. */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Read from cpuid itself: __builtin_cpu_supports needs a part of libgcc that other compilers do not bring. */
static int processor_has(uint32_t state, int wants_fma, uint32_t features) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || (saved_state() & state) != state)
        return 0;
    if (wants_fma && !(c & bit_FMA))
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & features) == features;
}

static int has_avx2(void) { return processor_has(0x06, 1, bit_AVX2); }

static int has_avx512(void) {
    return processor_has(0xe6, 1, bit_AVX2 | bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL);
}
#endif

#if defined(__aarch64__)
static int has_neon(void) { return 1; } /* every aarch64 processor has it */
#endif

static int has_baseline(void) { return 1; }

/* build.py defines CONVNN_WITH_x for the levels that the compiler could compile. */
struct level {
    const char *name;
    const struct kernels *kernels; /* NULL: not compiled */
    int (*processor_has)(void);
};

static const struct level levels[] = {
    {"baseline", &convnn_kernels_baseline, has_baseline},
#ifdef CONVNN_WITH_AVX2
    {"avx2", &convnn_kernels_avx2, has_avx2},
#else
    {"avx2", NULL, NULL},
#endif
#ifdef CONVNN_WITH_AVX512
    {"avx512", &convnn_kernels_avx512, has_avx512},
#else
    {"avx512", NULL, NULL},
#endif
#ifdef CONVNN_WITH_NEON
    {"neon", &convnn_kernels_neon, has_neon},
#else
    {"neon", NULL, NULL},
#endif
};

static _Atomic(const struct level *) current = &levels[0];

static const struct level *find(const char *name) {
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (strcmp(levels[i].name, name) == 0)
            return &levels[i];
    return NULL;
}

static int status(const struct level *level) {
    if (!level)
        return CONVNN_LEVEL_UNKNOWN;
    if (!level->kernels)
        return CONVNN_LEVEL_NOT_COMPILED;
    return level->processor_has() ? CONVNN_LEVEL_THERE : CONVNN_LEVEL_NO_PROCESSOR;
}

int convnn_level_status(const char *name) { return status(find(name)); }

int convnn_set_level(const char *name) {
    const struct level *level = find(name);
    int found = status(level);
    if (found == CONVNN_LEVEL_THERE)
        atomic_store(&current, level);
    return found;
}

const char *convnn_level(void) { return atomic_load(&current)->name; }

#define CONVNN_CALL(name, parameters, arguments)                                                                       \
    int convnn_##name parameters { return atomic_load(&current)->kernels->name arguments; }
CONVNN_KERNELS(CONVNN_CALL)
