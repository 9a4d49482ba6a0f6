/* The loops over elements, compiled once for each instruction set.
 *
 * Storage is converted block by block to float, so that there is one version of each formula. Sums
 * are kept in float over a block, which lies in the first-level cache, and in double over blocks.
 * Comparisons are written so that NaN comes out wherever plain arithmetic gives NaN.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "evonorm.h"

#define BLOCK 512  /* elements of a row at a time */
#define WIDTH 64   /* channels at a time, where channels are last */
#define VECTOR 16  /* elements of the longest vector; the numbers above are multiples */
#define TILE 32    /* pixels whose sums are kept in float, where channels are last */
#define INLINE static inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")

INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- storage ---- */

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

/* Loops run over whole vectors: what is left after the last one would take as long as several. A
   span of n numbers that do not fill its vectors is copied into a buffer and filled up there. */
INLINE int64_t filled(int64_t n) { return (n + VECTOR - 1) / VECTOR * VECTOR; }

INLINE int in_place(const problem *p, int64_t n)
{
    return p->dtype == FLOAT32 && n % VECTOR == 0;
}

/* buffer[n] to the end of its vector: x. */
INLINE void fill(float *buffer, int64_t n, float x)
{
    float *last = buffer + n / VECTOR * VECTOR;
    for (int64_t j = 0; j < VECTOR; j++) last[j] = j < n % VECTOR ? last[j] : x;
}

/* n < VECTOR floats. Written at once: otherwise reading them at once would have to wait. */
INLINE void copy_rest(float *to, const float *from, int64_t n)
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

static void load_copy(const problem *p, const void *from, int64_t i, int64_t n, float *buffer)
{
    if (p->dtype == FLOAT32) {
        const float *x = (const float *)from + i;
        int64_t whole = n - n % VECTOR;
        SIMD for (int64_t j = 0; j < whole; j++) buffer[j] = x[j];
        copy_rest(buffer + whole, x + whole, n - whole);
    } else if (p->dtype == FLOAT16) {
        from_float16(buffer, (const uint16_t *)from + i, n);
    } else {
        const uint16_t *h = (const uint16_t *)from + i;
        SIMD for (int64_t j = 0; j < n; j++) buffer[j] = from_bfloat16(h[j]);
    }
}

/* n numbers from index i on as floats: where they are, or in `buffer`, filled up with zeros. */
INLINE const float *load(const problem *p, const void *from, int64_t i, int64_t n, float *buffer)
{
    if (in_place(p, n)) return (const float *)from + i;
    load_copy(p, from, i, n, buffer);
    if (n % VECTOR) fill(buffer, n, 0);
    return buffer;
}

/* The same of x, filled up with its last number: no formula gives NaN there alone, and with the
   zeros of dy nothing is added to sums. */
INLINE const float *load_x(const problem *p, int64_t i, int64_t n, float *buffer)
{
    if (in_place(p, n)) return (const float *)p->x + i;
    load_copy(p, p->x, i, n, buffer);
    if (n % VECTOR) fill(buffer, n, buffer[n - 1]);
    return buffer;
}

INLINE const float *load_dy(const problem *p, int64_t i, int64_t n, float *buffer)
{
    return load(p, p->dy, i, n, buffer);
}

/* Where to write n results from index i on; store() then brings them there. */
INLINE float *place(const problem *p, int64_t i, int64_t n, float *buffer)
{
    return in_place(p, n) ? (float *)p->out + i : buffer;
}

static void store_copy(const problem *p, int64_t i, int64_t n, const float *buffer)
{
    if (p->dtype == FLOAT32) {
        memcpy((float *)p->out + i, buffer, n * sizeof(float));
    } else if (p->dtype == FLOAT16) {
        to_float16((uint16_t *)p->out + i, buffer, n);
    } else {
        uint16_t *h = (uint16_t *)p->out + i;
        SIMD for (int64_t j = 0; j < n; j++) h[j] = to_bfloat16(buffer[j]);
    }
}

INLINE void store(const problem *p, int64_t i, int64_t n, const float *buffer)
{
    if (!in_place(p, n)) store_copy(p, i, n, buffer);
}

/* ---- formulas ---- */

/* exp(-z) with |z| held to where neither it nor 1 / (1 + it) leaves the normal floats. The limit
   is not a constant here: a compiler that knows it makes branches for it, and divides in each. */
