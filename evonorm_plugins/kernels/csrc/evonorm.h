/* Fused EvoNorm for CPUs: what all files here share. */
#ifndef EVONORM_H
#define EVONORM_H

#include <stdint.h>

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { B0, B1, B2, RS_REJ };               /* kinds of the B series */
enum { NONE, RELU, SILU, SWISH, TLU };     /* kinds of the group norms: the activation */

/* Sums over the pixels of one sample's channel that the backward pass is made of. f stands for y
   before rstd, gamma and beta, g for x^2 sigmoid' (S series), dy x / max^2 (B series) or the gradient
   of v. Of the group norms dy stands for the gradient of what the activation is given. */
enum { SUM_DY, SUM_DY_F, SUM_G, SUM_G_OWN, SUM_GX_OWN, SUMS };

/* One call. N samples, C channels, P pixels, G groups. module.c fills it in. */
typedef struct {
    int64_t samples, channels, pixels, groups;
    int64_t run;            /* set by the driver: channels whose rows `moments` takes for one */
    int64_t affine_stride;  /* of weight, bias and their gradients over samples: 0 or C */
    int32_t kind;           /* of the B series and the group norms */
    int32_t dtype;          /* of x, dy, out */
    int32_t channels_last;  /* memory is (N, P, C), otherwise (N, C, P) */
    int32_t centred;        /* variance; otherwise mean of squares, and a mean of 0 */
    int32_t from_mean;      /* group norms: x - mean is divided by std; otherwise x */
    int32_t own_batch;      /* B series, batch norm: batch statistics are those of x */
    int32_t over_batch;     /* batch norm, a group norm whose groups are a channel of all samples */
    int32_t threads;
    int32_t direct;         /* set by the driver: the sums' loop leaves in `out`, or where that would
                               round in `held`, the gradient of x at fixed statistics, and the last
                               loop adds theirs */
    double eps;
    const void *x, *dy;     /* (N, C, P) */
    void *out;              /* (N, C, P): y or the gradient of x */
    const float *weight, *bias; /* (C) or (N, C) */
    const float *v;         /* (C) or null; of TLU the threshold */
    double *moments;        /* (2, N, C) or null: mean and sum of squared deviations */
    double *sums;           /* (SUMS, N, C), set by the driver */
    float *held;            /* a thread's own, set by the driver; its first is element `held_from` */
    int64_t held_from;
    float *mean;            /* (N, G), or (N, C) in the B series, (C) in the batch norm */
    float *rstd;            /* (N, G), S series and group norms; (C) in the batch norm */
    float *var;             /* (N, C), B series */
    float *batch_mean, *batch_var; /* (C) */
    float *group_grad;      /* (N, G), set by the driver: factor of x - mean in the gradient of x;
                               of the group norms in that of x / std */
    float *group_shift;     /* (N, G), set by the driver: added to the gradient of x / std */
    float *std_grad;        /* (N, C) or null: gradient of a sample's own std or rms, B series */
    float *batch_var_grad;  /* (C) or null */
    const float *batch_count;  /* (1): elements behind batch_var; null: those of x */
    float *weight_grad, *bias_grad; /* as weight */
    float *v_grad;          /* (C) or null */
} problem;

static inline int64_t bytes_of(const problem *p, int64_t elements)
{
    return elements * (p->dtype == FLOAT32 ? 4 : 2);
}

static inline int64_t group_of(const problem *p, int64_t n, int64_t c)
{
    return (p->over_batch ? 0 : n * p->groups) + c / (p->channels / p->groups);
}

/* Each works on channels [c0, c1) of sample n. */
typedef void loop(const problem *p, int64_t n, int64_t c0, int64_t c1);

typedef struct {
    loop *moments;       /* x -> moments */
    loop *sample_apply;  /* x, mean, rstd -> out */
    loop *sample_reduce; /* x, dy, rstd -> sums, out if direct */
    loop *sample_grad;   /* x, dy, mean, rstd, group_grad -> out */
    loop *group_apply;   /* x, mean, rstd -> out */
    loop *group_reduce;  /* x, dy, mean, rstd -> sums, out if direct */
    loop *group_grad;    /* x, dy, mean, rstd, group_grad, group_shift -> out */
    loop *batch_apply;   /* x, mean, var, batch_var -> out */
    loop *batch_reduce;  /* x, dy, mean, var, batch_var -> sums, out if direct */
    loop *batch_grad;    /* the same, batch_mean, std_grad, batch_var_grad -> out */
    loop *rectified_apply;  /* x, batch_var -> out */
    loop *rectified_reduce; /* x, dy -> sums */
    loop *rectified_grad;   /* x, dy, batch_var, batch_var_grad -> out */
    loop *affine_apply;  /* x -> out */
    loop *affine_grad;   /* x, dy -> out, sums */
} loops;

extern const loops loops_baseline;
#if defined(__x86_64__)
extern int evonorm_has_bfloat16; /* whether the processor may convert to it */
extern const loops loops_avx2, loops_avx512;
#endif

#endif
