/* Vectors of the length that the instruction set has, and how the numbers of a tensor get into them
 * and out again. Included by loops.h.
 *
 * In GCC's vector extension, which clang has as well: `+ - * /` are element by element. What it has
 * no operators for (least of two, selection, part of a vector) is here for each instruction set.
 */
#include <stddef.h>
#include <string.h>

#include "evonorm.h"

#if defined(EVONORM_AVX512)
#define LANES 16
#elif defined(EVONORM_AVX2)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

INLINE vec splat(float x) { return x - (vec){0}; }

/* ---- comparison, selection ---- */

#if defined(EVONORM_AVX512)
typedef __mmask16 truths;
INLINE truths greater(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE truths equal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE truths first_lanes(int n) { return (truths)((1u << n) - 1); }
INLINE vec where(truths which, vec a, vec b) { return _mm512_mask_blend_ps(which, b, a); }
/* a < b ? a : b and a > b ? a : b: the second where either is NaN. */
INLINE vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
#else
typedef ints truths;
INLINE truths greater(vec a, vec b) { return a > b; }
INLINE truths equal(vec a, vec b) { return a == b; }
INLINE truths first_lanes(int n)
{
    ints lane;
    for (int l = 0; l < LANES; l++) lane[l] = l;
    return lane < n;
}
INLINE vec where(truths which, vec a, vec b)
{
    return (vec)((which & (ints)a) | (~which & (ints)b));
}
#if defined(EVONORM_AVX2)
INLINE vec smaller(vec a, vec b) { return _mm256_min_ps(a, b); }
INLINE vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }
#else
INLINE vec smaller(vec a, vec b) { return where(a < b, a, b); }
INLINE vec larger(vec a, vec b) { return where(a > b, a, b); }
#endif
#endif

/* x, which the compiler then does not join with a sum into one operation. For what is either kept or
   computed again, by the number of threads: the bits are the same. */
INLINE vec rounded(vec x)
{
#if defined(__x86_64__) || defined(__aarch64__)
#if defined(EVONORM_AVX512)
    __asm__("" : "+v"(x));
#elif defined(__x86_64__)
    __asm__("" : "+x"(x));
#else
    __asm__("" : "+w"(x));
#endif
#endif
    return x;
}

/* The lanes before n; zero in the others. */
INLINE vec only(vec x, int n) { return n == LANES ? x : where(first_lanes(n), x, splat(0)); }

INLINE float sum_of(vec x)
{
#if defined(EVONORM_AVX512)
    return _mm512_reduce_add_ps(x);
#else
#if defined(EVONORM_AVX2)
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
#else
    vec four = x;
#endif
    return (four[0] + four[2]) + (four[1] + four[3]);
#endif
}

#if defined(EVONORM_AVX512)
/* t - floor(t), and x 2^floor(t). */
INLINE vec fraction(vec t)
{
    return _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
INLINE vec times_power(vec x, vec t) { return _mm512_scalef_ps(x, t); }
#endif

/* ---- half precision ---- */

#if defined(EVONORM_AVX512)
INLINE vec from_bfloat16(halves h)
{
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
}
#else
INLINE vec from_bfloat16(halves h) { return (vec)(__builtin_convertvector(h, bits) << 16); }
#endif

INLINE halves to_bfloat16(vec x)
{
#if defined(EVONORM_AVX512)
    if (evonorm_has_bfloat16) return (halves)_mm512_cvtneps_pbh(x);
    /* GCC would make vectors of the comparison's and the conversion's results. */
    __m512i u = (__m512i)x, odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    return (halves)_mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#else
    bits u = (bits)x, rounded = u + 0x7fff + (u >> 16 & 1);
    bits nan = (bits)(x != x);
    return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded >> 16), halves);
#endif
}

#if defined(EVONORM_AVX512)
INLINE vec from_float16(halves h) { return _mm512_cvtph_ps((__m256i)h); }
INLINE halves to_float16(vec x) { return (halves)_mm512_cvtps_ph(x, 0); }
#elif defined(EVONORM_AVX2)
INLINE vec from_float16(halves h) { return _mm256_cvtph_ps((__m128i)h); }
INLINE halves to_float16(vec x) { return (halves)_mm256_cvtps_ph(x, 0); }
#else
INLINE vec from_float16(halves h)
{
    bits u = __builtin_convertvector(h, bits), sign = (u & 0x8000) << 16, rest = u & 0x7fff;
    /* The exponent is off by 127 - 15; a product gets subnormal numbers right as well. */
    bits finite = (bits)((vec)(rest << 13) * 0x1p112f), special = rest << 13 | 0x7f800000;
    bits is_special = (bits)(rest >= 0x7c00);
    return (vec)(sign | (is_special & special) | (~is_special & finite));
}

