#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#endif
/* bf16 in vectors.h alone, where the processor has it. */
#include <immintrin.h>
#define EVONORM_AVX512

#include "evonorm.h"

#define LOOPS loops_avx512
#include "loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int not_for_this_processor;
#endif
