/* The S series. */

/* 2^t with t held to where neither it nor 1 / (1 + it) leaves the normal floats. */
INLINE vec exp2_of(vec t)
{
    t = larger(splat(-122.0f), smaller(splat(122.0f), t));
#if defined(EVONORM_AVX512)
    /* 2^t = 2^floor(t) 2^r. The polynomial of least relative error, 7.5e-8, in pairs of terms. */
    vec r = fraction(t), rr = r * r;
    vec high = r * 1.8775767e-3f + 8.9893397e-3f, middle = r * 5.5826318e-2f + 2.4015361e-1f;
    return times_power((high * rr + middle) * rr + (r * 6.9315308e-1f + 0.99999994f), t);
#else
    /* 2^t = 2^k 2^r, |r| <= 1/2; adding 1.5 * 2^23 rounds to the integer k. */
    vec shifted = t + 12582912.0f, r = t - (shifted - 12582912.0f);
    /* The polynomial of least relative error (9.1e-8) that is 1 at 0. */
    vec e = r * 1.3264727e-3f + 9.671513e-3f;
    e = e * r + 5.5507336e-2f;
    e = e * r + 2.4022242e-1f;
    e = e * r + 6.93147e-1f;
    e = e * r + 1.0f;
    return (vec)((ints)e + ((ints)shifted << 23));
#endif
}

/* S series: f(x) = x sigmoid(v x), for `rate` = -v / ln(2). */
INLINE vec swish(vec x, vec rate) { return x / (1.0f + exp2_of(x * rate)); }

/* A gradient dy times the sigmoid, and f's derivative by v divided by f. dy times f's derivative by x
   is by_f (1 + v by_v_over_f). */
INLINE void swish_grad(vec x, vec dy, vec rate, vec *by_f, vec *by_v_over_f)
{
    vec e = exp2_of(x * rate), s = 1.0f / (1.0f + e), other = e * s; /* 1 - s, all digits */
    *by_f = dy * s;
    *by_v_over_f = x * other;
}

typedef struct {
    float v[WIDTH], rate[WIDTH], scale[WIDTH], bias[WIDTH];
} sample_parameters;

/* Of each channel of a part: v, -v / ln(2), gamma / std, beta (0 where there is none). */
INLINE void set_sample_parameters(const problem *p, int64_t n, int64_t c, int64_t width,
                                  group_place *at, sample_parameters *a)
{
    for (int64_t k = 0; k < width; k++) {
        int64_t affine = n * p->affine_stride + c + k;
        a->v[k] = p->v ? p->v[c + k] : 1.0f;
        a->rate[k] = a->v[k] * -1.44269504f;
        a->scale[k] = p->weight[affine] * p->rstd[at->group];
        a->bias[k] = p->bias ? p->bias[affine] : 0.0f;
        next_channel(at);
    }
}

INLINE void sample_apply_of(int dtype, int last, const problem *p, int64_t n, int64_t c0,
                            int64_t c1)
{
    sample_parameters a = {{0}, {0}, {0}, {0}};
    group_place place = group_place_of(p, n, c0);
    const int64_t next = next_part(p, last, c1 - c0);
    PARTS(c, width) {
        set_sample_parameters(p, n, c, width, &place, &a);
        STRANDS(s, k, p->pixels) {
            const vec rate = of_channels(last, a.rate, k), scale = of_channels(last, a.scale, k);
            const vec bias = of_channels(last, a.bias, k);
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

INLINE void sample_reduce_of(int dtype, int last, const problem *p, int64_t n, int64_t c0,
                             int64_t c1)
{
    sample_parameters a = {{0}, {0}, {0}, {0}};
    group_place place = group_place_of(p, n, c0);
    const int direct = p->direct;
    PARTS(c, width) {
        set_sample_parameters(p, n, c, width, &place, &a);
        STRANDS(s, k, p->pixels) {
            const vec v = of_channels(last, a.v, k), rate = of_channels(last, a.rate, k);
            const vec scale = of_channels(last, a.scale, k), scaled_v = scale * v;
            vec sum_dy = {0}, sum_dy_f = {0}, sum_g = {0};
            EACH(s, at, lanes,
                ask(dtype, p->x, at + s.ahead);
                ask(dtype, p->dy, at + s.ahead);
                vec x = load(dtype, p->x, at, lanes), dy = load(dtype, p->dy, at, lanes);
                vec by_f, by_v_over_f;
                swish_grad(x, dy, rate, &by_f, &by_v_over_f);
                vec dy_f = only(by_f * x, lanes);
                sum_dy += dy;
                sum_dy_f += dy_f;
                sum_g += only(dy_f * by_v_over_f, lanes);
                if (direct) {
                    if (dtype == FLOAT32) ask(dtype, p->out, at + s.ahead);
                    hold(dtype, p, at, lanes, by_f * (scaled_v * by_v_over_f + scale));
                }
            )
            const int64_t nc = n * p->channels + c + k;
            add_sum(p, last, SUM_DY, nc, &s, sum_dy);
            add_sum(p, last, SUM_DY_F, nc, &s, sum_dy_f);
            add_sum(p, last, SUM_G, nc, &s, sum_g);
        }
    }
}
FOR_ALL_DTYPES(sample_reduce)

INLINE void sample_grad_of(int dtype, int last, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    sample_parameters a = {{0}, {0}, {0}, {0}};
    group_place place = group_place_of(p, n, c0);
    float slopes[WIDTH] = {0}, means[WIDTH] = {0};
    const int direct = p->direct;
    PARTS(c, width) {
        group_place same = place;
        for (int64_t k = 0; k < width; k++, next_channel(&same)) {
            slopes[k] = p->group_grad[same.group];
            means[k] = p->mean[same.group];
        }
        set_sample_parameters(p, n, c, width, &place, &a);
        STRANDS(s, k, p->pixels) {
            const vec v = of_channels(last, a.v, k), rate = of_channels(last, a.rate, k);
            const vec scale = of_channels(last, a.scale, k), scaled_v = scale * v;
            const vec slope = of_channels(last, slopes, k), mean = of_channels(last, means, k);
            EACH(s, at, lanes,
                vec x = load(dtype, p->x, at, lanes), dx;
                if (direct) {
                    dx = held(dtype, p, at, lanes);
                } else {
                    vec by_f, by_v_over_f;
                    swish_grad(x, load(dtype, p->dy, at, lanes), rate, &by_f, &by_v_over_f);
                    dx = rounded(by_f * (scaled_v * by_v_over_f + scale));
                }
                store(dtype, p->out, at, lanes, dx + slope * (x - mean));
            )
        }
    }
}
FOR_ALL_DTYPES(sample_grad)