INLINE float exp_minus(float z)
{
    z = z > evonorm_exp_limit ? evonorm_exp_limit : z;
    z = z < -evonorm_exp_limit ? -evonorm_exp_limit : z;
    /* exp(-z) = 2^k exp(r), |r| <= ln(2) / 2; adding 1.5 * 2^23 rounds to the integer k. */
    float shifted = z * -1.44269504f + 12582912.0f;
    float k = shifted - 12582912.0f;
    float r = -z - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    /* Taylor's series, the last two coefficients moved to make up for the rest (1.2e-7 at most). */
    float e = 1.3943506e-3f;
    e = e * r + 8.3632385e-3f;
    e = e * r + 4.1666936e-2f;
    e = e * r + 1.6666521e-1f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    return e * float_of((bits_of(shifted) << 23) + 0x3f800000);
}

/* S series: f(x) = x sigmoid(v x). */
INLINE float swish(float x, float v) { return x * (1.0f / (1.0f + exp_minus(v * x))); }

/* f and its derivatives by v and by x. */
INLINE void swish_grad(float x, float v, float *f, float *by_v, float *by_x)
{
    float e = exp_minus(v * x), s = 1.0f / (1.0f + e), other = e * s; /* 1 - s, all digits */
    *f = x * s;
    *by_v = *f * (x * other);
    *by_x = s * (1.0f + v * x * other);
}

/* B series: max(batch, own) with own = slope (x + shift) + offset, of up to WIDTH channels. */
typedef struct {
    float slope[WIDTH], shift[WIDTH], offset[WIDTH];
    float batch[WIDTH]; /* standard deviation over the batch */
    float std[WIDTH];   /* the sample's own, or root of the mean of squares */
} maxima;

static void set_maxima(const problem *p, int64_t n, int64_t c, int64_t width, maxima *m)
{
    for (int64_t k = 0; k < width; k++) {
        int64_t nc = n * p->channels + c + k;
        double square = p->var[nc] + p->eps;
        if (p->kind != B0) square += (double)p->mean[nc] * p->mean[nc];
        float std = m->std[k] = (float)sqrt(square);
        float batch = m->batch[k] = (float)sqrt(p->batch_var[c + k] + p->eps);
        m->slope[k] = p->kind == B0 ? p->v[c + k] : p->kind == B1 ? std : -1.0f;
        m->shift[k] = p->kind == B1 ? 1.0f : 0.0f;
        m->offset[k] = p->kind == B1 ? 0.0f : std;
        /* larger() passes on a NaN of own alone. */
        if (batch != batch) m->offset[k] = batch;
    }
}

INLINE float own_at(const maxima *m, int64_t k, float x)
{
    return m->slope[k] * (x + m->shift[k]) + m->offset[k];
}

INLINE float larger(float batch, float own) { return batch >= own ? batch : own; }

/* q = 1 / max, and how s x q^2, minus the gradient of the maximum for a gradient s of x / max, is
   split between its sides: half to each where both are the same, as in torch. */
INLINE void split_quotient(const maxima *m, int64_t k, float x, float s, float *q, float *to_batch,
                           float *to_own)
{
    float batch = m->batch[k], own = own_at(m, k, x);
    *q = 1.0f / larger(batch, own);
    float g = s * *q * x * *q, some = batch == own ? 0.5f * g : g;
    *to_batch = own > batch ? 0.0f : some;
    *to_own = batch > own ? 0.0f : some;
}

/* `n` numbers, whose deviations from `shift` sum up to s and their squares to ss, join `count`
   others (Chan, Golub, LeVeque 1979). */
INLINE void join(double count, double *mean, double *m2, double n, double shift, double s,
                 double ss, int centred)
{
    if (!centred) {
        *m2 += ss;
        return;
    }
    double offset = s / n, delta = shift + offset - *mean;
    *m2 += ss - s * offset;
    if (count > 0) {
        double share = n / (count + n);
        *m2 += delta * delta * (count * share);
        delta *= share;
    }
    *mean += delta;
}

/* ---- walks ---- */

/* Channels come in parts of one row (pixels of one channel), or of up to WIDTH channels where these
   are last; parts [c, c + width) of the channels [c0, c1), upwards or downwards. Going down where
   another loop went up before finds the newest data in the cache. */
