/* Group norms and the batch norm: an activation of z = (x - mean) gamma / std + beta. */

/* Forms of activations: z, max(z, 0), max(z, v), z sigmoid(v z). */
enum { PLAIN, RECTIFIED, BOUNDED, GATED };

typedef struct {
    float mean[WIDTH], scale[WIDTH], bias[WIDTH]; /* z = (x - mean) scale + bias */
    float weight[WIDTH], rstd[WIDTH];             /* scale is their product */
    float v[WIDTH], rate[WIDTH];                  /* 1 where there is none; -v / ln(2) */
    float centre[WIDTH], slope[WIDTH], shift[WIDTH]; /* what statistics add to the gradient */
} group_parameters;

INLINE int form_of(const problem *p)
{
    return p->kind == NONE ? PLAIN : p->kind == RELU ? RECTIFIED : p->kind == TLU ? BOUNDED : GATED;
}

/* `sums`: whether what statistics add is known. */
INLINE void set_group_parameters(const problem *p, int64_t n, int64_t c, int64_t width, int sums,
                                 group_place *at, group_parameters *a)
{
    /* One number is its own mean: whatever it is, z is beta, and the gradient exactly 0. */
    const int alone = p->from_mean && !p->over_batch && at->size * p->pixels == 1;
    for (int64_t k = 0; k < width; k++) {
        const int64_t affine = n * p->affine_stride + c + k, group = at->group;
        a->mean[k] = p->from_mean ? p->mean[group] : 0.0f;
        a->weight[k] = p->weight[affine];
        a->rstd[k] = p->rstd[group];
        a->scale[k] = a->weight[k] * a->rstd[k];
        a->bias[k] = p->bias[affine];
        a->v[k] = p->v ? p->v[c + k] : 1.0f;
        a->rate[k] = a->v[k] * -1.44269504f;
        /* larger() passes on a NaN of z alone. */
        if (a->v[k] != a->v[k]) a->bias[k] = a->v[k];
        if (sums) {
            a->centre[k] = p->mean[group];
            a->slope[k] = p->group_grad[group];
            a->shift[k] = p->group_shift[group];
            if (alone) a->rstd[k] = 0;
        }
        next_channel(at);
    }
}

/* Of one vector of channels. */
typedef struct {
    vec mean, scale, bias, v, rate;
} group_vectors;

INLINE group_vectors group_vectors_of(int last, const group_parameters *a, int64_t k)
{
    group_vectors g = {of_channels(last, a->mean, k), of_channels(last, a->scale, k),
                       of_channels(last, a->bias, k), of_channels(last, a->v, k),
                       of_channels(last, a->rate, k)};
    return g;
}

INLINE vec activation(int form, const group_vectors *g, vec z)
{
    if (form == PLAIN) return z;
    if (form == RECTIFIED) return larger(splat(0), z);
    return form == BOUNDED ? larger(g->v, z) : swish(z, g->rate);
}

/* Gradient of z for one of y, and that of v where there is room for it. NaN passes on dy, as in
   torch. */
INLINE vec activation_grad(int form, const group_vectors *g, vec z, vec dy, vec *dv)
{
    if (form == PLAIN) return dy;
    if (form == RECTIFIED) return where(equal(larger(splat(0), z), splat(0)), splat(0), dy);
    if (form == BOUNDED) { /* half to each where both are the same */
        const vec some = where(equal(z, g->v), 0.5f * dy, dy);
        if (dv) *dv = where(greater(z, g->v), splat(0), some);
        return where(greater(g->v, z), splat(0), some);
    }
    vec by_f, by_v_over_f;
    swish_grad(z, dy, g->rate, &by_f, &by_v_over_f);
    if (dv) *dv = by_f * z * by_v_over_f;
    return by_f * (g->v * by_v_over_f + 1.0f);
}

INLINE void group_apply_in(int dtype, int last, int form, const problem *p, int64_t n, int64_t c0,
                           int64_t c1)
{
    group_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
    group_place place = group_place_of(p, n, c0);
    const int64_t next = next_part(p, last, c1 - c0);
    PARTS(c, width) {
        set_group_parameters(p, n, c, width, 0, &place, &a);
        STRANDS(s, k, p->pixels) {
            const group_vectors g = group_vectors_of(last, &a, k);
            EACH(s, at, lanes,
                ask(dtype, p->out, at + s.ahead);
                ask_early(dtype, p->x, at + next);
                vec z = (load(dtype, p->x, at, lanes) - g.mean) * g.scale + g.bias;
                store(dtype, p->out, at, lanes, activation(form, &g, z));
            )
        }
    }
}

