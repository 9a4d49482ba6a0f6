/* What the driver (driver.c) and the passes of a formula (sample.c, group.c, batch.c, affine.c)
 * share. */
#ifndef EVONORM_DRIVER_H
#define EVONORM_DRIVER_H

#include "evonorm.h"

enum { STEP_READ = 1, STEP_FOLD = 2, STEP_WRITE = 4, STEP_PARAMETERS = 8 };
enum { DONE, SHORT_OF_MEMORY, REFUSED }; /* what a call returns */

typedef struct {
    loop *read, *write;
    void (*fold_group)(const problem *, int64_t n, int64_t g); /* null in the B series */
    void (*fold_own)(const problem *, int64_t n, int64_t c);   /* null but in the B series */
    void (*fold_batch)(const problem *, int64_t c);            /* null where there is none */
    void (*fold_parameters)(const problem *, int64_t c);       /* null forward */
} pass;

int evonorm_level(void);
void evonorm_choose(int wanted);
int evonorm_has_openmp(void);
/* Moments of the channels of group g of sample n -> mean and rstd of the group. */
void evonorm_fold_group_moments(const problem *p, int64_t n, int64_t g);
/* Moments of channel c of all samples -> its mean, and its biased variance. */
double evonorm_batch_moments(const problem *p, int64_t c, double *var);

const loops *evonorm_loops(void);
int evonorm_run(const problem *p, const pass *a, int steps);

static inline double sum_at(const problem *p, int which, int64_t nc)
{
    return p->sums[which * p->samples * p->channels + nc];
}

static inline double weight_at(const problem *p, int64_t n, int64_t c)
{
    return p->weight[n * p->affine_stride + c];
}

/* Gradients of gamma and beta of one channel: sums over samples, or those of one sample. */
typedef struct {
    double weight, bias;
} affine_sums;

/* Adds sample n, whose x before gamma is `scale` f; stored where gamma is its own. */
static inline void add_affine(const problem *p, affine_sums *a, double scale, int64_t n, int64_t c)
{
    int64_t nc = n * p->channels + c;
    a->weight += scale * sum_at(p, SUM_DY_F, nc);
    a->bias += sum_at(p, SUM_DY, nc);
    if (p->affine_stride) {
        p->weight_grad[nc] = (float)a->weight;
        p->bias_grad[nc] = (float)a->bias;
        a->weight = a->bias = 0;
    }
}

/* Stores the sums over samples, where these share gamma. */
static inline void store_affine(const problem *p, const affine_sums *a, int64_t c)
{
    if (p->affine_stride) return;
    p->weight_grad[c] = (float)a->weight;
    p->bias_grad[c] = (float)a->bias;
}

#endif