#define PARTS_UP(c, width)                                                                         \
    for (int64_t c = c0, width; c < c1 && (width = part_width(p, c1 - c), 1); c += width)
#define PARTS_DOWN(c, width)                                                                       \
    for (int64_t end_ = c1, c, width;                                                              \
         end_ > c0 && (width = part_width(p, end_ - c0), c = end_ - width, 1); end_ = c)

/* A part is read in spans of adjacent elements: a block of the row, or the channels of one pixel.
   Span number `i` of a part starts at element `at` and has `len` elements, `all` when filled up. */
#define SPANS(i, at, len, all)                                                                     \
    for (int64_t i = 0, at, len, all;                                                              \
         span(p, n, c, width, i, &at, &len) && (all = filled(len), 1); i++)

/* One statement for each element j of a span; k is the index of its channel within the part. */
#define EACH(j, k, ...)                                                                            \
    if (p->channels_last) {                                                                        \
        SIMD for (int64_t j = 0; j < all; j++) { const int64_t k = j; __VA_ARGS__ }                \
    } else {                                                                                       \
        SIMD for (int64_t j = 0; j < all; j++) { const int64_t k = 0; __VA_ARGS__ }                \
    }

/* The same for sums over a row, in lanes l = j % VECTOR. */
#define LANES(j, l, ...)                                                                           \
    for (int64_t first_ = 0; first_ < all; first_ += VECTOR) {                                     \
        SIMD for (int64_t l = 0; l < VECTOR; l++) { const int64_t j = first_ + l; __VA_ARGS__ }    \
    }

/* In vectors of GCC and clang: from loops over a few lanes compilers make long code. */
INLINE float sum_of(const float *lanes)
{
    typedef float half __attribute__((vector_size(8 * sizeof(float))));
    typedef float quarter __attribute__((vector_size(4 * sizeof(float))));
    half low, high;
    memcpy(&low, lanes, sizeof low);
    memcpy(&high, lanes + 8, sizeof high);
    low += high;
    quarter four, rest;
    memcpy(&four, &low, sizeof four);
    memcpy(&rest, (const float *)&low + 4, sizeof rest);
    four += rest;
    return (four[0] + four[2]) + (four[1] + four[3]);
}

INLINE int64_t part_width(const problem *p, int64_t left)
{
    return p->channels_last ? least(WIDTH, left) : 1;
}

INLINE int span(const problem *p, int64_t n, int64_t c, int64_t width, int64_t i, int64_t *at,
                int64_t *len)
{
    if (p->channels_last) {
        *at = (n * p->pixels + i) * p->channels + c;
        *len = width;
        return i < p->pixels;
    }
    *at = (n * p->channels + c) * p->pixels + i * BLOCK;
    *len = least(BLOCK, p->pixels - i * BLOCK);
    return *len > 0;
}

/* Adds sums over a block or a tile, `number` of them for each channel of a part, and clears them. */
static void flush(const problem *p, int64_t n, int64_t c, int64_t width, int number,
                  float sums[][WIDTH])
{
    for (int k = 0; k < number; k++) {
        double *to = p->sums + (k * p->samples + n) * p->channels + c;
        for (int64_t j = 0; j < width; j++) {
            to[j] += sums[k][j];
            sums[k][j] = 0;
        }
    }
}

static void clear(const problem *p, int64_t n, int64_t c, int64_t width, int number)
{
    for (int k = 0; k < number; k++)
        memset(p->sums + (k * p->samples + n) * p->channels + c, 0, width * sizeof(double));
}

INLINE int flushes(const problem *p, int64_t i)
{
    return !p->channels_last || i % TILE == TILE - 1 || i == p->pixels - 1;
}

static void moments_of_row(const problem *p, int64_t n, int64_t c, double *mean, double *m2)
{
    float buffer[BLOCK];
    const int64_t width = 1;
    double count = 0;
    SPANS(i, at, len, all) {
        const float *x = load(p, p->x, at, len, buffer);
        float shift = 0, total[VECTOR] = {0}, s[VECTOR] = {0}, ss[VECTOR] = {0};
        if (p->centred) {
            LANES(j, l, total[l] += x[j];)
            shift = sum_of(total) / (float)len;
            if (x == buffer && len % VECTOR) fill(buffer, len, shift);
        }
        LANES(j, l, float d = x[j] - shift; s[l] += d; ss[l] += d * d;)
        join(count, mean, m2, (double)len, shift, sum_of(s), sum_of(ss), p->centred);
        count += (double)len;
    }
}

