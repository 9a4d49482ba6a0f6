/* Which instruction set the loops are in. */
#include "driver.h"

static const loops *chosen = &loops_baseline;
static int level = 0;
#if defined(__x86_64__)
int evonorm_has_bfloat16 = 0;
#endif

/* The instruction set in use: 0 baseline, 1 AVX2, 2 AVX-512, 3 that and conversion to bfloat16. */
int evonorm_level(void) { return level; }

/* Use an instruction set from now on, or a lesser one where the processor lacks it. */
void evonorm_choose(int wanted)
{
    level = 0;
    chosen = &loops_baseline;
#if defined(__x86_64__)
    __builtin_cpu_init();
    evonorm_has_bfloat16 = 0;
    /* f16c, which some compilers cannot ask for, is older than avx2. */
    if (wanted >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        level = 1;
        chosen = &loops_avx2;
    }
    if (wanted >= 2 && level == 1 && __builtin_cpu_supports("avx512f")
        && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl")) {
        level = 2;
        chosen = &loops_avx512;
    }
    if (wanted >= 3 && level == 2 && __builtin_cpu_supports("avx512bf16")) {
        level = 3;
        evonorm_has_bfloat16 = 1;
    }
#else
    (void)wanted;
#endif
}

/* The loops of the instruction set in use. */
const loops *evonorm_loops(void) { return chosen; }

int evonorm_has_openmp(void)
{
#if defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}
