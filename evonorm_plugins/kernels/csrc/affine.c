/* The affine transform: what the paper puts where no activation follows. */
#include <stddef.h>

#include "driver.h"

static void fold_parameters(const problem *p, int64_t c)
{
    affine_sums affine = {0, 0};
    for (int64_t n = 0; n < p->samples; n++) add_affine(p, &affine, 1, n, c);
    store_affine(p, &affine, c);
}

/* y. */
int evonorm_affine_forward(const problem *p)
{
    pass a = {NULL, evonorm_loops()->affine_apply, NULL, NULL, NULL, NULL};
    if (!p->x || !p->out || !p->weight || !p->bias) return REFUSED;
    return evonorm_run(p, &a, STEP_WRITE);
}

/* Gradients of x, gamma and beta. The sums come from the loop that writes. */
int evonorm_affine_backward(const problem *p)
{
    pass a = {NULL, evonorm_loops()->affine_grad, NULL, NULL, NULL, fold_parameters};
    if (!p->x || !p->dy || !p->out || !p->weight || !p->weight_grad || !p->bias_grad)
        return REFUSED;
    return evonorm_run(p, &a, STEP_WRITE | STEP_PARAMETERS);
}
