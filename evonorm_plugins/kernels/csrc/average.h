/* Moving averages of statistics of the batch. */
#ifndef EVONORM_AVERAGE_H
#define EVONORM_AVERAGE_H

#include "tensors.h"

/* The average, the value, and its share in what comes of both; (C) each. An average that would not be
   finite stays as it is. Returns DONE, or REFUSED. */
int evonorm_move_average(const view *average, const view *value, float share);

/* The averages of mean and unbiased variance, (C) each, the number of batches, one more now, the
   statistics (3, C) of a batch norm, and their share; as torch does, whatever comes of it. Returns DONE,
   or REFUSED. */
int evonorm_move_moments(const view *mean, const view *var, const view *batches,
                         const view *statistics, double share);

#endif