static void moments_of_channels(const problem *p, int64_t n, int64_t c, int64_t width, double *mean,
                                double *m2)
{
    float buffer[WIDTH], shift[WIDTH], s[WIDTH], ss[WIDTH];
    const int64_t all = filled(width);
    for (int64_t first = 0; first < p->pixels; first += TILE) {
        int64_t end = least(first + TILE, p->pixels), at, len;
        memset(shift, 0, sizeof shift);
        if (p->centred) {
            for (int64_t i = first; i < end; i++) {
                span(p, n, c, width, i, &at, &len);
                const float *x = load(p, p->x, at, len, buffer);
                SIMD for (int64_t j = 0; j < all; j++) shift[j] += x[j];
            }
            for (int64_t j = 0; j < width; j++) shift[j] /= (float)(end - first);
        }
        memset(s, 0, sizeof s);
        memset(ss, 0, sizeof ss);
        for (int64_t i = first; i < end; i++) {
            span(p, n, c, width, i, &at, &len);
            const float *x = load(p, p->x, at, len, buffer);
            SIMD for (int64_t j = 0; j < all; j++) {
                float d = x[j] - shift[j];
                s[j] += d;
                ss[j] += d * d;
            }
        }
        for (int64_t j = 0; j < width; j++)
            join((double)first, mean + j, m2 + j, (double)(end - first), shift[j], s[j], ss[j],
                 p->centred);
    }
}

static void moments(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    PARTS_UP(c, width) {
        double *mean = p->moments + n * p->channels + c;
        double *m2 = mean + p->samples * p->channels;
        memset(mean, 0, width * sizeof(double));
        memset(m2, 0, width * sizeof(double));
        if (p->channels_last)
            moments_of_channels(p, n, c, width, mean, m2);
        else
            moments_of_row(p, n, c, mean, m2);
    }
}

/* ---- S series ---- */

static void sample_apply(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], ys[BLOCK], v[WIDTH] = {0}, scale[WIDTH] = {0}, bias[WIDTH] = {0};
    PARTS_DOWN(c, width) {
        for (int64_t k = 0; k < width; k++) {
            int64_t affine = n * p->affine_stride + c + k;
            v[k] = p->v ? p->v[c + k] : 1.0f;
            scale[k] = p->weight[affine] * p->rstd[group_of(p, n, c + k)];
            bias[k] = p->bias[affine];
        }
        SPANS(i, at, len, all) {
            const float *x = load_x(p, at, len, xs);
            float *y = place(p, at, len, ys);
            EACH(j, k, y[j] = swish(x[j], v[k]) * scale[k] + bias[k];)
            store(p, at, len, ys);
        }
    }
}

static void sample_reduce(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], dxs[BLOCK], sums[3][WIDTH] = {{0}};
    float v[WIDTH] = {0}, scale[WIDTH] = {0};
    PARTS_UP(c, width) {
        for (int64_t k = 0; k < width; k++) {
            v[k] = p->v ? p->v[c + k] : 1.0f;
            scale[k] = p->weight[n * p->affine_stride + c + k] * p->rstd[group_of(p, n, c + k)];
        }
        clear(p, n, c, width, 3);
        SPANS(i, at, len, all) {
            const float *x = load_x(p, at, len, xs), *dy = load_dy(p, at, len, dys);
            float *dx = p->direct ? place(p, at, len, dxs) : dxs;
            float a[VECTOR] = {0}, b[VECTOR] = {0}, d[VECTOR] = {0};
            if (p->channels_last) {
                SIMD for (int64_t j = 0; j < all; j++) {
                    float f, by_v, by_x;
                    swish_grad(x[j], v[j], &f, &by_v, &by_x);
                    sums[SUM_DY][j] += dy[j];
                    sums[SUM_DY_F][j] += dy[j] * f;
                    sums[SUM_G][j] += dy[j] * by_v;
                    dx[j] = dy[j] * scale[j] * by_x;
                }
            } else {
                LANES(j, l,
                    float f, by_v, by_x;
                    swish_grad(x[j], v[0], &f, &by_v, &by_x);
                    a[l] += dy[j];
                    b[l] += dy[j] * f;
                    d[l] += dy[j] * by_v;
                    dx[j] = dy[j] * scale[0] * by_x;
                )
                sums[SUM_DY][0] = sum_of(a);
                sums[SUM_DY_F][0] = sum_of(b);
                sums[SUM_G][0] = sum_of(d);
            }
            if (p->direct) store(p, at, len, dxs);
            if (flushes(p, i)) flush(p, n, c, width, 3, sums);
        }
    }
}

