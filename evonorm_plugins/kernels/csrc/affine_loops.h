/* The affine transform. */
#include <string.h>

typedef struct {
    float weight[WIDTH], bias[WIDTH];
} affine_parameters;

INLINE void set_affine_parameters(const problem *p, int64_t n, int64_t c, int64_t width,
                                  affine_parameters *a)
{
    memcpy(a->weight, p->weight + n * p->affine_stride + c, (size_t)width * sizeof(float));
    if (p->bias)
        memcpy(a->bias, p->bias + n * p->affine_stride + c, (size_t)width * sizeof(float));
}

INLINE void affine_apply_of(int dtype, int last, const problem *p, int64_t n, int64_t c0,
                            int64_t c1)
{
    affine_parameters a = {{0}, {0}};
    PARTS(c, width) {
        set_affine_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const vec weight = of_channels(last, a.weight, k), bias = of_channels(last, a.bias, k);
            EACH(s, at, lanes,
                ask(dtype, p->x, at + s.ahead);
                ask(dtype, p->out, at + s.ahead);
                store(dtype, p->out, at, lanes, load(dtype, p->x, at, lanes) * weight + bias);
            )
        }
    }
}
FOR_ALL_DTYPES(affine_apply)

INLINE void affine_grad_of(int dtype, int last, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    affine_parameters a = {{0}, {0}};
    PARTS(c, width) {
        set_affine_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const vec weight = of_channels(last, a.weight, k);
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
            add_sum(p, last, SUM_DY, n * p->channels + c + k, &s, sum_dy);
            add_sum(p, last, SUM_DY_F, n * p->channels + c + k, &s, sum_dy_f);
        }
    }
}
FOR_ALL_DTYPES(affine_grad)