INLINE void group_reduce_in(int dtype, int last, int form, const problem *p, int64_t n, int64_t c0,
                            int64_t c1)
{
    group_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
    group_place place = group_place_of(p, n, c0);
    const int direct = form == GATED && p->direct;
    const int with_v = (form == BOUNDED || form == GATED) && p->v_grad;
    const int given = p->over_batch && !p->own_batch; /* statistics add nothing: this is all of it */
    PARTS(c, width) {
        set_group_parameters(p, n, c, width, 0, &place, &a);
        STRANDS(s, k, p->pixels) {
            const group_vectors g = group_vectors_of(last, &a, k);
            const vec weight = of_channels(last, a.weight, k);
            vec sum_dz = {0}, sum_dz_x = {0}, sum_dv = {0};
            EACH(s, at, lanes,
                vec x = load(dtype, p->x, at, lanes) - g.mean, dy = load(dtype, p->dy, at, lanes);
                vec z = x * g.scale + g.bias, dv = {0};
                vec dz = activation_grad(form, &g, z, dy, with_v ? &dv : NULL);
                dz = only(dz, lanes);
                sum_dz += dz;
                sum_dz_x += only(dz * x, lanes);
                if (with_v) sum_dv += only(dv, lanes);
                if (direct) hold(dtype, p, at, lanes, dz * weight);
                if (given) store(dtype, p->out, at, lanes, dz * g.scale);
            )
            const int64_t nc = n * p->channels + c + k;
            add_sum(p, last, SUM_DY, nc, &s, sum_dz);
            add_sum(p, last, SUM_DY_F, nc, &s, sum_dz_x);
            if (with_v) add_sum(p, last, SUM_G, nc, &s, sum_dv);
        }
    }
}

INLINE void group_grad_in(int dtype, int last, int form, const problem *p, int64_t n, int64_t c0,
                          int64_t c1)
{
    group_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
    group_place place = group_place_of(p, n, c0);
    const int direct = form == GATED && p->direct;
    PARTS(c, width) {
        set_group_parameters(p, n, c, width, 1, &place, &a);
        STRANDS(s, k, p->pixels) {
            const group_vectors g = group_vectors_of(last, &a, k);
            const vec weight = of_channels(last, a.weight, k), rstd = of_channels(last, a.rstd, k);
            const vec slope = of_channels(last, a.slope, k);
            const vec centre = of_channels(last, a.centre, k);
            const vec shift = of_channels(last, a.shift, k);
            EACH(s, at, lanes,
                vec x = load(dtype, p->x, at, lanes), dx;
                if (direct) {
                    dx = held(dtype, p, at, lanes);
                } else {
                    vec z = (x - g.mean) * g.scale + g.bias, dy = load(dtype, p->dy, at, lanes);
                    dx = rounded(activation_grad(form, &g, z, dy, NULL) * weight);
                }
                store(dtype, p->out, at, lanes, (dx + (slope * (x - centre) + shift)) * rstd);
            )
        }
    }
}

/* A loop for all dtypes and forms, from one that takes them as constants. */
#define FOR_ALL_DTYPES_AND_FORMS(name)                                                             \
    INLINE void name##_of(int dtype, int last, const problem *p, int64_t n, int64_t c0,            \
                          int64_t c1)                                                              \
    {                                                                                              \
        switch (form_of(p)) {                                                                      \
        case PLAIN: name##_in(dtype, last, PLAIN, p, n, c0, c1); break;                            \
        case RECTIFIED: name##_in(dtype, last, RECTIFIED, p, n, c0, c1); break;                    \
        case BOUNDED: name##_in(dtype, last, BOUNDED, p, n, c0, c1); break;                        \
        default: name##_in(dtype, last, GATED, p, n, c0, c1);                                      \
        }                                                                                          \
    }                                                                                              \
    FOR_ALL_DTYPES(name)

FOR_ALL_DTYPES_AND_FORMS(group_apply)
FOR_ALL_DTYPES_AND_FORMS(group_reduce)
FOR_ALL_DTYPES_AND_FORMS(group_grad)