static void sample_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], dxs[BLOCK];
    float v[WIDTH] = {0}, scale[WIDTH] = {0}, slope[WIDTH] = {0}, mean[WIDTH] = {0};
    PARTS_DOWN(c, width) {
        for (int64_t k = 0; k < width; k++) {
            int64_t group = group_of(p, n, c + k);
            v[k] = p->v ? p->v[c + k] : 1.0f;
            scale[k] = p->weight[n * p->affine_stride + c + k] * p->rstd[group];
            slope[k] = p->group_grad[group];
            mean[k] = p->mean[group];
        }
        SPANS(i, at, len, all) {
            const float *x = load_x(p, at, len, xs), *direct = dxs;
            float *dx = place(p, at, len, dxs);
            if (p->direct) {
                direct = load(p, p->out, at, len, dxs);
            } else {
                const float *dy = load_dy(p, at, len, dys);
                EACH(j, k,
                    float f, by_v, by_x;
                    swish_grad(x[j], v[k], &f, &by_v, &by_x);
                    dxs[j] = dy[j] * scale[k] * by_x;
                )
            }
            EACH(j, k, dx[j] = direct[j] + slope[k] * (x[j] - mean[k]);)
            store(p, at, len, dxs);
        }
    }
}

/* ---- B series ---- */

static void batch_apply(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], ys[BLOCK], weight[WIDTH] = {0}, bias[WIDTH] = {0};
    maxima m = {{0}, {0}, {0}, {0}, {0}};
    PARTS_DOWN(c, width) {
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        memcpy(bias, p->bias + n * p->affine_stride + c, width * sizeof(float));
        set_maxima(p, n, c, width, &m);
        SPANS(i, at, len, all) {
            const float *x = load_x(p, at, len, xs);
            float *y = place(p, at, len, ys);
            EACH(j, k, y[j] = x[j] / larger(m.batch[k], own_at(&m, k, x[j])) * weight[k]
                              + bias[k];)
            store(p, at, len, ys);
        }
    }
}

static void batch_reduce(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], dxs[BLOCK], weight[WIDTH] = {0}, sums[SUMS][WIDTH] = {{0}};
    maxima m = {{0}, {0}, {0}, {0}, {0}};
    PARTS_UP(c, width) {
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        set_maxima(p, n, c, width, &m);
        clear(p, n, c, width, SUMS);
        SPANS(i, at, len, all) {
            const float *x = load_x(p, at, len, xs), *dy = load_dy(p, at, len, dys);
            float *dx = p->direct ? place(p, at, len, dxs) : dxs;
            float a[VECTOR] = {0}, b[VECTOR] = {0}, d[VECTOR] = {0};
            float e[VECTOR] = {0}, f[VECTOR] = {0};
            if (p->channels_last) {
                SIMD for (int64_t j = 0; j < all; j++) {
                    float q, to_batch, to_own;
                    split_quotient(&m, j, x[j], dy[j], &q, &to_batch, &to_own);
                    sums[SUM_DY][j] += dy[j];
                    sums[SUM_DY_F][j] += dy[j] * x[j] * q;
                    sums[SUM_G][j] += to_batch;
                    sums[SUM_G_OWN][j] += to_own;
                    sums[SUM_GX_OWN][j] += to_own * x[j];
                    dx[j] = weight[j] * (dy[j] * q - m.slope[j] * to_own);
                }
            } else {
                LANES(j, l,
                    float q, to_batch, to_own;
                    split_quotient(&m, 0, x[j], dy[j], &q, &to_batch, &to_own);
                    a[l] += dy[j];
                    b[l] += dy[j] * x[j] * q;
                    d[l] += to_batch;
                    e[l] += to_own;
                    f[l] += to_own * x[j];
                    dx[j] = weight[0] * (dy[j] * q - m.slope[0] * to_own);
                )
                sums[SUM_DY][0] = sum_of(a);
                sums[SUM_DY_F][0] = sum_of(b);
                sums[SUM_G][0] = sum_of(d);
                sums[SUM_G_OWN][0] = sum_of(e);
                sums[SUM_GX_OWN][0] = sum_of(f);
            }
            if (p->direct) store(p, at, len, dxs);
            if (flushes(p, i)) flush(p, n, c, width, SUMS, sums);
        }
    }
}

