/* Group norms with an activation: groups of channels of a sample share a mean and a variance. */
#include <stddef.h>

#include "driver.h"

/* Sums of the channels of group g of sample n -> what statistics add to the gradient of x / std: a
   multiple of x - mean, and a number. Not of x, whose terms nearly cancel where a group is small. */
static void fold_group_sums(const problem *p, int64_t n, int64_t g)
{
    int64_t width = p->channels / p->groups, ng = n * p->groups + g;
    double total = 0, total_x = 0, rstd = p->rstd[ng], count = (double)(width * p->pixels);
    for (int64_t c = g * width; c < (g + 1) * width; c++) {
        total += weight_at(p, n, c) * sum_at(p, SUM_DY, n * p->channels + c);
        total_x += weight_at(p, n, c) * sum_at(p, SUM_DY_F, n * p->channels + c);
    }
    p->group_grad[ng] = (float)(-total_x * rstd * rstd / count);
    p->group_shift[ng] = p->from_mean ? (float)(-total / count) : 0.0f;
}

static void fold_parameters(const problem *p, int64_t c)
{
    affine_sums affine = {0, 0};
    double v_grad = 0;
    for (int64_t n = 0; n < p->samples; n++) {
        add_affine(p, &affine, p->rstd[group_of(p, n, c)], n, c);
        if (p->v_grad) v_grad += sum_at(p, SUM_G, n * p->channels + c);
    }
    store_affine(p, &affine, c);
    if (p->v_grad) p->v_grad[c] = (float)v_grad;
}

static int is_complete(const problem *p)
{
    int needs_v = p->kind == SWISH || p->kind == TLU;
    return p->groups > 0 && p->channels % p->groups == 0 && p->x && p->out && p->weight && p->bias
           && p->mean && p->rstd && (p->v || !needs_v);
}

/* mean, rstd and y. */
int evonorm_group_forward(const problem *p)
{
    const loops *l = evonorm_loops();
    pass a = {l->moments, l->group_apply, evonorm_fold_group_moments, NULL, NULL, NULL};
    if (!is_complete(p)) return REFUSED;
    return evonorm_run(p, &a, STEP_READ | STEP_FOLD | STEP_WRITE);
}

/* Gradients of x, gamma, beta and, where there is room for it, v. */
int evonorm_group_backward(const problem *p)
{
    const loops *l = evonorm_loops();
    pass a = {l->group_reduce, l->group_grad, fold_group_sums, NULL, NULL, fold_parameters};
    if (!is_complete(p) || !p->dy || !p->weight_grad || !p->bias_grad) return REFUSED;
    return evonorm_run(p, &a, STEP_READ | STEP_FOLD | STEP_WRITE | STEP_PARAMETERS);
}
