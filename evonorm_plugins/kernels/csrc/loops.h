/* The loops over elements, compiled once for each instruction set.
 *
 * Sums are kept in float over a block, which lies in the first-level cache, and in double over
 * blocks. Comparisons are written so that NaN comes out wherever plain arithmetic gives NaN.
 */
#include <math.h>

#include "storage.h"

#define TILE 32 /* pixels whose sums are kept in float, where channels are last */
#define AHEAD 512 /* floats between what is read and what is asked for, where rows adjoin */

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

/* A part is read in spans: a block of the row, or the channels of one pixel. Span number `i` of a
   part has `len` elements from element `at` on. */
#define SPANS(i, at, len)                                                                          \
    for (int64_t i = 0, at, len; span(p, n, c, width, i, &at, &len); i++)

/* The two pieces of a span, see open_span(). */
#define OPEN(dy_source, keep)                                                                      \
    piece in_place_, copy_;                                                                        \
    open_span(p, dy_source, keep, at, len, &b, &in_place_, &copy_)

/* Statements for each element j of the pieces; k is the index of its channel within the part. */
#define EACH(j, k, ...)                                                                            \
    EACH_OF_PIECE(in_place_, j, k, __VA_ARGS__)                                                    \
    if (copy_.to) EACH_OF_PIECE(copy_, j, k, __VA_ARGS__)
#define EACH_OF_PIECE(piece, j, k, ...)                                                            \
    {                                                                                              \
        const float *x = piece.x, *dy = piece.dy;                                                  \
        float *out = piece.out;                                                                    \
        (void)x, (void)dy, (void)out;                                                              \
        if (p->channels_last) {                                                                    \
            SIMD for (int64_t j = piece.from; j < piece.to; j++) {                                 \
                const int64_t k = j;                                                               \
                __VA_ARGS__                                                                        \
            }                                                                                      \
        } else {                                                                                   \
            SIMD for (int64_t j = piece.from; j < piece.to; j++) {                                 \
                const int64_t k = 0;                                                               \
                __VA_ARGS__                                                                        \
            }                                                                                      \
        }                                                                                          \
    }

/* The same for sums: those of a channel are in element l where channels are last, and otherwise in
   VECTOR elements, see flush(). */
#define EACH_SUM(j, k, l, ...)                                                                     \
    EACH_SUM_OF_PIECE(in_place_, j, k, l, __VA_ARGS__)                                             \
    if (copy_.to) EACH_SUM_OF_PIECE(copy_, j, k, l, __VA_ARGS__)
