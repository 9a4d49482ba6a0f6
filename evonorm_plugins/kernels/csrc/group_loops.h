/* Group norms: an activation of z = (x - mean) gamma / std + beta.
 *
 * Two loops serve all activations. Bounded ones are max(z, bound): the bound is 0 of ReLU, v of TLU,
 * and without an activation below all numbers. Gated ones are z sigmoid(v z).
 */
enum { BOUNDED, GATED };

typedef struct {
    float mean[WIDTH], scale[WIDTH], bias[WIDTH]; /* z = (x - mean) scale + bias */
    float weight[WIDTH], rstd[WIDTH];             /* scale is their product */
    float v[WIDTH], rate[WIDTH];                  /* bound; or factor of the gate, and -v / ln(2) */
} group_parameters;

INLINE int is_gated(const problem *p) { return p->kind == SILU || p->kind == SWISH; }

static void set_group_parameters(const problem *p, int64_t n, int64_t c, int64_t width,
                                 group_parameters *a)
{
    for (int64_t k = 0; k < width; k++) {
        int64_t affine = n * p->affine_stride + c + k, group = group_of(p, n, c + k);
        a->mean[k] = p->from_mean ? p->mean[group] : 0.0f;
        a->weight[k] = p->weight[affine];
        a->rstd[k] = p->rstd[group];
        a->scale[k] = a->weight[k] * a->rstd[k];
        a->bias[k] = p->bias[affine];
        a->v[k] = p->v ? p->v[c + k] : p->kind == SILU ? 1.0f : p->kind == RELU ? 0.0f : -INFINITY;
        a->rate[k] = a->v[k] * -1.44269504f;
        /* larger() passes on a NaN of z alone. */
        if (a->v[k] != a->v[k]) a->bias[k] = a->v[k];
    }
}

/* Of one vector of channels. */
typedef struct {
    vec mean, scale, bias, v, rate;
    vec tie; /* share of z in the gradient where it is the bound */
} group_vectors;

INLINE group_vectors group_vectors_of(const problem *p, const group_parameters *a, int64_t k)
{
    const float tie = p->kind == TLU ? 0.5f : p->kind == RELU ? 0.0f : 1.0f;
    group_vectors g = {of_channels(p, a->mean, k), of_channels(p, a->scale, k),
                       of_channels(p, a->bias, k), of_channels(p, a->v, k),
                       of_channels(p, a->rate, k), splat(tie)};
    return g;
}

/* Gradient of z for one of y, and that of v where there is room for it. */
INLINE vec activation_grad(int form, const group_vectors *g, vec z, vec dy, vec *dv)
{
    if (form == GATED) {
        vec f, by_v_over_f, by_z;
        swish_grad(z, g->v, g->rate, &f, &by_v_over_f, &by_z);
        if (dv) *dv = dy * f * by_v_over_f;
        return dy * by_z;
    }
    /* NaN gets to both, as in torch. */
    const truths same = equal(z, g->v);
    if (dv) *dv = where(same, dy * (1.0f - g->tie), where(greater(z, g->v), splat(0), dy));
    return where(same, dy * g->tie, where(greater(g->v, z), splat(0), dy));
}

INLINE void group_apply_in(int dtype, int form, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    group_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    const int64_t next = next_part(p, c1 - c0);
    PARTS(c, width) {
        set_group_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const group_vectors g = group_vectors_of(p, &a, k);
            EACH(s, at, lanes,
                ask(dtype, p->out, at + s.ahead);
                ask_early(dtype, p->x, at + next);
                vec z = (load(dtype, p->x, at, lanes) - g.mean) * g.scale + g.bias;
                store(dtype, p->out, at, lanes, form == GATED ? swish(z, g.rate) : larger(g.v, z));
            )
        }
    }
}

