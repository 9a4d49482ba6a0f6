/* The B series. */

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

typedef struct {
    float slope[WIDTH], shift[WIDTH], offset[WIDTH], batch[WIDTH]; /* as in `maxima` */
    float std[WIDTH]; /* the sample's own, or root of the mean of squares */
    float weight[WIDTH], bias[WIDTH];
} batch_parameters;

INLINE void set_batch_parameters(const problem *p, int64_t n, int64_t c, int64_t width,
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

INLINE maxima maxima_of(int last, const batch_parameters *a, int64_t k)
{
    maxima m = {of_channels(last, a->slope, k), of_channels(last, a->shift, k),
                of_channels(last, a->offset, k), of_channels(last, a->batch, k)};
    return m;
}

INLINE void batch_apply_of(int dtype, int last, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    batch_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    const int64_t next = next_part(p, last, c1 - c0);
    PARTS(c, width) {
        set_batch_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const maxima m = maxima_of(last, &a, k);
            const vec weight = of_channels(last, a.weight, k), bias = of_channels(last, a.bias, k);
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

INLINE void batch_reduce_of(int dtype, int last, const problem *p, int64_t n, int64_t c0,
                            int64_t c1)
{
    batch_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    const int direct = p->direct;
    PARTS(c, width) {
        set_batch_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const maxima m = maxima_of(last, &a, k);
            const vec weight = of_channels(last, a.weight, k);
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
                    if (dtype == FLOAT32) ask(dtype, p->out, at + s.ahead);
                    hold(dtype, p, at, lanes, weight * (rounded(dy * q) - m.slope * to_own));
                }
            )
            for (int which = 0; which < SUMS; which++)
                add_sum(p, last, which, n * p->channels + c + k, &s, sums[which]);
        }
    }
}
FOR_ALL_DTYPES(batch_reduce)

INLINE void batch_grad_of(int dtype, int last, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    batch_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    float own_means[WIDTH] = {0}, own_scales[WIDTH] = {0};
    float batch_means[WIDTH] = {0}, batch_scales[WIDTH] = {0};
    const int direct = p->direct;
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
            const maxima m = maxima_of(last, &a, k);
            const vec weight = of_channels(last, a.weight, k);
            const vec own_mean = of_channels(last, own_means, k);
            const vec own_scale = of_channels(last, own_scales, k);
            const vec batch_mean = of_channels(last, batch_means, k);
            const vec batch_scale = of_channels(last, batch_scales, k);
            EACH(s, at, lanes,
                vec x = load(dtype, p->x, at, lanes), dx;
                if (direct) {
                    dx = held(dtype, p, at, lanes);
                } else {
                    vec dy = load(dtype, p->dy, at, lanes), q, to_batch, to_own;
                    split_quotient(&m, x, dy, &q, &to_batch, &to_own);
                    dx = rounded(weight * (rounded(dy * q) - m.slope * to_own));
                }
                dx += own_scale * (x - own_mean) + batch_scale * (x - batch_mean);
                store(dtype, p->out, at, lanes, dx);
            )
        }
    }
}
FOR_ALL_DTYPES(batch_grad)
