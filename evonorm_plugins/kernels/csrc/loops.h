/* The loops over elements, compiled once for each instruction set.
 *
 * Sums are kept in float over a block, which lies in the first-level cache, and in double over
 * blocks. Comparisons are written so that NaN comes out wherever plain arithmetic gives NaN.
 */
#include "walks.h"

#include "affine_loops.h"
#include "batch_loops.h"
#include "moments_loops.h"
#include "rectified_loops.h"
#include "sample_loops.h"
/* With functions of the latter. */
#include "group_loops.h"

const loops LOOPS = {
    moments,         sample_apply,     sample_reduce,  sample_grad,  group_apply,
    group_reduce,    group_grad,       batch_apply,    batch_reduce, batch_grad,
    rectified_apply, rectified_reduce, rectified_grad, affine_apply, affine_grad,
};
