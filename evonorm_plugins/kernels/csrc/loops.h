/* The loops over elements, compiled once for each instruction set.
 *
 * Sums are kept in float over a block, which lies in the first-level cache, and in double over
 * blocks. Comparisons are written so that NaN comes out wherever plain arithmetic gives NaN.
 */
#include <math.h>

#include "vectors.h"

#define BLOCK 512  /* elements of a row at a time */
#define TILE 16    /* pixels at a time, where channels are last */
#define WIDTH 256  /* channels at a time, where channels are last */
#define AHEAD 512  /* elements between what is read and what is asked for, in a row */
#define NEAR 40000 /* elements: what is no larger is asked for while the part before is written */
#define FEW 4      /* vectors whose mean stands for that of a strand */
#define UNROLL 4   /* sums side by side, where the next addition would wait for the last one */

/* ---- formulas ---- */

/* 2^t with t held to where neither it nor 1 / (1 + it) leaves the normal floats. */
INLINE vec exp2_of(vec t)
{
    t = larger(splat(-122.0f), smaller(splat(122.0f), t));
    /* 2^t = 2^k 2^r, |r| <= 1/2; adding 1.5 * 2^23 rounds to the integer k. */
    vec shifted = t + 12582912.0f, r = t - (shifted - 12582912.0f);
    /* The polynomial of least relative error (9.1e-8) that is 1 at 0. */
    vec e = r * 1.3264727e-3f + 9.671513e-3f;
    e = e * r + 5.5507336e-2f;
    e = e * r + 2.4022242e-1f;
    e = e * r + 6.93147e-1f;
    e = e * r + 1.0f;
    return (vec)((ints)e + ((ints)shifted << 23));
}

/* S series: f(x) = x sigmoid(v x), for `rate` = -v / ln(2). */
INLINE vec swish(vec x, vec rate) { return x / (1.0f + exp2_of(x * rate)); }

/* f and its derivatives: by v divided by f, and by x. */
INLINE void swish_grad(vec x, vec v, vec rate, vec *f, vec *by_v_over_f, vec *by_x)
{
    vec e = exp2_of(x * rate), s = 1.0f / (1.0f + e), other = e * s; /* 1 - s, all digits */
    *f = x * s;
    *by_v_over_f = x * other;
    *by_x = s + v * *f * other;
}

/* B series: max(batch, own) with own = slope (x + shift) + offset, of one vector of channels. */
typedef struct {
    vec slope, shift, offset;
    vec batch; /* standard deviation over the batch */
} maxima;

INLINE vec own_at(const maxima *m, vec x) { return m->slope * (x + m->shift) + m->offset; }

/* q = 1 / max, and how s x q^2, minus the gradient of the maximum for a gradient s of x / max, is
   split between its sides: half to each where both are the same, as in torch. */
INLINE void split_quotient(const maxima *m, vec x, vec s, vec *q, vec *to_batch, vec *to_own)
{
    vec batch = m->batch, own = own_at(m, x);
    *q = 1.0f / larger(batch, own);
    vec g = s * *q * x * *q, some = where(equal(batch, own), 0.5f * g, g);
    *to_batch = where(greater(own, batch), splat(0), some);
    *to_own = where(greater(batch, own), splat(0), some);
}

/* ---- walks ---- */

/* Channels come in parts [c, c + width): one row (the pixels of a channel), or up to WIDTH channels
   where these are last. */
#define PARTS(c, width)                                                                            \
    for (int64_t c = c0, width; c < c1 && (width = part_width(p, c1 - c), 1); c += width)

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t part_width(const problem *p, int64_t left)
{
    return p->channels_last ? least(WIDTH, left) : 1;
}

/* A part is read in strands: vectors of the same channels, a block of a row or one vector of
   channels at each pixel of a tile. In a strand `whole` vectors, `stride` elements apart, are
   followed by `rest` vectors of which only the first `lanes` numbers belong to it. */