INLINE halves to_float16(vec x)
{
    bits u = (bits)x, sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    /* Numbers near 0.5 are multiples of float16's least number, 2^-24: the sum rounds to it. */
    bits subnormal = (bits)((vec)u + 0.5f) - 0x3f000000;
    bits normal = (u - (112u << 23) + 0xfff + (u >> 13 & 1)) >> 13;
    bits is_subnormal = (bits)(u < 113u << 23), is_special = (bits)(u >= 0x477ff000);
    bits is_nan = (bits)(u > 0x7f800000);
    bits finite = (is_subnormal & subnormal) | (~is_subnormal & normal);
    bits special = 0x7c00 | (is_nan & 0x200);
    return __builtin_convertvector(sign | (is_special & special) | (~is_special & finite), halves);
}
#endif

/* ---- memory ---- */

/* Lanes [0, n) of what lies at `from`; zero in the others. Nothing beyond is read. */
INLINE vec load_floats(const float *from, int n)
{
    vec x = {0};
    if (n == LANES)
        memcpy(&x, from, sizeof x);
    else
#if defined(EVONORM_AVX512)
        x = _mm512_maskz_loadu_ps(first_lanes(n), from);
#elif defined(EVONORM_AVX2)
        x = _mm256_maskload_ps(from, (__m256i)first_lanes(n));
#else
        for (int l = 0; l < LANES - 1; l++)
            if (l < n) x[l] = from[l];
#endif
    return x;
}

INLINE void store_floats(float *to, int n, vec x)
{
    if (n == LANES)
        memcpy(to, &x, sizeof x);
    else
#if defined(EVONORM_AVX512)
        _mm512_mask_storeu_ps(to, first_lanes(n), x);
#elif defined(EVONORM_AVX2)
        _mm256_maskstore_ps(to, (__m256i)first_lanes(n), x);
#else
        for (int l = 0; l < LANES - 1; l++)
            if (l < n) to[l] = x[l];
#endif
}

INLINE halves load_halves(const uint16_t *from, int n)
{
    halves h = {0};
    if (n == LANES)
        memcpy(&h, from, sizeof h);
    else
#if defined(EVONORM_AVX512)
        h = (halves)_mm256_maskz_loadu_epi16(first_lanes(n), from);
#else
        for (int l = 0; l < LANES - 1; l++)
            if (l < n) h[l] = from[l];
#endif
    return h;
}

INLINE void store_halves(uint16_t *to, int n, halves h)
{
    if (n == LANES)
        memcpy(to, &h, sizeof h);
    else
#if defined(EVONORM_AVX512)
        _mm256_mask_storeu_epi16(to, first_lanes(n), (__m256i)h);
#else
        for (int l = 0; l < LANES - 1; l++)
            if (l < n) to[l] = h[l];
#endif
}

/* n numbers from element `at` of a tensor. */
INLINE vec load(int dtype, const void *base, int64_t at, int n)
{
    if (dtype == FLOAT32) return load_floats((const float *)base + at, n);
    halves h = load_halves((const uint16_t *)base + at, n);
    return dtype == BFLOAT16 ? from_bfloat16(h) : from_float16(h);
}

INLINE void store(int dtype, void *base, int64_t at, int n, vec x)
{
    if (dtype == FLOAT32)
        store_floats((float *)base + at, n, x);
    else
        store_halves((uint16_t *)base + at, n, dtype == BFLOAT16 ? to_bfloat16(x) : to_float16(x));
}

INLINE const void *address(int dtype, const void *base, int64_t at)
{
    return (const void *)((uintptr_t)base + (uintptr_t)at * (dtype == FLOAT32 ? 4 : 2));
}

/* Asks for the memory of element `at`, which may lie outside of the tensor, into the first-level or
   the second-level cache. */
INLINE void ask(int dtype, const void *base, int64_t at)
{
    __builtin_prefetch(address(dtype, base, at), 0, 3);
}

INLINE void ask_early(int dtype, const void *base, int64_t at)
{
    __builtin_prefetch(address(dtype, base, at), 0, 2);
}