INLINE void group_reduce_in(int dtype, int form, const problem *p, int64_t n, int64_t c0,
                            int64_t c1)
{
    group_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    const int direct = dtype == FLOAT32 && form == GATED && p->direct, with_v = p->v_grad != NULL;
    PARTS(c, width) {
        set_group_parameters(p, n, c, width, &a);
        STRANDS(s, k, p->pixels) {
            const group_vectors g = group_vectors_of(p, &a, k);
            const vec weight = of_channels(p, a.weight, k);
            vec sum_dz = {0}, sum_dz_x = {0}, sum_dv = {0};
            EACH(s, at, lanes,
                vec x = load(dtype, p->x, at, lanes) - g.mean, dy = load(dtype, p->dy, at, lanes);
                vec dv, dz = activation_grad(form, &g, x * g.scale + g.bias, dy, with_v ? &dv : NULL);
                dz = only(dz, lanes);
                sum_dz += dz;
                sum_dz_x += only(dz * x, lanes);
                if (with_v) sum_dv += only(dv, lanes);
                if (direct) {
                    store(dtype, p->out, at, lanes, dz * weight);
                }
            )
            const int64_t nc = n * p->channels + c + k;
            add_sum(p, SUM_DY, nc, &s, sum_dz);
            add_sum(p, SUM_DY_F, nc, &s, sum_dz_x);
            if (with_v) add_sum(p, SUM_G, nc, &s, sum_dv);
        }
    }
}

INLINE void group_grad_in(int dtype, int form, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    group_parameters a = {{0}, {0}, {0}, {0}, {0}, {0}, {0}};
    float slopes[WIDTH] = {0}, centres[WIDTH] = {0}, shifts[WIDTH] = {0};
    const int direct = dtype == FLOAT32 && form == GATED && p->direct;
    /* One number is its own mean: whatever it is, z is beta, and the gradient exactly 0. */
    const int alone = p->from_mean && p->groups == p->channels && p->pixels == 1;
    PARTS(c, width) {
        set_group_parameters(p, n, c, width, &a);
        for (int64_t k = 0; k < width; k++) {
            const int64_t group = group_of(p, n, c + k);
            if (alone) a.rstd[k] = 0;
            slopes[k] = p->group_grad[group];
            centres[k] = p->mean[group];
            shifts[k] = p->group_shift[group];
        }
        STRANDS(s, k, p->pixels) {
            const group_vectors g = group_vectors_of(p, &a, k);
            const vec weight = of_channels(p, a.weight, k), rstd = of_channels(p, a.rstd, k);
            const vec slope = of_channels(p, slopes, k), centre = of_channels(p, centres, k);
            const vec shift = of_channels(p, shifts, k);
            EACH(s, at, lanes,
                vec x = load(dtype, p->x, at, lanes), dx;
                if (direct) {
                    dx = load(dtype, p->out, at, lanes);
                } else {
                    vec z = (x - g.mean) * g.scale + g.bias, dy = load(dtype, p->dy, at, lanes);
                    dx = activation_grad(form, &g, z, dy, NULL) * weight;
                }
                store(dtype, p->out, at, lanes, (dx + (slope * (x - centre) + shift)) * rstd);
            )
        }
    }
}

/* A loop for all dtypes and both forms, from one that takes them as constants. */
#define FOR_ALL_DTYPES_AND_FORMS(name)                                                             \
    INLINE void name##_of(int dtype, const problem *p, int64_t n, int64_t c0, int64_t c1)          \
    {                                                                                              \
        if (is_gated(p))                                                                           \
            name##_in(dtype, GATED, p, n, c0, c1);                                                 \
        else                                                                                       \
            name##_in(dtype, BOUNDED, p, n, c0, c1);                                               \
    }                                                                                              \
    FOR_ALL_DTYPES(name)

FOR_ALL_DTYPES_AND_FORMS(group_apply)
FOR_ALL_DTYPES_AND_FORMS(group_reduce)
FOR_ALL_DTYPES_AND_FORMS(group_grad)