typedef struct {
    int64_t at, stride, whole, rest, ahead;
    int lanes, first; /* first: it is the first of its channels */
    int wide, narrow; /* numbers that a channel has in a vector, whole or not */
} strand;

/* The strand that starts at pixel `pixel` of `pixels` of channel c; `left` channels of the part are
   left. */
INLINE strand strand_of(const problem *p, int64_t n, int64_t c, int64_t left, int64_t pixel,
                        int64_t pixels)
{
    strand s;
    s.first = pixel == 0;
    if (p->channels_last) {
        int64_t len = least(TILE, pixels - pixel);
        s.at = (n * pixels + pixel) * p->channels + c;
        s.stride = p->channels;
        s.lanes = (int)least(LANES, left);
        s.whole = s.lanes == LANES ? len : 0;
        s.rest = len - s.whole;
        s.ahead = TILE * p->channels;
        s.wide = s.narrow = 1;
    } else {
        int64_t len = least(BLOCK, pixels - pixel);
        s.at = (n * p->channels + c) * p->pixels + pixel;
        s.stride = LANES;
        s.whole = len / LANES;
        s.lanes = (int)(len % LANES);
        s.rest = s.lanes > 0;
        s.ahead = AHEAD;
        s.wide = LANES;
        s.narrow = s.lanes;
    }
    return s;
}

#define STRANDS(s, k, pixels)                                                                      \
    for (int64_t pixel_ = 0; pixel_ < pixels; pixel_ += p->channels_last ? TILE : BLOCK)           \
        for (int64_t k = 0, on_ = 1; on_; k += LANES, on_ = p->channels_last && k < width)         \
            for (strand s = strand_of(p, n, c + k, width - k, pixel_, pixels), *once_ = &s; once_; \
                 once_ = NULL)

