/* The S series: groups of channels of a sample share a variance. */
#include <math.h>
#include <stddef.h>

#include "driver.h"

void evonorm_fold_group_moments(const problem *p, int64_t n, int64_t g)
{
    int64_t width = p->channels / p->groups, first = n * p->channels + g * width;
    const double *means = p->moments + first, *m2s = means + p->samples * p->channels;
    double mean = 0, m2 = 0;
    for (int64_t c = 0; c < width; c += p->run) mean += (means[c] - mean) / (double)(c / p->run + 1);
    for (int64_t c = 0; c < width; c += p->run) {
        double delta = means[c] - mean;
        m2 += m2s[c] + delta * delta * (double)(p->run * p->pixels);
    }
    p->mean[n * p->groups + g] = (float)mean;
    p->rstd[n * p->groups + g] = (float)(1 / sqrt(m2 / (double)(width * p->pixels) + p->eps));
}

/* Sums of the channels of group g of sample n -> the factor of x - mean in the gradient of x. */
static void fold_group_sums(const problem *p, int64_t n, int64_t g)
{
    int64_t width = p->channels / p->groups, ng = n * p->groups + g;
    double total = 0, rstd = p->rstd[ng];
    for (int64_t c = g * width; c < (g + 1) * width; c++)
        total += weight_at(p, n, c) * sum_at(p, SUM_DY_F, n * p->channels + c);
    p->group_grad[ng] = (float)(-total * rstd * rstd * rstd / (double)(width * p->pixels));
}

static void fold_parameters(const problem *p, int64_t c)
{
    affine_sums affine = {0, 0};
    double v_grad = 0;
    for (int64_t n = 0; n < p->samples; n++) {
        double rstd = p->rstd[group_of(p, n, c)];
        add_affine(p, &affine, rstd, n, c);
        if (p->v_grad) v_grad += rstd * weight_at(p, n, c) * sum_at(p, SUM_G, n * p->channels + c);
    }
    store_affine(p, &affine, c);
    if (p->v_grad) p->v_grad[c] = (float)v_grad;
}

static int is_complete(const problem *p)
{
    return p->groups > 0 && p->channels % p->groups == 0 && p->x && p->out && p->weight && p->mean
           && p->rstd;
}

/* mean, rstd and y. */
int evonorm_sample_forward(const problem *p)
{
    const loops *l = evonorm_loops();
    pass a = {l->moments, l->sample_apply, evonorm_fold_group_moments, NULL, NULL, NULL};
    if (!is_complete(p) || !p->bias) return REFUSED;
    return evonorm_run(p, &a, STEP_READ | STEP_FOLD | STEP_WRITE);
}

/* Gradients of x, gamma, beta and, where there is room for it, v. */
int evonorm_sample_backward(const problem *p)
{
    const loops *l = evonorm_loops();
    pass a = {l->sample_reduce, l->sample_grad, fold_group_sums, NULL, NULL, fold_parameters};
    if (!is_complete(p) || !p->dy || !p->weight_grad || !p->bias_grad) return REFUSED;
    return evonorm_run(p, &a, STEP_READ | STEP_FOLD | STEP_WRITE | STEP_PARAMETERS);
}
