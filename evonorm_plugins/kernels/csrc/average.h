/* The moving average of a statistic of the batch. */
#ifndef EVONORM_AVERAGE_H
#define EVONORM_AVERAGE_H

#include "tensors.h"

/* The average, the value, and its share in what comes of both; (C) each. An average that would not be
   finite stays as it is. Returns DONE, or REFUSED. */
int evonorm_move_average(const view *average, const view *value, float share);

#endif