/* Statements for each vector of a strand: `at` is its first element, `lanes` how many belong to it. */
#define EACH(s, at, lanes, ...)                                                                    \
    {                                                                                              \
        int64_t at = s.at;                                                                         \
        for (int64_t i_ = 0; i_ < s.whole; i_++, at += s.stride) {                                 \
            const int lanes = LANES;                                                               \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        for (int64_t i_ = 0; i_ < s.rest; i_++, at += s.stride) {                                  \
            const int lanes = s.lanes;                                                             \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

/* How far away the x of the next part is, of which this thread will read the statistics. Without
   asking, memory would rest while a part in the cache is gone through again. */
INLINE int64_t next_part(const problem *p, int64_t channels)
{
    int64_t elements = channels * p->pixels;
    return p->channels_last || elements > NEAR ? 0 : elements;
}

/* A parameter of channel k of a part and those that follow, as it belongs to a strand. */
INLINE vec of_channels(const problem *p, const float *parameter, int64_t k)
{
    return p->channels_last ? load_floats(parameter + k, LANES) : splat(parameter[0]);
}

/* Adds the sums over a strand to those of the problem. */
INLINE void add_sum(const problem *p, int which, int64_t nc, const strand *s, vec sum)
{
    double *to = p->sums + which * p->samples * p->channels + nc;
    if (!p->channels_last) {
        *to = sum_of(sum) + (s->first ? 0 : *to);
        return;
    }
    float lanes[LANES];
    store_floats(lanes, LANES, sum);
    for (int l = 0; l < s->lanes; l++) to[l] = lanes[l] + (s->first ? 0 : to[l]);
}

/* One function for all dtypes, from one that takes the dtype as a constant. */
#define FOR_ALL_DTYPES(name)                                                                       \
    static void name(const problem *p, int64_t n, int64_t c0, int64_t c1)                          \
    {                                                                                              \
        if (p->dtype == FLOAT32)                                                                   \
            name##_of(FLOAT32, p, n, c0, c1);                                                      \
        else if (p->dtype == BFLOAT16)                                                             \
            name##_of(BFLOAT16, p, n, c0, c1);                                                     \
        else                                                                                       \
            name##_of(FLOAT16, p, n, c0, c1);                                                      \
    }

/* ---- moments ---- */

/* `n` numbers, whose deviations from `shift` sum up to s and their squares to ss, join `count`
   others (Chan, Golub, LeVeque 1979); for each of `lanes` channels. */
INLINE void join(const problem *p, double count, double n, int lanes, vec shift, vec s, vec ss,
                 double *mean, double *m2)
{
    const double share = n / (count + n), inverse = 1 / n;
    for (int l = 0; l < lanes; l++) {
        double offset = s[l] * inverse, delta = shift[l] + offset - mean[l];
        if (p->centred) {
            mean[l] += delta * share;
            m2[l] += ss[l] - s[l] * offset + delta * delta * (count * share);
        } else {
            m2[l] += ss[l];
        }
    }
}

/* What a strand's deviations are taken from, near enough to its mean. Where the mean of the first k
   of n numbers is off by d, these k alone add k d^2 to the squares, so that the n d^2 too much
   cost n / k ulps at most. Later strands take the mean of those before, by the same reasoning. */
INLINE vec shift_of(int dtype, const problem *p, strand s, const double *mean)
{
    vec shift = {0};
    if (!p->centred) return shift;
    if (!s.first) {
        for (int l = 0; l < LANES; l++)
            shift[l] = (float)mean[p->channels_last && l < s.lanes ? l : 0];
        return shift;
    }
    s.whole = least(FEW, s.whole);
    s.rest = s.whole ? 0 : least(FEW, s.rest);
    EACH(s, at, lanes, shift += load(dtype, p->x, at, lanes);)
    if (!p->channels_last) shift = splat(sum_of(shift));
    return shift / (float)(s.whole * s.wide + s.rest * s.narrow);
}

/* Rows of p->run channels that adjoin count as one, of the first of them. */
INLINE void moments_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    for (int64_t c = c0, width; c < c1; c += width) {
        width = p->channels_last ? part_width(p, c1 - c) : p->run;
        const int64_t pixels = p->channels_last ? p->pixels : p->pixels * p->run;
        STRANDS(s, k, pixels) {
            double *mean = p->moments + n * p->channels + c + k;
            double *m2 = mean + p->samples * p->channels;
            const int channels = p->channels_last ? s.lanes : 1;
            for (int l = 0; s.first && l < channels; l++) mean[l] = m2[l] = 0;
            const vec shift = shift_of(dtype, p, s, mean);
            const int64_t count = s.whole * s.wide + s.rest * s.narrow;
            vec sum[UNROLL] = {{0}}, squares[UNROLL] = {{0}};
            for (; s.whole >= UNROLL; s.whole -= UNROLL)
                for (int u = 0; u < UNROLL; u++, s.at += s.stride) {
                    ask(dtype, p->x, s.at + s.ahead);
                    vec d = load(dtype, p->x, s.at, LANES) - shift;
                    sum[u] += d;
                    squares[u] += d * d;
                }
            EACH(s, at, lanes,
                vec d = only(load(dtype, p->x, at, lanes) - shift, lanes);
                sum[0] += d;
                squares[0] += d * d;
            )
            for (int u = 1; u < UNROLL; u++) sum[0] += sum[u], squares[0] += squares[u];
            if (!p->channels_last)
                sum[0] = splat(sum_of(sum[0])), squares[0] = splat(sum_of(squares[0]));
            join(p, (double)pixel_, (double)count, channels, shift, sum[0], squares[0], mean, m2);
        }
    }
}
FOR_ALL_DTYPES(moments)

/* ---- S series ---- */

typedef struct {
    float v[WIDTH], rate[WIDTH], scale[WIDTH], bias[WIDTH];
} sample_parameters;

/* Of each channel of a part: v, -v / ln(2), gamma / std, beta (0 where there is none). */
static void set_sample_parameters(const problem *p, int64_t n, int64_t c, int64_t width,
                                  sample_parameters *a)
{
    for (int64_t k = 0; k < width; k++) {
        int64_t affine = n * p->affine_stride + c + k;
        a->v[k] = p->v ? p->v[c + k] : 1.0f;
        a->rate[k] = a->v[k] * -1.44269504f;
        a->scale[k] = p->weight[affine] * p->rstd[group_of(p, n, c + k)];
        a->bias[k] = p->bias ? p->bias[affine] : 0.0f;
    }
}

INLINE void sample_apply_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    sample_parameters a = {{0}, {0}, {0}, {0}};
    const int64_t next = next_part(p, c1 - c0);
    PARTS(c, width) {
        set_sample_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const vec rate = of_channels(p, a.rate, k), scale = of_channels(p, a.scale, k);
            const vec bias = of_channels(p, a.bias, k);
            EACH(s, at, lanes,
                ask(dtype, p->out, at + s.ahead);
                ask_early(dtype, p->x, at + next);
                vec x = load(dtype, p->x, at, lanes);
                store(dtype, p->out, at, lanes, swish(x, rate) * scale + bias);
            )
        }
    }
}
FOR_ALL_DTYPES(sample_apply)

