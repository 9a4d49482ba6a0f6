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
#define TILE 32    /* pixels whose sums are kept in float, where channels are last */
#define INLINE static inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")
#define SIMD_SUM(...) _Pragma(STRING(omp simd reduction(+ : __VA_ARGS__)))
#define STRING(...) #__VA_ARGS__

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

#if defined(EVONORM_F16C)
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

/* n numbers of x from index i on, as floats: where they are, or converted into `buffer`. */
static const float *load(const problem *p, const void *x, int64_t i, int64_t n, float *buffer)
{
    if (p->dtype == FLOAT32) return (const float *)x + i;
    const uint16_t *from = (const uint16_t *)x + i;
    if (p->dtype == FLOAT16) {
        from_float16(buffer, from, n);
    } else {
        SIMD for (int64_t j = 0; j < n; j++) buffer[j] = from_bfloat16(from[j]);
    }
    return buffer;
}

/* Where to write n results from index i on; store() then brings them there. */
static float *place(const problem *p, int64_t i, float *buffer)
{
    return p->dtype == FLOAT32 ? (float *)p->out + i : buffer;
}

static void store(const problem *p, int64_t i, int64_t n, const float *buffer)
{
    if (p->dtype == FLOAT32) return;
    uint16_t *to = (uint16_t *)p->out + i;
    if (p->dtype == FLOAT16) {
        to_float16(to, buffer, n);
    } else {
        SIMD for (int64_t j = 0; j < n; j++) to[j] = to_bfloat16(buffer[j]);
    }
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

/* f and x^2 sigmoid'(v x), the derivative of f by v. */
INLINE void swish_by_v(float x, float v, float *f, float *g)
{
    float e = exp_minus(v * x), s = 1.0f / (1.0f + e);
    *f = x * s;
    *g = *f * (x * (e * s)); /* e s is 1 - s without its loss of digits */
}

INLINE float swish_by_x(float x, float v)
{
    float z = v * x, e = exp_minus(z), s = 1.0f / (1.0f + e);
    return s * (1.0f + z * (e * s));
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

/* The gradient g of a maximum: half goes to each side where both are the same, as in torch. */
INLINE void split(float g, float batch, float own, float *to_batch, float *to_own)
{
    float some = batch == own ? 0.5f * g : g;
    *to_batch = own > batch ? 0.0f : some;
    *to_own = batch > own ? 0.0f : some;
}

/* s times the derivative of x / max by x: the statistics in max held fixed. */
INLINE float quotient_by_x(const maxima *m, int64_t k, float x, float s)
{
    float own = own_at(m, k, x), q = 1.0f / larger(m->batch[k], own), to_batch, to_own;
    split(s * q * x * q, m->batch[k], own, &to_batch, &to_own);
    return s * q - m->slope[k] * to_own;
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
    double delta = shift + s / n - *mean, total = count + n;
    *m2 += ss - s * s / n + delta * delta * (count * n / total);
    *mean += delta * (n / total);
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
   Span number `i` of a part starts at element `at`. */
#define SPANS(i, at, len)                                                                          \
    for (int64_t i = 0, at, len; span(p, n, c, width, i, &at, &len); i++)

/* One statement for each element j of a span; k is the index of its channel within the part. */
#define EACH(j, k, ...)                                                                            \
    if (p->channels_last) {                                                                        \
        SIMD for (int64_t j = 0; j < len; j++) { const int64_t k = j; __VA_ARGS__ }                \
    } else {                                                                                       \
        SIMD for (int64_t j = 0; j < len; j++) { const int64_t k = 0; __VA_ARGS__ }                \
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
    SPANS(i, at, len) {
        const float *x = load(p, p->x, at, len, buffer);
        float shift = 0, s = 0, ss = 0;
        if (p->centred) {
            SIMD_SUM(s) for (int64_t j = 0; j < len; j++) s += x[j];
            shift = s / (float)len;
            s = 0;
        }
        SIMD_SUM(s, ss) for (int64_t j = 0; j < len; j++) {
            float d = x[j] - shift;
            s += d;
            ss += d * d;
        }
        join(count, mean, m2, (double)len, shift, s, ss, p->centred);
        count += (double)len;
    }
}

static void moments_of_channels(const problem *p, int64_t n, int64_t c, int64_t width, double *mean,
                                double *m2)
{
    float buffer[WIDTH], shift[WIDTH], s[WIDTH], ss[WIDTH];
    for (int64_t first = 0; first < p->pixels; first += TILE) {
        int64_t end = least(first + TILE, p->pixels), at, len;
        memset(shift, 0, sizeof shift);
        if (p->centred) {
            for (int64_t i = first; i < end; i++) {
                span(p, n, c, width, i, &at, &len);
                const float *x = load(p, p->x, at, len, buffer);
                SIMD for (int64_t j = 0; j < len; j++) shift[j] += x[j];
            }
            for (int64_t j = 0; j < width; j++) shift[j] /= (float)(end - first);
        }
        memset(s, 0, sizeof s);
        memset(ss, 0, sizeof ss);
        for (int64_t i = first; i < end; i++) {
            span(p, n, c, width, i, &at, &len);
            const float *x = load(p, p->x, at, len, buffer);
            SIMD for (int64_t j = 0; j < len; j++) {
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
    float xs[BLOCK], ys[BLOCK], v[WIDTH], scale[WIDTH], bias[WIDTH];
    PARTS_DOWN(c, width) {
        for (int64_t k = 0; k < width; k++) {
            int64_t affine = n * p->affine_stride + c + k;
            v[k] = p->v ? p->v[c + k] : 1.0f;
            scale[k] = p->weight[affine] * p->rstd[group_of(p, n, c + k)];
            bias[k] = p->bias[affine];
        }
        SPANS(i, at, len) {
            const float *x = load(p, p->x, at, len, xs);
            float *y = place(p, at, ys);
            EACH(j, k, y[j] = swish(x[j], v[k]) * scale[k] + bias[k];)
            store(p, at, len, ys);
        }
    }
}

static void sample_reduce(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], v[WIDTH], sums[3][WIDTH] = {{0}};
    PARTS_UP(c, width) {
        for (int64_t k = 0; k < width; k++) v[k] = p->v ? p->v[c + k] : 1.0f;
        clear(p, n, c, width, 3);
        SPANS(i, at, len) {
            const float *x = load(p, p->x, at, len, xs), *dy = load(p, p->dy, at, len, dys);
            float a = 0, b = 0, d = 0;
            if (p->channels_last) {
                SIMD for (int64_t j = 0; j < len; j++) {
                    float f, g;
                    swish_by_v(x[j], v[j], &f, &g);
                    sums[SUM_DY][j] += dy[j];
                    sums[SUM_DY_F][j] += dy[j] * f;
                    sums[SUM_G][j] += dy[j] * g;
                }
            } else {
                SIMD_SUM(a, b, d) for (int64_t j = 0; j < len; j++) {
                    float f, g;
                    swish_by_v(x[j], v[0], &f, &g);
                    a += dy[j];
                    b += dy[j] * f;
                    d += dy[j] * g;
                }
                sums[SUM_DY][0] = a, sums[SUM_DY_F][0] = b, sums[SUM_G][0] = d;
            }
            if (flushes(p, i)) flush(p, n, c, width, 3, sums);
        }
    }
}

static void sample_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], dxs[BLOCK], v[WIDTH], scale[WIDTH], slope[WIDTH], mean[WIDTH];
    PARTS_DOWN(c, width) {
        for (int64_t k = 0; k < width; k++) {
            int64_t group = group_of(p, n, c + k);
            v[k] = p->v ? p->v[c + k] : 1.0f;
            scale[k] = p->weight[n * p->affine_stride + c + k] * p->rstd[group];
            slope[k] = p->group_grad[group];
            mean[k] = p->mean[group];
        }
        SPANS(i, at, len) {
            const float *x = load(p, p->x, at, len, xs), *dy = load(p, p->dy, at, len, dys);
            float *dx = place(p, at, dxs);
            EACH(j, k, dx[j] = dy[j] * scale[k] * swish_by_x(x[j], v[k])
                               + slope[k] * (x[j] - mean[k]);)
            store(p, at, len, dxs);
        }
    }
}

/* ---- B series ---- */

static void batch_apply(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], ys[BLOCK];
    maxima m;
    PARTS_DOWN(c, width) {
        const float *weight = p->weight + n * p->affine_stride + c;
        const float *bias = p->bias + n * p->affine_stride + c;
        set_maxima(p, n, c, width, &m);
        SPANS(i, at, len) {
            const float *x = load(p, p->x, at, len, xs);
            float *y = place(p, at, ys);
            EACH(j, k, y[j] = x[j] / larger(m.batch[k], own_at(&m, k, x[j])) * weight[k]
                              + bias[k];)
            store(p, at, len, ys);
        }
    }
}

static void batch_reduce(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], sums[SUMS][WIDTH] = {{0}};
    maxima m;
    PARTS_UP(c, width) {
        set_maxima(p, n, c, width, &m);
        clear(p, n, c, width, SUMS);
        SPANS(i, at, len) {
            const float *x = load(p, p->x, at, len, xs), *dy = load(p, p->dy, at, len, dys);
            float a = 0, b = 0, d = 0, e = 0, f = 0;
            if (p->channels_last) {
                SIMD for (int64_t j = 0; j < len; j++) {
                    float own = own_at(&m, j, x[j]), q = 1.0f / larger(m.batch[j], own);
                    float t = dy[j] * x[j] * q, to_batch, to_own;
                    split(t * q, m.batch[j], own, &to_batch, &to_own);
                    sums[SUM_DY][j] += dy[j];
                    sums[SUM_DY_F][j] += t;
                    sums[SUM_G][j] += to_batch;
                    sums[SUM_G_OWN][j] += to_own;
                    sums[SUM_GX_OWN][j] += to_own * x[j];
                }
            } else {
                SIMD_SUM(a, b, d, e, f) for (int64_t j = 0; j < len; j++) {
                    float own = own_at(&m, 0, x[j]), q = 1.0f / larger(m.batch[0], own);
                    float t = dy[j] * x[j] * q, to_batch, to_own;
                    split(t * q, m.batch[0], own, &to_batch, &to_own);
                    a += dy[j];
                    b += t;
                    d += to_batch;
                    e += to_own;
                    f += to_own * x[j];
                }
                sums[SUM_DY][0] = a, sums[SUM_DY_F][0] = b, sums[SUM_G][0] = d;
                sums[SUM_G_OWN][0] = e, sums[SUM_GX_OWN][0] = f;
            }
            if (flushes(p, i)) flush(p, n, c, width, SUMS, sums);
        }
    }
}

static void batch_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], dxs[BLOCK];
    float own_mean[WIDTH], own_scale[WIDTH], batch_mean[WIDTH], batch_scale[WIDTH];
    maxima m;
    PARTS_DOWN(c, width) {
        const float *weight = p->weight + n * p->affine_stride + c;
        set_maxima(p, n, c, width, &m);
        for (int64_t k = 0; k < width; k++) {
            int64_t nc = n * p->channels + c + k;
            own_mean[k] = p->kind == B0 ? p->mean[nc] : 0.0f;
            own_scale[k] = p->std_grad[nc] / (m.std[k] * (float)p->pixels);
            batch_mean[k] = p->batch_mean ? p->batch_mean[c + k] : 0.0f;
            batch_scale[k] = p->batch_mean ? p->batch_var_grad[c + k] * *p->batch_scale : 0.0f;
        }
        SPANS(i, at, len) {
            const float *x = load(p, p->x, at, len, xs), *dy = load(p, p->dy, at, len, dys);
            float *dx = place(p, at, dxs);
            EACH(j, k, dx[j] = quotient_by_x(&m, k, x[j], dy[j] * weight[k])
                               + own_scale[k] * (x[j] - own_mean[k])
                               + batch_scale[k] * (x[j] - batch_mean[k]);)
            store(p, at, len, dxs);
        }
    }
}