static void batch_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], dxs[BLOCK];
    float weight[WIDTH] = {0}, own_mean[WIDTH] = {0}, own_scale[WIDTH] = {0};
    float batch_mean[WIDTH] = {0}, batch_scale[WIDTH] = {0};
    maxima m = {{0}, {0}, {0}, {0}, {0}};
    PARTS_DOWN(c, width) {
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        set_maxima(p, n, c, width, &m);
        for (int64_t k = 0; k < width; k++) {
            int64_t nc = n * p->channels + c + k;
            own_mean[k] = p->kind == B0 ? p->mean[nc] : 0.0f;
            own_scale[k] = p->std_grad[nc] / (m.std[k] * (float)p->pixels);
            batch_mean[k] = p->batch_mean ? p->batch_mean[c + k] : 0.0f;
            batch_scale[k] = p->batch_mean ? p->batch_var_grad[c + k] * *p->batch_scale : 0.0f;
        }
        SPANS(i, at, len, all) {
            const float *x = load_x(p, at, len, xs), *direct = dxs;
            float *dx = place(p, at, len, dxs);
            if (p->direct) {
                direct = load(p, p->out, at, len, dxs);
            } else {
                const float *dy = load_dy(p, at, len, dys);
                EACH(j, k,
                    float q, to_batch, to_own;
                    split_quotient(&m, k, x[j], dy[j], &q, &to_batch, &to_own);
                    dxs[j] = weight[k] * (dy[j] * q - m.slope[k] * to_own);
                )
            }
            EACH(j, k, dx[j] = direct[j] + own_scale[k] * (x[j] - own_mean[k])
                               + batch_scale[k] * (x[j] - batch_mean[k]);)
            store(p, at, len, dxs);
        }
    }
}

/* ---- affine transform ---- */

static void affine_apply(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], ys[BLOCK], weight[WIDTH] = {0}, bias[WIDTH] = {0};
    PARTS_UP(c, width) {
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        memcpy(bias, p->bias + n * p->affine_stride + c, width * sizeof(float));
        SPANS(i, at, len, all) {
            const float *x = load_x(p, at, len, xs);
            float *y = place(p, at, len, ys);
            EACH(j, k, y[j] = x[j] * weight[k] + bias[k];)
            store(p, at, len, ys);
        }
    }
}

static void affine_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], dxs[BLOCK], weight[WIDTH] = {0}, sums[2][WIDTH] = {{0}};
    PARTS_UP(c, width) {
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        clear(p, n, c, width, 2);
        SPANS(i, at, len, all) {
            const float *x = load_x(p, at, len, xs), *dy = load_dy(p, at, len, dys);
            float *dx = place(p, at, len, dxs), a[VECTOR] = {0}, b[VECTOR] = {0};
            if (p->channels_last) {
                SIMD for (int64_t j = 0; j < all; j++) {
                    sums[SUM_DY][j] += dy[j];
                    sums[SUM_DY_F][j] += dy[j] * x[j];
                    dx[j] = dy[j] * weight[j];
                }
            } else {
                const float scale = weight[0];
                LANES(j, l, a[l] += dy[j]; b[l] += dy[j] * x[j]; dx[j] = dy[j] * scale;)
                sums[SUM_DY][0] = sum_of(a);
                sums[SUM_DY_F][0] = sum_of(b);
            }
            store(p, at, len, dxs);
            if (flushes(p, i)) flush(p, n, c, width, 2, sums);
        }
    }
}

const loops LOOPS = {moments,     sample_apply, sample_reduce, sample_grad,
                     batch_apply, batch_reduce, batch_grad,    affine_apply, affine_grad};