INLINE void sample_reduce_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    sample_parameters a = {{0}, {0}, {0}, {0}};
    const int direct = dtype == FLOAT32 && p->direct;
    PARTS(c, width) {
        set_sample_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const vec v = of_channels(p, a.v, k), rate = of_channels(p, a.rate, k);
            const vec scale = of_channels(p, a.scale, k);
            vec sum_dy = {0}, sum_dy_f = {0}, sum_g = {0};
            EACH(s, at, lanes,
                ask(dtype, p->x, at + s.ahead);
                ask(dtype, p->dy, at + s.ahead);
                vec x = load(dtype, p->x, at, lanes), dy = load(dtype, p->dy, at, lanes);
                vec f, by_v_over_f, by_x;
                swish_grad(x, v, rate, &f, &by_v_over_f, &by_x);
                vec dy_f = only(dy * f, lanes);
                sum_dy += dy;
                sum_dy_f += dy_f;
                sum_g += only(dy_f * by_v_over_f, lanes);
                if (direct) {
                    ask(dtype, p->out, at + s.ahead);
                    store(dtype, p->out, at, lanes, dy * (scale * by_x));
                }
            )
            const int64_t nc = n * p->channels + c + k;
            add_sum(p, SUM_DY, nc, &s, sum_dy);
            add_sum(p, SUM_DY_F, nc, &s, sum_dy_f);
            add_sum(p, SUM_G, nc, &s, sum_g);
        }
    }
}
FOR_ALL_DTYPES(sample_reduce)

INLINE void sample_grad_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    sample_parameters a = {{0}, {0}, {0}, {0}};
    float slopes[WIDTH] = {0}, means[WIDTH] = {0};
    const int direct = dtype == FLOAT32 && p->direct;
    PARTS(c, width) {
        if (!direct) set_sample_parameters(p, n, c, width, &a);
        for (int64_t k = 0; k < width; k++) {
            slopes[k] = p->group_grad[group_of(p, n, c + k)];
            means[k] = p->mean[group_of(p, n, c + k)];
        }
        STRANDS(s, k, p->pixels) {
            const vec v = of_channels(p, a.v, k), rate = of_channels(p, a.rate, k);
            const vec scale = of_channels(p, a.scale, k);
            const vec slope = of_channels(p, slopes, k), mean = of_channels(p, means, k);
            EACH(s, at, lanes,
                vec x = load(dtype, p->x, at, lanes), dx;
                if (direct) {
                    dx = load(dtype, p->out, at, lanes);
                } else {
                    vec f, by_v_over_f, by_x;
                    swish_grad(x, v, rate, &f, &by_v_over_f, &by_x);
                    dx = load(dtype, p->dy, at, lanes) * (scale * by_x);
                }
                store(dtype, p->out, at, lanes, dx + slope * (x - mean));
            )
        }
    }
}
FOR_ALL_DTYPES(sample_grad)

