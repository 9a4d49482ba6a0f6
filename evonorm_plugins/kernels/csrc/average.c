/* The moving average of a statistic of the batch. */
#include "average.h"

#include <math.h>

#include "driver.h"

int evonorm_move_average(const view *average, const view *value, float share)
{
    if (average->dtype != FLOAT32 || value->dtype != FLOAT32 || average->axes != 1 || value->axes != 1
        || average->sizes[0] != value->sizes[0] || !evonorm_is_contiguous(average)
        || !evonorm_is_contiguous(value))
        return REFUSED;
    float *to = average->data;
    const float *from = value->data;
    for (int64_t i = 0; i < average->sizes[0]; i++) {
        float step = from[i] - to[i];
        /* From the nearer end, as torch.lerp: a share of 1 gives the value itself. */
        float moved = share < 0.5f ? to[i] + share * step : from[i] - (1 - share) * step;
        if (isfinite(moved)) to[i] = moved;
    }
    return DONE;
}
