/* The B series: the variance of a sample's channel, and that of the batch. RS + rej has the latter
 * alone. */
#include <math.h>
#include <stddef.h>

#include "driver.h"

/* Moments of channel c of sample n -> its mean and variance. */
static void fold_own_moments(const problem *p, int64_t n, int64_t c)
{
    int64_t nc = n * p->channels + c;
    p->mean[nc] = (float)p->moments[nc];
    p->var[nc] = (float)(p->moments[p->samples * p->channels + nc] / (double)p->pixels);
}

double evonorm_batch_moments(const problem *p, int64_t c, double *var)
{
    const double *means = p->moments + c, *m2s = means + p->samples * p->channels;
    double mean = 0, m2 = 0;
    for (int64_t n = 0; n < p->samples; n++)
        mean += (means[n * p->channels] - mean) / (double)(n + 1);
    for (int64_t n = 0; n < p->samples; n++) {
        double delta = means[n * p->channels] - mean;
        m2 += m2s[n * p->channels] + delta * delta * (double)p->pixels;
    }
    *var = m2 / (double)(p->samples * p->pixels);
    return mean;
}

static void fold_batch_moments(const problem *p, int64_t c)
{
    double var;
    p->batch_mean[c] = (float)evonorm_batch_moments(p, c, &var);
    p->batch_var[c] = (float)var;
}

static void fold_own_sums(const problem *p, int64_t n, int64_t c)
{
    int64_t nc = n * p->channels + c;
    double by_own = sum_at(p, SUM_G_OWN, nc);
    if (p->kind == B1) by_own += sum_at(p, SUM_GX_OWN, nc);
    p->std_grad[nc] = (float)(-weight_at(p, n, c) * by_own);
}

static void fold_batch_sums(const problem *p, int64_t c)
{
    double total = 0;
    for (int64_t n = 0; n < p->samples; n++)
        total -= weight_at(p, n, c) * sum_at(p, SUM_G, n * p->channels + c);
    p->batch_var_grad[c] = (float)(total / (2 * sqrt(p->batch_var[c] + p->eps)));
}

static double rstd_of_batch(const problem *p, int64_t c)
{
    return 1 / sqrt(p->batch_var[c] + p->eps);
}

/* The same of RS + rej, whose sums are not yet divided by its rms. */
static void fold_rectified_sums(const problem *p, int64_t c)
{
    double total = 0, rstd = rstd_of_batch(p, c);
    for (int64_t n = 0; n < p->samples; n++)
        total -= weight_at(p, n, c) * sum_at(p, SUM_DY_F, n * p->channels + c);
    p->batch_var_grad[c] = (float)(total * rstd * rstd * rstd / 2);
}

static void fold_rectified_parameters(const problem *p, int64_t c)
{
    affine_sums affine = {0, 0};
    for (int64_t n = 0; n < p->samples; n++) add_affine(p, &affine, rstd_of_batch(p, c), n, c);
    store_affine(p, &affine, c);
}

static void fold_parameters(const problem *p, int64_t c)
{
    affine_sums affine = {0, 0};
    double v_grad = 0;
    for (int64_t n = 0; n < p->samples; n++) {
        add_affine(p, &affine, 1, n, c);
        if (p->v_grad) v_grad -= weight_at(p, n, c) * sum_at(p, SUM_GX_OWN, n * p->channels + c);
    }
    store_affine(p, &affine, c);
    if (p->v_grad) p->v_grad[c] = (float)v_grad;
}

static int has_parameters(const problem *p)
{
    int has_own = p->kind == RS_REJ ? !p->mean && !p->var : p->mean && p->var;
    return p->weight && has_own && p->batch_var && (p->v || p->kind != B0);
}

/* Statistics (STEP_READ, STEP_FOLD) and y (STEP_WRITE); STEP_READ alone: the moments. */
int evonorm_batch_forward(const problem *p, int steps)
{
    const loops *l = evonorm_loops();
    void (*fold_batch)(const problem *, int64_t) = p->own_batch ? fold_batch_moments : NULL;
    pass a = {l->moments, l->batch_apply, NULL, fold_own_moments, fold_batch, NULL};
    pass rectified = {l->moments, l->rectified_apply, NULL, NULL, fold_batch, NULL};
    if (!p->x || (!p->moments && !(steps & ~STEP_READ))) return REFUSED;
    if (steps & STEP_FOLD && p->own_batch && !p->batch_mean) return REFUSED;
    if (steps & STEP_WRITE && !(has_parameters(p) && p->bias && p->out)) return REFUSED;
    return evonorm_run(p, p->kind == RS_REJ ? &rectified : &a, steps);
}

/* Sums (STEP_READ), what they mean for statistics (STEP_FOLD) and parameters (STEP_PARAMETERS), and
   the gradient of x (STEP_WRITE). */
int evonorm_batch_backward(const problem *p, int steps)
{
    const loops *l = evonorm_loops();
    pass a = {l->batch_reduce, l->batch_grad, NULL, fold_own_sums, fold_batch_sums, fold_parameters};
    pass rectified = {l->rectified_reduce, l->rectified_grad, NULL, NULL, fold_rectified_sums,
                      fold_rectified_parameters};
    if (!p->x || !p->dy || !has_parameters(p)) return REFUSED;
    if (steps & STEP_WRITE && !p->out) return REFUSED;
    if (steps & STEP_PARAMETERS && !(p->weight_grad && p->bias_grad)) return REFUSED;
    int has_std_grad = p->kind == RS_REJ || p->std_grad;
    if (!(steps & STEP_FOLD) && !(has_std_grad && p->batch_var_grad)) return REFUSED;
    return evonorm_run(p, p->kind == RS_REJ ? &rectified : &a, steps);
}