/* ---- B series ---- */

typedef struct {
    float slope[WIDTH], shift[WIDTH], offset[WIDTH], batch[WIDTH]; /* as in `maxima` */
    float std[WIDTH]; /* the sample's own, or root of the mean of squares */
    float weight[WIDTH], bias[WIDTH];
} batch_parameters;

static void set_batch_parameters(const problem *p, int64_t n, int64_t c, int64_t width,
                                 batch_parameters *a)
{
    for (int64_t k = 0; k < width; k++) {
        int64_t nc = n * p->channels + c + k, affine = n * p->affine_stride + c + k;
        double square = p->var[nc] + p->eps;
        if (p->kind != B0) square += (double)p->mean[nc] * p->mean[nc];
        float std = a->std[k] = (float)sqrt(square);
        float batch = a->batch[k] = (float)sqrt(p->batch_var[c + k] + p->eps);
        a->slope[k] = p->kind == B0 ? p->v[c + k] : p->kind == B1 ? std : -1.0f;
        a->shift[k] = p->kind == B1 ? 1.0f : 0.0f;
        a->offset[k] = p->kind == B1 ? 0.0f : std;
        /* larger() passes on a NaN of own alone. */
        if (batch != batch) a->offset[k] = batch;
        a->weight[k] = p->weight[affine];
        a->bias[k] = p->bias ? p->bias[affine] : 0.0f;
    }
}

INLINE maxima maxima_of(const problem *p, const batch_parameters *a, int64_t k)
{
    maxima m = {of_channels(p, a->slope, k), of_channels(p, a->shift, k),
                of_channels(p, a->offset, k), of_channels(p, a->batch, k)};
    return m;
}

INLINE void batch_apply_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    batch_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    const int64_t next = next_part(p, c1 - c0);
    PARTS(c, width) {
        set_batch_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const maxima m = maxima_of(p, &a, k);
            const vec weight = of_channels(p, a.weight, k), bias = of_channels(p, a.bias, k);
            EACH(s, at, lanes,
                ask(dtype, p->out, at + s.ahead);
                ask_early(dtype, p->x, at + next);
                vec x = load(dtype, p->x, at, lanes), y = x / larger(m.batch, own_at(&m, x));
                store(dtype, p->out, at, lanes, y * weight + bias);
            )
        }
    }
}
FOR_ALL_DTYPES(batch_apply)

INLINE void batch_reduce_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    batch_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    const int direct = dtype == FLOAT32 && p->direct;
    PARTS(c, width) {
        set_batch_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const maxima m = maxima_of(p, &a, k);
            const vec weight = of_channels(p, a.weight, k);
            vec sums[SUMS] = {{0}};
            EACH(s, at, lanes,
                ask(dtype, p->x, at + s.ahead);
                ask(dtype, p->dy, at + s.ahead);
                vec x = load(dtype, p->x, at, lanes), dy = load(dtype, p->dy, at, lanes);
                vec q, to_batch, to_own;
                split_quotient(&m, x, dy, &q, &to_batch, &to_own);
                sums[SUM_DY] += dy;
                sums[SUM_DY_F] += only(dy * q * x, lanes);
                sums[SUM_G] += only(to_batch, lanes);
                sums[SUM_G_OWN] += only(to_own, lanes);
                sums[SUM_GX_OWN] += only(to_own * x, lanes);
                if (direct) {
                    ask(dtype, p->out, at + s.ahead);
                    store(dtype, p->out, at, lanes, weight * (dy * q - m.slope * to_own));
                }
            )
            for (int which = 0; which < SUMS; which++)
                add_sum(p, which, n * p->channels + c + k, &s, sums[which]);
        }
    }
}
FOR_ALL_DTYPES(batch_reduce)

