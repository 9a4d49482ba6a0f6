/* How the loops walk over x: parts, strands, vectors, and the sums over them. */
#include <math.h>

#include "evonorm.h"
#include "vectors.h"

#define BLOCK 512  /* elements of a row at a time */
#define TILE 16    /* pixels at a time, where channels are last */
#define WIDTH 256  /* channels at a time, where channels are last */
#define AHEAD 512  /* elements between what is read and what is asked for, in a row */
#define NEAR 40000 /* elements: what is no larger is asked for while the part before is written */

/* All loops take `last`, whether channels are last, as a constant, as they take the dtype: so that a
   row of few pixels costs little besides its numbers.

   Channels come in parts [c, c + width): one row (the pixels of a channel), or up to WIDTH channels
   where these are last. */
#define PARTS(c, width)                                                                            \
    for (int64_t c = c0, width; c < c1 && (width = part_width(last, c1 - c), 1); c += width)

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t part_width(int last, int64_t left)
{
    return last ? least(WIDTH, left) : 1;
}

/* A part is read in strands: vectors of the same channels, a block of a row or one vector of
   channels at each pixel of a tile. In a strand `whole` vectors, `stride` elements apart, are
   followed by `rest` vectors of which only the first `lanes` numbers belong to it. */
typedef struct {
    int64_t at, stride, whole, rest, ahead;
    int lanes, first; /* first: it is the first of its channels */
    int wide, narrow; /* numbers that a channel has in a vector, whole or not */
} strand;

/* The strand that starts at pixel `pixel` of `pixels` of channel c; `left` channels of the part are
   left. */
INLINE strand strand_of(const problem *p, int last, int64_t n, int64_t c, int64_t left,
                        int64_t pixel, int64_t pixels)
{
    strand s;
    s.first = pixel == 0;
    if (last) {
        int64_t len = least(TILE, pixels - pixel);
        s.at = (n * pixels + pixel) * p->channels + c;
        s.stride = p->channels;
        s.lanes = (int)least(LANES, left);
        s.whole = s.lanes == LANES ? len : 0;
        s.rest = len - s.whole;
        s.ahead = TILE * p->channels;
        s.wide = s.narrow = 1;
    } else {
        int64_t len = least(BLOCK, pixels - pixel);
        s.at = (n * p->channels + c) * p->pixels + pixel;
        s.stride = LANES;
        s.whole = len / LANES;
        s.lanes = (int)(len % LANES);
        s.rest = s.lanes > 0;
        s.ahead = AHEAD;
        s.wide = LANES;
        s.narrow = s.lanes;
    }
    return s;
}

#define STRANDS(s, k, pixels)                                                                      \
    for (int64_t pixel_ = 0; pixel_ < pixels; pixel_ += last ? TILE : BLOCK)           \
        for (int64_t k = 0, on_ = 1; on_; k += LANES, on_ = last && k < width)                     \
            for (strand s = strand_of(p, last, n, c + k, width - k, pixel_, pixels), *once_ = &s;  \
                 once_; once_ = NULL)

/* Statements for each vector of a strand: `at` is its first element, `lanes` how many belong to it. */
#define EACH(s, at, lanes, ...)                                                                    \
    {                                                                                              \
        int64_t at = s.at;                                                                         \
        for (int64_t i_ = 0; i_ < s.whole; i_++, at += s.stride) {                                 \
            const int lanes = LANES;                                                               \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        for (int64_t i_ = 0; i_ < s.rest; i_++, at += s.stride) {                                  \
            const int lanes = s.lanes;                                                             \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

/* How far away the x of the next part is, of which this thread will read the statistics. Without
   asking, memory would rest while a part in the cache is gone through again. */
INLINE int64_t next_part(const problem *p, int last, int64_t channels)
{
    int64_t elements = channels * p->pixels;
    return last || elements > NEAR ? 0 : elements;
}

/* The group of a channel, and those of its channels that are left. Counted on from part to part: a
   division takes as long as several vectors, and a small image has few. */
typedef struct {
    int64_t group, left, size;
} group_place;

INLINE group_place group_place_of(const problem *p, int64_t n, int64_t c)
{
    const int64_t size = p->channels / p->groups, left = size - c % size;
    group_place at = {group_of(p, n, c), left, size};
    return at;
}

INLINE void next_channel(group_place *at)
{
    if (--at->left) return;
    at->group++;
    at->left = at->size;
}

/* A parameter of channel k of a part and those that follow, as it belongs to a strand. */
INLINE vec of_channels(int last, const float *parameter, int64_t k)
{
    return last ? load_floats(parameter + k, LANES) : splat(parameter[0]);
}

/* What the first loop of the backward pass leaves to the last one. */
INLINE void hold(int dtype, const problem *p, int64_t at, int n, vec x)
{
    if (dtype == FLOAT32)
        store_floats((float *)p->out + at, n, x);
    else
        store_floats(p->held + (at - p->held_from), n, x);
}

INLINE vec held(int dtype, const problem *p, int64_t at, int n)
{
    if (dtype == FLOAT32) return load_floats((const float *)p->out + at, n);
    return load_floats(p->held + (at - p->held_from), n);
}

/* Adds the sums over a strand to those of the problem. */
INLINE void add_sum(const problem *p, int last, int which, int64_t nc, const strand *s, vec sum)
{
    double *to = p->sums + which * p->samples * p->channels + nc;
    if (!last) {
        *to = sum_of(sum) + (s->first ? 0 : *to);
        return;
    }
    float lanes[LANES];
    store_floats(lanes, LANES, sum);
    for (int l = 0; l < s->lanes; l++) to[l] = lanes[l] + (s->first ? 0 : to[l]);
}

/* One function for all dtypes and memory formats, from one that takes these as constants. The copy of
   the problem is one that no store can change, so that it stays in registers. */
#define FOR_ALL_DTYPES(name)                                                                       \
    static void name(const problem *given, int64_t n, int64_t c0, int64_t c1)                      \
    {                                                                                              \
        const problem p = *given;                                                                  \
        switch (p.dtype << 1 | !!p.channels_last) {                                                \
        case FLOAT32 << 1: name##_of(FLOAT32, 0, &p, n, c0, c1); break;                            \
        case FLOAT32 << 1 | 1: name##_of(FLOAT32, 1, &p, n, c0, c1); break;                        \
        case BFLOAT16 << 1: name##_of(BFLOAT16, 0, &p, n, c0, c1); break;                          \
        case BFLOAT16 << 1 | 1: name##_of(BFLOAT16, 1, &p, n, c0, c1); break;                      \
        case FLOAT16 << 1: name##_of(FLOAT16, 0, &p, n, c0, c1); break;                            \
        default: name##_of(FLOAT16, 1, &p, n, c0, c1);                                             \
        }                                                                                          \
    }
