/* RS + rej, of the B series: max(x, 0) / rms over the batch. */

typedef struct {
    float scale[WIDTH], bias[WIDTH]; /* gamma / rms, beta */
} rectified_parameters;

INLINE void set_rectified_parameters(const problem *p, int64_t n, int64_t c, int64_t width,
                                     rectified_parameters *a)
{
    for (int64_t k = 0; k < width; k++) {
        int64_t affine = n * p->affine_stride + c + k;
        a->scale[k] = (float)(p->weight[affine] / sqrt(p->batch_var[c + k] + p->eps));
        a->bias[k] = p->bias ? p->bias[affine] : 0.0f;
    }
}

INLINE void rectified_apply_of(int dtype, int last, const problem *p, int64_t n, int64_t c0,
                               int64_t c1)
{
    rectified_parameters a = {{0}, {0}};
    const int64_t next = next_part(p, last, c1 - c0);
    PARTS(c, width) {
        set_rectified_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const vec scale = of_channels(last, a.scale, k), bias = of_channels(last, a.bias, k);
            EACH(s, at, lanes,
                ask(dtype, p->out, at + s.ahead);
                ask_early(dtype, p->x, at + next);
                vec f = larger(splat(0), load(dtype, p->x, at, lanes));
                store(dtype, p->out, at, lanes, f * scale + bias);
            )
        }
    }
}
FOR_ALL_DTYPES(rectified_apply)

INLINE void rectified_reduce_of(int dtype, int last, const problem *p, int64_t n, int64_t c0,
                                int64_t c1)
{
    PARTS(c, width) {
        STRANDS(s, k, p->pixels) {
            vec sum_dy = {0}, sum_dy_f = {0};
            EACH(s, at, lanes,
                ask(dtype, p->x, at + s.ahead);
                ask(dtype, p->dy, at + s.ahead);
                vec f = larger(splat(0), load(dtype, p->x, at, lanes));
                vec dy = load(dtype, p->dy, at, lanes);
                sum_dy += dy;
                sum_dy_f += dy * f;
            )
            add_sum(p, last, SUM_DY, n * p->channels + c + k, &s, sum_dy);
            add_sum(p, last, SUM_DY_F, n * p->channels + c + k, &s, sum_dy_f);
        }
    }
}
FOR_ALL_DTYPES(rectified_reduce)

INLINE void rectified_grad_of(int dtype, int last, const problem *p, int64_t n, int64_t c0,
                              int64_t c1)
{
    rectified_parameters a = {{0}, {0}};
    float pulls[WIDTH] = {0};
    const int own = p->batch_mean != NULL;
    const float count = p->batch_count ? *p->batch_count : (float)(p->samples * p->pixels);
    PARTS(c, width) {
        set_rectified_parameters(p, n, c, width, &a);
        for (int64_t k = 0; k < width; k++)
            pulls[k] = own ? p->batch_var_grad[c + k] * (2 / count) : 0.0f;
        STRANDS(s, k, p->pixels) {
            const vec scale = of_channels(last, a.scale, k), pull = of_channels(last, pulls, k);
            EACH(s, at, lanes,
                ask(dtype, p->out, at + s.ahead);
                vec x = load(dtype, p->x, at, lanes), dy = load(dtype, p->dy, at, lanes);
                /* Of 0 the gradient is 0, that of NaN goes through, as in torch. */
                vec dx = where(equal(larger(splat(0), x), splat(0)), splat(0), dy * scale);
                if (own) dx += pull * x;
                store(dtype, p->out, at, lanes, dx);
            )
        }
    }
}
FOR_ALL_DTYPES(rectified_grad)