INLINE void batch_grad_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    batch_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    float own_means[WIDTH] = {0}, own_scales[WIDTH] = {0};
    float batch_means[WIDTH] = {0}, batch_scales[WIDTH] = {0};
    const int direct = dtype == FLOAT32 && p->direct;
    const float count = p->batch_count ? *p->batch_count : (float)(p->samples * p->pixels);
    PARTS(c, width) {
        set_batch_parameters(p, n, c, width, &a);
        for (int64_t k = 0; k < width; k++) {
            int64_t nc = n * p->channels + c + k;
            own_means[k] = p->kind == B0 ? p->mean[nc] : 0.0f;
            own_scales[k] = p->std_grad[nc] / (a.std[k] * (float)p->pixels);
            batch_means[k] = p->batch_mean ? p->batch_mean[c + k] : 0.0f;
            batch_scales[k] = p->batch_mean ? p->batch_var_grad[c + k] * (2 / count) : 0.0f;
        }
        STRANDS(s, k, p->pixels) {
            const maxima m = maxima_of(p, &a, k);
            const vec weight = of_channels(p, a.weight, k);
            const vec own_mean = of_channels(p, own_means, k);
            const vec own_scale = of_channels(p, own_scales, k);
            const vec batch_mean = of_channels(p, batch_means, k);
            const vec batch_scale = of_channels(p, batch_scales, k);
            EACH(s, at, lanes,
                vec x = load(dtype, p->x, at, lanes), dx;
                if (direct) {
                    dx = load(dtype, p->out, at, lanes);
                } else {
                    vec dy = load(dtype, p->dy, at, lanes), q, to_batch, to_own;
                    split_quotient(&m, x, dy, &q, &to_batch, &to_own);
                    dx = weight * (dy * q - m.slope * to_own);
                }
                dx += own_scale * (x - own_mean) + batch_scale * (x - batch_mean);
                store(dtype, p->out, at, lanes, dx);
            )
        }
    }
}
FOR_ALL_DTYPES(batch_grad)

/* ---- affine transform ---- */

typedef struct {
    float weight[WIDTH], bias[WIDTH];
} affine_parameters;

static void set_affine_parameters(const problem *p, int64_t n, int64_t c, int64_t width,
                                  affine_parameters *a)
{
    memcpy(a->weight, p->weight + n * p->affine_stride + c, (size_t)width * sizeof(float));
    if (p->bias)
        memcpy(a->bias, p->bias + n * p->affine_stride + c, (size_t)width * sizeof(float));
}

INLINE void affine_apply_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    affine_parameters a = {{0}, {0}};
    PARTS(c, width) {
        set_affine_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const vec weight = of_channels(p, a.weight, k), bias = of_channels(p, a.bias, k);
            EACH(s, at, lanes,
                ask(dtype, p->x, at + s.ahead);
                ask(dtype, p->out, at + s.ahead);
                store(dtype, p->out, at, lanes, load(dtype, p->x, at, lanes) * weight + bias);
            )
        }
    }
}
FOR_ALL_DTYPES(affine_apply)

INLINE void affine_grad_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    affine_parameters a = {{0}, {0}};
    PARTS(c, width) {
        set_affine_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const vec weight = of_channels(p, a.weight, k);
            vec sum_dy = {0}, sum_dy_f = {0};
            EACH(s, at, lanes,
                ask(dtype, p->x, at + s.ahead);
                ask(dtype, p->dy, at + s.ahead);
                ask(dtype, p->out, at + s.ahead);
                vec x = load(dtype, p->x, at, lanes), dy = load(dtype, p->dy, at, lanes);
                sum_dy += dy;
                sum_dy_f += only(dy * x, lanes);
                store(dtype, p->out, at, lanes, dy * weight);
            )
            add_sum(p, SUM_DY, n * p->channels + c + k, &s, sum_dy);
            add_sum(p, SUM_DY_F, n * p->channels + c + k, &s, sum_dy_f);
        }
    }
}
FOR_ALL_DTYPES(affine_grad)

const loops LOOPS = {moments,     sample_apply, sample_reduce, sample_grad,  batch_apply,
                     batch_reduce, batch_grad,  affine_apply,  affine_grad};