#define EACH_SUM_OF_PIECE(piece, j, k, l, ...)                                                     \
    {                                                                                              \
        const float *x = piece.x, *dy = piece.dy;                                                  \
        float *out = piece.out;                                                                    \
        (void)x, (void)dy, (void)out;                                                              \
        if (p->channels_last) {                                                                    \
            SIMD for (int64_t j = piece.from; j < piece.to; j++) {                                 \
                const int64_t k = j, l = j;                                                        \
                (void)k;                                                                           \
                __VA_ARGS__                                                                        \
            }                                                                                      \
        } else {                                                                                   \
            for (int64_t first_ = piece.from; first_ < piece.to; first_ += VECTOR) {               \
                SIMD for (int64_t l = 0; l < VECTOR; l++) {                                        \
                    const int64_t k = 0, j = first_ + l;                                           \
                    (void)k;                                                                       \
                    __VA_ARGS__                                                                    \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
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

/* Adds the sums over a block, or over a tile of pixels, to those of the problem, and clears them. */
INLINE void flush(const problem *p, int64_t n, int64_t c, int64_t width, int64_t i, int number,
                  float sums[][WIDTH])
{
    if (p->channels_last && i % TILE != TILE - 1 && i != p->pixels - 1) return;
    const int first = i < (p->channels_last ? TILE : 1);
    for (int which = 0; which < number; which++) {
        double *to = p->sums + (which * p->samples + n) * p->channels + c;
        float *from = sums[which];
        if (p->channels_last) {
            for (int64_t j = 0; j < width; j++) to[j] = from[j] + (first ? 0 : to[j]);
            for (int64_t j = 0; j < WIDTH; j++) from[j] = 0;
        } else {
            *to = sum_of(from) + (first ? 0 : *to);
            for (int64_t l = 0; l < VECTOR; l++) from[l] = 0;
        }
    }
}

/* Asks for memory `distance` floats from a span of a row. The processor's own prefetching starts
   anew at each page, and where several tensors are gone through at once that is half of the time. */
INLINE void ask(const problem *p, const void *base, int64_t at, int64_t len, int64_t distance)
{
    if (p->channels_last || p->dtype != FLOAT32) return;
    uintptr_t first = (uintptr_t)base + (uintptr_t)(at + distance) * sizeof(float);
    for (int64_t j = 0; j < len; j += VECTOR)
        __builtin_prefetch((const void *)(first + (uintptr_t)j * sizeof(float)));
}

/* The same ahead of the loops that go through x, dy and perhaps out. */
INLINE void ask_ahead(const problem *p, int64_t at, int64_t len, int with_out)
{
    ask(p, p->x, at, len, AHEAD);
    ask(p, p->dy, at, len, AHEAD);
    if (with_out) ask(p, p->out, at, len, AHEAD);
}

/* ---- moments ---- */

static void moments_of_row(const problem *p, int64_t n, int64_t c, double *mean, double *m2)
{
    buffers b;
    const int64_t width = 1;
    double count = 0;
    *mean = *m2 = 0;
    SPANS(i, at, len) {
        float shift = 0, total[VECTOR] = {0}, s[VECTOR] = {0}, ss[VECTOR] = {0};
        ask(p, p->x, at, len, AHEAD);
        OPEN(NULL, 0);
        if (p->centred) {
            /* The mean of the first k of n numbers is near enough: where it is off by d, these k
               alone add k d^2 to the squares, so that n d^2 too much costs n / k ulps at most. */
            const int64_t whole = in_place_.to, all = copy_.to, few = least(whole, 4 * VECTOR);
            if (few) in_place_.to = few, copy_.to = 0;
            EACH_SUM(j, k, l, total[l] += x[j];)
            shift = sum_of(total) / (float)(few ? few : len);
            in_place_.to = whole, copy_.to = all;
            fill(b.x, len, shift);
        }
        EACH_SUM(j, k, l, float d = x[j] - shift; s[l] += d; ss[l] += d * d;)
        join(count, mean, m2, (double)len, shift, sum_of(s), sum_of(ss), p->centred);
        count += (double)len;
    }
}

static void moments_of_channels(const problem *p, int64_t n, int64_t c, int64_t width, double *mean,
                                double *m2)
{
    buffers b;
    for (int64_t first = 0; first < p->pixels; first += TILE) {
        float shift[WIDTH] = {0}, s[WIDTH] = {0}, ss[WIDTH] = {0};
        int64_t end = least(first + TILE, p->pixels), at, len;
        if (p->centred) {
            for (int64_t i = first; i < end && span(p, n, c, width, i, &at, &len); i++) {
                OPEN(NULL, 0);
                EACH_SUM(j, k, l, shift[l] += x[j];)
            }
            for (int64_t j = 0; j < WIDTH; j++) shift[j] /= (float)(end - first);
        }
        for (int64_t i = first; i < end && span(p, n, c, width, i, &at, &len); i++) {
            OPEN(NULL, 0);
            EACH_SUM(j, k, l, float d = x[j] - shift[l]; s[l] += d; ss[l] += d * d;)
        }
        for (int64_t j = 0; j < width; j++) {
            if (first == 0) mean[j] = m2[j] = 0;
            join((double)first, mean + j, m2 + j, (double)(end - first), shift[j], s[j], ss[j],
                 p->centred);
        }
    }
}

static void moments(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    PARTS_UP(c, width) {
        double *mean = p->moments + n * p->channels + c;
        double *m2 = mean + p->samples * p->channels;
        if (p->channels_last)
            moments_of_channels(p, n, c, width, mean, m2);
        else
            moments_of_row(p, n, c, mean, m2);
    }
}

/* ---- S series ---- */

/* Of each channel of a part: v, gamma / std, beta. `bias` may be null. */
static void sample_parameters(const problem *p, int64_t n, int64_t c, int64_t width, float *v,
                              float *scale, float *bias)
{
    for (int64_t k = 0; k < width; k++) {
        int64_t affine = n * p->affine_stride + c + k;
        v[k] = p->v ? p->v[c + k] : 1.0f;
        scale[k] = p->weight[affine] * p->rstd[group_of(p, n, c + k)];
        if (bias) bias[k] = p->bias[affine];
    }
}

static void sample_apply(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    buffers b;
    float v[WIDTH] = {0}, scale[WIDTH] = {0}, bias[WIDTH] = {0};
    PARTS_DOWN(c, width) {
        sample_parameters(p, n, c, width, v, scale, bias);
        SPANS(i, at, len) {
            ask(p, p->out, at, len, -AHEAD);
            OPEN(NULL, 1);
            EACH(j, k, out[j] = swish(x[j], v[k]) * scale[k] + bias[k];)
            close_span(p, at, len, &b);
        }
    }
}

static void sample_reduce(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    buffers b;
    float v[WIDTH] = {0}, scale[WIDTH] = {0}, sums[3][WIDTH] = {{0}};
    PARTS_UP(c, width) {
        sample_parameters(p, n, c, width, v, scale, NULL);
        SPANS(i, at, len) {
            ask_ahead(p, at, len, p->direct);
            OPEN(p->dy, p->direct);
            EACH_SUM(j, k, l,
                float f, by_v, by_x;
                swish_grad(x[j], v[k], &f, &by_v, &by_x);
                sums[SUM_DY][l] += dy[j];
                sums[SUM_DY_F][l] += dy[j] * f;
                sums[SUM_G][l] += dy[j] * by_v;
                out[j] = dy[j] * scale[k] * by_x;
            )
            if (p->direct) close_span(p, at, len, &b);
            flush(p, n, c, width, i, 3, sums);
        }
    }
}

static void sample_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    buffers b;
    float v[WIDTH] = {0}, scale[WIDTH] = {0}, slope[WIDTH] = {0}, mean[WIDTH] = {0};
    PARTS_DOWN(c, width) {
        sample_parameters(p, n, c, width, v, scale, NULL);
        for (int64_t k = 0; k < width; k++) {
            slope[k] = p->group_grad[group_of(p, n, c + k)];
            mean[k] = p->mean[group_of(p, n, c + k)];
        }
        SPANS(i, at, len) {
            OPEN(p->direct ? p->out : p->dy, 1);
            if (p->direct) {
                EACH(j, k, out[j] = dy[j] + slope[k] * (x[j] - mean[k]);)
            } else {
                EACH(j, k,
                    float f, by_v, by_x;
                    swish_grad(x[j], v[k], &f, &by_v, &by_x);
                    out[j] = dy[j] * scale[k] * by_x + slope[k] * (x[j] - mean[k]);
                )
            }
            close_span(p, at, len, &b);
        }
    }
}

/* ---- B series ---- */

static void batch_apply(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    buffers b;
    maxima m = {{0}, {0}, {0}, {0}, {0}};
    float weight[WIDTH] = {0}, bias[WIDTH] = {0};
    PARTS_DOWN(c, width) {
        set_maxima(p, n, c, width, &m);
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        memcpy(bias, p->bias + n * p->affine_stride + c, width * sizeof(float));
        SPANS(i, at, len) {
            ask(p, p->out, at, len, -AHEAD);
            OPEN(NULL, 1);
            EACH(j, k, out[j] = x[j] / larger(m.batch[k], own_at(&m, k, x[j])) * weight[k]
                                + bias[k];)
            close_span(p, at, len, &b);
        }
    }
}

static void batch_reduce(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    buffers b;
    maxima m = {{0}, {0}, {0}, {0}, {0}};
    float weight[WIDTH] = {0}, sums[SUMS][WIDTH] = {{0}};
    PARTS_UP(c, width) {
        set_maxima(p, n, c, width, &m);
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        SPANS(i, at, len) {
            ask_ahead(p, at, len, p->direct);
            OPEN(p->dy, p->direct);
            EACH_SUM(j, k, l,
                float q, to_batch, to_own;
                split_quotient(&m, k, x[j], dy[j], &q, &to_batch, &to_own);
                sums[SUM_DY][l] += dy[j];
                sums[SUM_DY_F][l] += dy[j] * x[j] * q;
                sums[SUM_G][l] += to_batch;
                sums[SUM_G_OWN][l] += to_own;
                sums[SUM_GX_OWN][l] += to_own * x[j];
                out[j] = weight[k] * (dy[j] * q - m.slope[k] * to_own);
            )
            if (p->direct) close_span(p, at, len, &b);
            flush(p, n, c, width, i, SUMS, sums);
        }
    }
}

static void batch_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    buffers b;
    maxima m = {{0}, {0}, {0}, {0}, {0}};
    float weight[WIDTH] = {0}, own_mean[WIDTH] = {0}, own_scale[WIDTH] = {0};
    float batch_mean[WIDTH] = {0}, batch_scale[WIDTH] = {0};
    PARTS_DOWN(c, width) {
        set_maxima(p, n, c, width, &m);
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        for (int64_t k = 0; k < width; k++) {
            int64_t nc = n * p->channels + c + k;
            own_mean[k] = p->kind == B0 ? p->mean[nc] : 0.0f;
            own_scale[k] = p->std_grad[nc] / (m.std[k] * (float)p->pixels);
            batch_mean[k] = p->batch_mean ? p->batch_mean[c + k] : 0.0f;
            batch_scale[k] = p->batch_mean ? p->batch_var_grad[c + k] * *p->batch_scale : 0.0f;
        }
        SPANS(i, at, len) {
            OPEN(p->direct ? p->out : p->dy, 1);
            if (p->direct) {
                EACH(j, k, out[j] = dy[j] + own_scale[k] * (x[j] - own_mean[k])
                                    + batch_scale[k] * (x[j] - batch_mean[k]);)
            } else {
                EACH(j, k,
                    float q, to_batch, to_own;
                    split_quotient(&m, k, x[j], dy[j], &q, &to_batch, &to_own);
                    out[j] = weight[k] * (dy[j] * q - m.slope[k] * to_own)
                             + own_scale[k] * (x[j] - own_mean[k])
                             + batch_scale[k] * (x[j] - batch_mean[k]);
                )
            }
            close_span(p, at, len, &b);
        }
    }
}

/* ---- affine transform ---- */

static void affine_apply(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    buffers b;
    float weight[WIDTH] = {0}, bias[WIDTH] = {0};
    PARTS_UP(c, width) {
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        memcpy(bias, p->bias + n * p->affine_stride + c, width * sizeof(float));
        SPANS(i, at, len) {
            ask(p, p->x, at, len, AHEAD);
            ask(p, p->out, at, len, AHEAD);
            OPEN(NULL, 1);
            EACH(j, k, out[j] = x[j] * weight[k] + bias[k];)
            close_span(p, at, len, &b);
        }
    }
}

static void affine_grad(const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    buffers b;
    float weight[WIDTH] = {0}, sums[2][WIDTH] = {{0}};
    PARTS_UP(c, width) {
        memcpy(weight, p->weight + n * p->affine_stride + c, width * sizeof(float));
        SPANS(i, at, len) {
            ask_ahead(p, at, len, 1);
            OPEN(p->dy, 1);
            EACH_SUM(j, k, l,
                sums[SUM_DY][l] += dy[j];
                sums[SUM_DY_F][l] += dy[j] * x[j];
                out[j] = dy[j] * weight[k];
            )
            close_span(p, at, len, &b);
            flush(p, n, c, width, i, 2, sums);
        }
    }
}

const loops LOOPS = {moments,     sample_apply, sample_reduce, sample_grad,  batch_apply,
                     batch_reduce, batch_grad,  affine_apply,  affine_grad};
