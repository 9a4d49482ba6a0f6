/* Moving averages of statistics of the batch. */
#include "average.h"

#include <math.h>

#include "driver.h"

static int is_of_channels(const view *t, int axes)
{
    return t->device == CPU && t->dtype == FLOAT32 && t->axes == axes && evonorm_is_contiguous(t);
}

int evonorm_move_average(const view *average, const view *value, float share)
{
    if (!is_of_channels(average, 1) || !is_of_channels(value, 1)
        || average->sizes[0] != value->sizes[0])
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

int evonorm_move_moments(const view *mean, const view *var, const view *batches,
                         const view *statistics, double share)
{
    const int64_t channels = statistics->sizes[1];
    if (!is_of_channels(mean, 1) || !is_of_channels(var, 1) || !is_of_channels(statistics, 2)
        || statistics->sizes[0] != 3 || mean->sizes[0] != channels || var->sizes[0] != channels
        || batches->device != CPU || batches->dtype != COUNTER || batches->axes != 0)
        return REFUSED;
    ++*(int64_t *)batches->data;
    float *means = mean->data, *vars = var->data;
    const float *new_means = statistics->data, *new_vars = new_means + 2 * channels;
    for (int64_t i = 0; i < channels; i++) {
        means[i] = (float)(share * new_means[i] + (1 - share) * means[i]);
        vars[i] = (float)(share * new_vars[i] + (1 - share) * vars[i]);
    }
    return DONE;
}
