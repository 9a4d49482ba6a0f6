/* Group norms with an activation: groups of channels of a sample share a mean and a variance. The batch
 * norm is one whose groups are a channel of all samples. */
#include <math.h>
#include <stddef.h>

#include "driver.h"

/* Sums over a group, channels [c, c1) of samples [n, n1) -> what statistics add to the gradient of
   x / std: a multiple of x - mean, and a number. Not of x, whose terms nearly cancel where a group is
   small. */
static void fold_sums(const problem *p, int64_t n, int64_t n1, int64_t c, int64_t c1)
{
    const int64_t at = group_of(p, n, c), c0 = c;
    const double rstd = p->rstd[at], count = (double)((n1 - n) * (c1 - c) * p->pixels);
    double total = 0, total_x = 0;
    for (; n < n1; n++)
        for (c = c0; c < c1; c++) {
            total += weight_at(p, n, c) * sum_at(p, SUM_DY, n * p->channels + c);
            total_x += weight_at(p, n, c) * sum_at(p, SUM_DY_F, n * p->channels + c);
        }
    p->group_grad[at] = (float)(-total_x * rstd * rstd / count);
    p->group_shift[at] = p->from_mean ? (float)(-total / count) : 0.0f;
}

static void fold_group_sums(const problem *p, int64_t n, int64_t g)
{
    const int64_t width = p->channels / p->groups;
    fold_sums(p, n, n + 1, g * width, (g + 1) * width);
}

static void fold_batch_sums(const problem *p, int64_t c) { fold_sums(p, 0, p->samples, c, c + 1); }

/* mean, rstd and the unbiased variance of channel c over the batch, or of the first two what is
   given. */
static void fold_batch_moments(const problem *p, int64_t c)
{
    double mean, var;
    if (p->own_batch) {
        const double count = (double)(p->samples * p->pixels);
        mean = evonorm_batch_moments(p, c, &var);
        p->rstd[p->channels + c] = (float)(count > 1 ? var * (count / (count - 1)) : var);
    } else {
        mean = p->batch_mean[c];
        var = p->batch_var[c];
    }
    p->mean[c] = (float)mean;
    p->rstd[c] = (float)(1 / sqrt(var + p->eps));
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

static problem over_batch(const problem *p)
{
    problem own = *p;
    own.over_batch = own.from_mean = own.centred = 1;
    own.groups = p->channels;
    return own;
}

/* mean, rstd, the unbiased variance of the batch where none is given, and y. */
int evonorm_batch_norm_forward(const problem *p)
{
    const loops *l = evonorm_loops();
    problem own = over_batch(p);
    pass a = {l->moments, l->group_apply, NULL, NULL, fold_batch_moments, NULL};
    if (!is_complete(&own) || p->own_batch != !p->batch_mean || p->own_batch != !p->batch_var)
        return REFUSED;
    return evonorm_run(&own, &a, (p->own_batch ? STEP_READ : 0) | STEP_FOLD | STEP_WRITE);
}

/* Gradients of x, gamma, beta and, where there is room for it, v. Where statistics are given, the loop
   of the sums leaves that of x. */
int evonorm_batch_norm_backward(const problem *p)
{
    const loops *l = evonorm_loops();
    problem own = over_batch(p);
    pass a = {l->group_reduce, l->group_grad, NULL, NULL, fold_batch_sums, fold_parameters};
    pass given = {l->group_reduce, NULL, NULL, NULL, NULL, fold_parameters};
    if (!is_complete(&own) || !p->dy || !p->weight_grad || !p->bias_grad) return REFUSED;
    if (!p->own_batch) return evonorm_run(&own, &given, STEP_READ | STEP_PARAMETERS);
    return evonorm_run(&own, &a, STEP_READ | STEP_FOLD | STEP_WRITE | STEP_PARAMETERS);
}