/* ---- affine transform ---- */

static void affine_apply(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], ys[BLOCK];
    PARTS_UP(c, width) {
        const float *weight = p->weight + n * p->affine_stride + c;
        const float *bias = p->bias + n * p->affine_stride + c;
        SPANS(i, at, len) {
            const float *x = load(p, p->x, at, len, xs);
            float *y = place(p, at, ys);
            EACH(j, k, y[j] = x[j] * weight[k] + bias[k];)
            store(p, at, len, ys);
        }
    }
}

static void affine_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    float xs[BLOCK], dys[BLOCK], dxs[BLOCK], sums[2][WIDTH] = {{0}};
    PARTS_UP(c, width) {
        const float *weight = p->weight + n * p->affine_stride + c;
        clear(p, n, c, width, 2);
        SPANS(i, at, len) {
            const float *x = load(p, p->x, at, len, xs), *dy = load(p, p->dy, at, len, dys);
            float *dx = place(p, at, dxs), a = 0, b = 0;
            if (p->channels_last) {
                SIMD for (int64_t j = 0; j < len; j++) {
                    sums[SUM_DY][j] += dy[j];
                    sums[SUM_DY_F][j] += dy[j] * x[j];
                    dx[j] = dy[j] * weight[j];
                }
            } else {
                const float scale = weight[0];
                SIMD_SUM(a, b) for (int64_t j = 0; j < len; j++) {
                    a += dy[j];
                    b += dy[j] * x[j];
                    dx[j] = dy[j] * scale;
                }
                sums[SUM_DY][0] = a, sums[SUM_DY_F][0] = b;
            }
            store(p, at, len, dxs);
            if (flushes(p, i)) flush(p, n, c, width, 2, sums);
        }
    }
}

const loops LOOPS = {moments,     sample_apply, sample_reduce, sample_grad,
                     batch_apply, batch_reduce, batch_grad,    affine_apply, affine_grad};
