/* How the numbers of a tensor are reached: as floats, in whole vectors. Included by loops.h. */
#include <stddef.h>
#include <string.h>

#include "evonorm.h"

#define BLOCK 512  /* elements of a row at a time */
#define WIDTH 64   /* channels at a time, where channels are last */
#define VECTOR 16  /* elements of the longest vector; the numbers above are multiples */
#define INLINE static inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")

INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE float from_bfloat16(uint16_t h) { return float_of((uint32_t)h << 16); }

INLINE uint16_t to_bfloat16(float x)
{
    uint32_t u = bits_of(x);
    uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0 : rounded);
}

#if defined(EVONORM_AVX2) || defined(EVONORM_AVX512)
static void from_float16(float *to, const uint16_t *from, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
    for (; i < n; i++) to[i] = _cvtsh_ss(from[i]);
}

static void to_float16(uint16_t *to, const float *from, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
    for (; i < n; i++) to[i] = _cvtss_sh(from[i], 0);
}
#else
static void from_float16(float *to, const uint16_t *from, int64_t n)
{
    SIMD for (int64_t i = 0; i < n; i++) {
        uint32_t sign = (uint32_t)(from[i] & 0x8000) << 16, rest = from[i] & 0x7fff;
        /* The exponent is off by 127 - 15; a product gets subnormal numbers right as well. */
        uint32_t finite = bits_of(float_of(rest << 13) * 0x1p112f);
        uint32_t special = rest << 13 | 0x7f800000;
        to[i] = float_of(sign | (rest >= 0x7c00 ? special : finite));
    }
}

static void to_float16(uint16_t *to, const float *from, int64_t n)
{
    SIMD for (int64_t i = 0; i < n; i++) {
        uint32_t u = bits_of(from[i]), sign = u >> 16 & 0x8000;
        u &= 0x7fffffff;
        /* Numbers near 0.5 are multiples of float16's least number, 2^-24: the sum rounds to it. */
        uint32_t subnormal = bits_of(float_of(u) + 0.5f) - 0x3f000000;
        uint32_t normal = (u - (112u << 23) + 0xfff + (u >> 13 & 1)) >> 13;
        uint32_t finite = u < 113u << 23 ? subnormal : normal;
        uint32_t special = u > 0x7f800000 ? 0x7e00 : 0x7c00;
        to[i] = (uint16_t)(sign | (u >= 0x477ff000 ? special : finite));
    }
}
#endif

/* A span of adjacent elements comes in two pieces: floats that fill whole vectors, where they are;
   and what is left, or all in other dtypes, converted into buffers and filled up there. Without this
   the loops would end in single elements, which take as long as several vectors. A piece holds
   the elements [from, to) of the span, counted from the start of the span in all three. */
typedef struct {
    const float *x, *dy;
    float *out;
    int64_t from, to;
} piece;

typedef struct {
    float x[BLOCK], dy[BLOCK], out[BLOCK];
} buffers;

static void convert_in(const problem *p, const void *from, int64_t at, int64_t n, float *to)
{
    if (p->dtype == FLOAT16) {
        from_float16(to, (const uint16_t *)from + at, n);
    } else {
        const uint16_t *h = (const uint16_t *)from + at;
        SIMD for (int64_t j = 0; j < n; j++) to[j] = from_bfloat16(h[j]);
    }
}

static void convert_out(const problem *p, const float *from, int64_t at, int64_t n)
{
    if (p->dtype == FLOAT16) {
        to_float16((uint16_t *)p->out + at, from, n);
    } else {
        uint16_t *h = (uint16_t *)p->out + at;
        SIMD for (int64_t j = 0; j < n; j++) h[j] = to_bfloat16(from[j]);
    }
}

/* n < VECTOR floats. Written at once: otherwise reading them at once would have to wait. */
INLINE void rest_in(const float *from, int64_t n, float *to)
{
#if defined(EVONORM_AVX512)
    _mm512_storeu_ps(to, _mm512_maskz_loadu_ps((__mmask16)((1 << n) - 1), from));
#elif defined(EVONORM_AVX2)
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), count = _mm256_set1_epi32((int)n);
    _mm256_storeu_ps(to, _mm256_maskload_ps(from, _mm256_cmpgt_epi32(count, lane)));
    lane = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
    _mm256_storeu_ps(to + 8, _mm256_maskload_ps(from + 8, _mm256_cmpgt_epi32(count, lane)));
#else
    memcpy(to, from, n * sizeof(float));
#endif
}

INLINE void rest_out(const float *from, int64_t n, float *to)
{
#if defined(EVONORM_AVX512)
    _mm512_mask_storeu_ps(to, (__mmask16)((1 << n) - 1), _mm512_loadu_ps(from));
#else
    memcpy(to, from, n * sizeof(float));
#endif
}

/* The elements of the buffer from n on to the end of the vector: x. */
INLINE void fill(float *buffer, int64_t n, float x)
{
    float *last = buffer + n / VECTOR * VECTOR;
    if (n % VECTOR)
        for (int64_t j = 0; j < VECTOR; j++) last[j] = j < n % VECTOR ? last[j] : x;
}

INLINE int64_t whole_vectors(const problem *p, int64_t n)
{
    return p->dtype == FLOAT32 ? n - n % VECTOR : 0;
}

/* The pieces of the n elements from `at` on of p->x, of `dy` (null, p->dy or p->out), and of the
   results, which go to the buffer unless `keep`. dy is filled up with zeros, which add nothing to
   sums, and x beside it with its last element, so that no formula gives NaN there alone. */
INLINE void open_span(const problem *p, const void *dy, int keep, int64_t at, int64_t n, buffers *b,
                      piece *in_place, piece *copy)
{
    int64_t whole = whole_vectors(p, n), rest = n - whole;
    in_place->x = (const float *)p->x + at;
    in_place->dy = (const float *)dy + at;
    in_place->out = keep ? (float *)p->out + at : b->out;
    in_place->from = 0;
    in_place->to = whole;
    copy->x = b->x;
    copy->dy = b->dy;
    copy->out = b->out;
    copy->from = whole;
    copy->to = 0;
    if (!rest) return;
    copy->to = (n + VECTOR - 1) / VECTOR * VECTOR;
    if (p->dtype == FLOAT32) {
        rest_in((const float *)p->x + at + whole, rest, b->x + whole);
        if (dy) rest_in((const float *)dy + at + whole, rest, b->dy + whole);
    } else {
        convert_in(p, p->x, at, n, b->x);
        if (dy) convert_in(p, dy, at, n, b->dy);
    }
    fill(b->x, n, dy || keep ? b->x[n - 1] : 0);
    if (dy) fill(b->dy, n, 0);
}

/* Brings results in the buffer to where they belong. */
INLINE void close_span(const problem *p, int64_t at, int64_t n, const buffers *b)
{
    int64_t whole = whole_vectors(p, n);
    if (whole == n) return;
    if (p->dtype == FLOAT32)
        rest_out(b->out + whole, n - whole, (float *)p->out + at + whole);
    else
        convert_out(p, b->out, at, n);
}
