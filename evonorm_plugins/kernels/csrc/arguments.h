/* How an argument of Python becomes a field of a problem. */
#ifndef EVONORM_ARGUMENTS_H
#define EVONORM_ARGUMENTS_H

#include "tensors.h" /* before all others */

#include <stddef.h>

#include "evonorm.h"

/* How an argument is read, and what a tensor must be. Those but X and LIKE_X are contiguous and of
   float32, and None is null. RESULT: made in cpu.py, taken as it is. */
enum {
    X = 1,      /* (N, C, ...), dense: sets the shape, the dtype and the memory format */
    LIKE_X,     /* of its shape, dtype and format */
    GAMMA,      /* (C) or (N, C): sets affine_stride */
    LIKE_GAMMA,
    OF_CHANNEL, /* (C) */
    OF_OWN,     /* (N, C) */
    OF_GROUP,   /* (2, N, G): sets the groups, and rstd to what lies behind the mean */
    OF_BATCH,   /* (3, C) or (2, C): sets rstd likewise, and whether the batch is that of x */
    RESULT,
    RESULT_OF_GROUP,
    INT64,
    INT32,
    NUMBER
};

typedef struct {
    int type;
    size_t offset;
} field;

/* Whether the argument is what it must be; it is then put into the problem. x is read first; its
   view's device says where all tensors must be, and if that is any, then where they are. There may be an
   exception where it is not. */
int evonorm_read_argument(problem *p, view *x, const field *f, PyObject *value);

extern PyObject *evonorm_unfit; /* what is raised where an argument is not what it must be */

/* Raises it, and returns null. */
PyObject *evonorm_refuse(const char *why);

#endif
