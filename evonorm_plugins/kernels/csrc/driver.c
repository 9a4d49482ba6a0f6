/* The driver: shares the work of a pass out to threads.
 *
 * A pass has a first step that reads (statistics or sums), a fold of small arrays, and a last step
 * that writes. Where there are parts enough for the threads, a thread takes one part through all
 * three, so that the last step finds in the cache what the first one read. Each number is computed
 * by one thread in a fixed order, whatever the number of threads.
 */
#define _DEFAULT_SOURCE /* madvise */
#include "driver.h"

#include "shares.h"

#include <stddef.h>
#include <stdlib.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

static void fold(const problem *p, const pass *a, int64_t n0, int64_t n1, int64_t c0, int64_t c1)
{
    int64_t width = p->groups ? p->channels / p->groups : 1;
    for (int64_t n = n0; n < n1; n++) {
        if (a->fold_group)
            for (int64_t g = c0 / width; g < c1 / width; g++) a->fold_group(p, n, g);
        if (a->fold_own)
            for (int64_t c = c0; c < c1; c++) a->fold_own(p, n, c);
    }
    if (a->fold_batch)
        for (int64_t c = c0; c < c1; c++) a->fold_batch(p, c);
}

static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t parts_of(int64_t n, int64_t width) { return (n + width - 1) / width; }

enum {
    SMALL_PART = 32 << 10,   /* bytes: below, sharing out costs more than it brings */
    CACHED_PART = 1 << 20,   /* bytes: above, a part has left the cache before its last step */
    SMALL_SHARE = 8 << 10,   /* elements: below, another thread costs more than it brings */
    LARGE_RESULT = 32 << 20, /* bytes: from here on, large pages are asked for */
    VECTOR = 16,             /* channels: a part begins at a multiple, where channels are last */
    FEW_CHANNELS = 128,      /* of each pixel: less at a time leaves too much of a page unread */
    MANY_CHANNELS = 256,     /* more do not make it faster */
    PACKED_BYTES = 8 << 10,  /* of a tensor, for which the stack has room */
    SHORT_ROW = 512,         /* pixels: a longer row gains nothing from being read with others */
    HELD_BYTES = 2 << 20,    /* that a thread holds of a part: more would have left the cache */
};

/* Columns that give each thread four parts, of several that make `others` each: some come late. */
static int64_t enough_columns(const problem *p, int64_t others)
{
    return parts_of(4 * p->threads, others);
}

/* Channels that a thread takes through all steps at a time, a multiple of `unit`, of `samples`
   samples. 0 where each step is to go through everything before the next one. */
static int64_t width_of_part(const problem *p, int64_t unit, int64_t samples)
{
    if (p->channels_last && VECTOR % unit == 0) unit = at_most(VECTOR, p->channels);
    int64_t bytes = at_least(bytes_of(p, unit * samples * p->pixels), 1);
    int64_t units, others = p->samples / samples, all = parts_of(p->channels, unit);
    if (p->channels_last) {
        int64_t few = at_most(FEW_CHANNELS, p->channels);
        units = at_most(CACHED_PART / bytes, at_least(MANY_CHANNELS / unit, 1));
        if (units * unit < few) return 0;
    } else {
        units = parts_of(SMALL_PART, bytes);
        /* Rows of several samples lie apart: longer ones are read faster. */
        if (samples > 1) units = at_least(units, 4096 / at_least(p->pixels, 1));
    }
    int64_t columns = enough_columns(p, others);
    if (columns > 1) units = at_most(units, (all - 1) / (columns - 1));
    int64_t width = at_most(at_least(units, 1) * unit, p->channels);
    return others * parts_of(p->channels, width) < p->threads ? 0 : width;
}

/* One step over all samples in columns of `thin` channels. */
static void run_step(const problem *p, work *w, loop *step, int64_t thin)
{
    int64_t columns = parts_of(p->channels, thin);
    int passed = 0;
    for (int64_t i; (i = take(w, &passed)) >= 0;) {
        int64_t n = i / columns, c0 = i % columns * thin;
        step(p, n, c0, at_most(c0 + thin, p->channels));
    }
}

/* How a pass is divided. */
typedef struct {
    int64_t unit;     /* channels that belong together */
    int64_t together; /* samples a part is made of */
    int64_t width;    /* channels of a part; 0: each step goes through everything */
    int64_t held;     /* numbers that a thread holds of a part between its steps, in float */
} plan;

/* Numbers of a sample that lie from the first of a part to its last. */
static int64_t span_of(const problem *p, int64_t width)
{
    return p->pixels * (p->channels_last ? p->channels : width);
}

static plan plan_of(const problem *p, const pass *a, int steps)
{
    plan l = {a->fold_group ? p->channels / p->groups : 1, a->fold_batch ? p->samples : 1, 0, 0};
    l.width = width_of_part(p, l.unit, l.together);
    int64_t held = span_of(p, l.width) * l.together;
    int is_backward = a->fold_parameters && steps & STEP_READ && steps & STEP_WRITE;
    if (is_backward && p->dtype != FLOAT32 && held <= HELD_BYTES / 4) l.held = held;
    return l;
}

/* All steps of a part, channels [c0, c1) of samples [n0, n1). */
static void run_part(const problem *p, const plan *l, const pass *a, int steps, int64_t n0,
                     int64_t c0)
{
    const int64_t n1 = n0 + l->together, c1 = at_most(c0 + l->width, p->channels);
    const int64_t span = span_of(p, c1 - c0), first = p->channels_last ? 0 : c0 * p->pixels;
    problem own = *p;
    if (p->held) own.held += this_thread() * l->held;
    for (int64_t n = n0; n < n1 && steps & STEP_READ; n++) {
        own.held_from = n * p->channels * p->pixels + first - (n - n0) * span;
        a->read(&own, n, c0, c1);
    }
    if (steps & STEP_FOLD) fold(p, a, n0, n1, c0, c1);
    for (int64_t n = n1; n-- > n0 && steps & STEP_WRITE;) {
        own.held_from = n * p->channels * p->pixels + first - (n - n0) * span;
        a->write(&own, n, c0, c1);
    }
}

static void run_pass(problem *p, const plan *l, const pass *a, int steps)
{
    const int64_t threads = p->threads, width = l->width, fused = width > 0;
    const int64_t columns = fused ? parts_of(p->channels, width) : 0;
    const int64_t rows = p->samples / l->together;
    /* By the shape alone, as statistics must be the same bits for any number of threads. */
    p->run = !p->channels_last && p->pixels < SHORT_ROW ? l->unit : 1;
    int64_t thin = p->run;
    if (p->channels_last) {
        thin = parts_of(p->channels, enough_columns(p, p->samples));
        thin = parts_of(thin, VECTOR) * VECTOR;
    }
    if (fused && threads == 1) { /* asking OpenMP takes as long as a small tensor does */
        for (int64_t n = 0; n < p->samples; n += l->together)
            for (int64_t c = 0; c < p->channels; c += width) run_part(p, l, a, steps, n, c);
        if (steps & STEP_PARAMETERS)
            for (int64_t c = 0; c < p->channels; c++) a->fold_parameters(p, c);
        return;
    }

    work first, second; /* of all steps or the first one, of the last one */
    share_out(&first, fused ? rows * columns : p->samples * parts_of(p->channels, thin), threads);
    second = first;
#if defined(_OPENMP)
#pragma omp parallel num_threads((int)threads) if (threads > 1)
#endif
    {
        if (fused) {
            int passed = 0;
            for (int64_t i; (i = take(&first, &passed)) >= 0;)
                run_part(p, l, a, steps, i / columns * l->together, i % columns * width);
        } else {
            if (steps & STEP_READ) run_step(p, &first, a->read, thin);
#if defined(_OPENMP)
#pragma omp barrier
#pragma omp single
#endif
            if (steps & STEP_FOLD) fold(p, a, 0, p->samples, 0, p->channels);
            if (steps & STEP_WRITE) run_step(p, &second, a->write, thin);
        }
        if (steps & STEP_PARAMETERS) {
#if defined(_OPENMP)
#pragma omp barrier
#pragma omp for schedule(static)
#endif
            for (int64_t c = 0; c < p->channels; c++) a->fold_parameters(p, c);
        }
    }
}

/* Asks for large pages below a result so large that its memory is always fresh from the system: a
   third of the time would go to the faults of small pages. Smaller results as a rule lie in memory
   that was in use before. Only a wish, so errors do not matter. */
static void prefer_large_pages(const problem *p)
{
#if defined(__linux__)
    const uintptr_t page = 4096;
    int64_t bytes = bytes_of(p, p->samples * p->channels * p->pixels);
    if (!p->out || bytes < LARGE_RESULT) return;
    uintptr_t from = ((uintptr_t)p->out + page - 1) / page * page;
    uintptr_t to = ((uintptr_t)p->out + (uintptr_t)bytes) / page * page;
    (void)madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)p;
#endif
}

/* Room for what one step of a call hands to the next, where the caller does not want it. Returns what
   is to be freed, or null. */
static void *make_scratch(problem *p, int is_forward, int64_t held)
{
    size_t nc = (size_t)(p->samples * p->channels), c = (size_t)p->channels;
    size_t doubles = is_forward ? 2 * nc : SUMS * nc;
    size_t floats = is_forward ? 0 : nc + nc + c + (size_t)held;
    double *memory = malloc(doubles * sizeof(double) + floats * sizeof(float));
    if (!memory) return NULL;
    float *rest = (float *)(memory + doubles);
    if (is_forward) {
        if (!p->moments) p->moments = memory;
        return memory;
    }
    p->sums = memory;
    p->group_grad = rest;
    p->group_shift = rest + nc; /* no formula has both this and the next */
    if (!p->std_grad) p->std_grad = rest + nc;
    if (!p->batch_var_grad) p->batch_var_grad = rest + nc + nc;
    if (held) p->held = rest + nc + nc + c;
    return memory;
}

static int run(const problem *given, const pass *a, int steps)
{
    problem p = *given;
    /* Memory of one pixel per channel is the same in both layouts; channels then lie together. */
    p.channels_last |= p.pixels == 1;
    int64_t shares = p.samples * p.channels * p.pixels / SMALL_SHARE;
    p.threads = (int32_t)at_least(at_most(p.threads, shares), 1);
    plan l = plan_of(&p, a, steps);
    void *scratch = make_scratch(&p, !a->fold_parameters, l.held * p.threads);
    if (!scratch) return SHORT_OF_MEMORY;
    /* Saves the last loop the formulas. */
    p.direct = steps & STEP_READ && steps & STEP_WRITE && (p.dtype == FLOAT32 || l.held);
    prefer_large_pages(&p);
    run_pass(&p, &l, a, steps);
    free(scratch);
    return DONE;
}

/* Matrices (rows, columns) -> (columns, rows), one after the other. */
static void transpose(const problem *p, const void *from, void *to, int64_t rows, int64_t columns)
{
    const uint32_t *words = from;
    const uint16_t *halves = from;
    for (int64_t n = 0, at = 0; n < p->samples; n++)
        for (int64_t j = 0; j < columns; j++)
            for (int64_t i = 0; i < rows; i++, at++) {
                int64_t of = (n * rows + i) * columns + j;
                if (p->dtype == FLOAT32)
                    ((uint32_t *)to)[at] = words[of];
                else
                    ((uint16_t *)to)[at] = halves[of];
            }
}

/* Whether x is small and its rows, the pixels of a channel, leave most of a vector idle. */
static int has_short_rows(const problem *p)
{
    int64_t elements = p->samples * p->channels * p->pixels;
    int64_t lanes = 4 << at_most(evonorm_level(), 2);
    return !p->channels_last && p->pixels > 1 && 2 * p->pixels <= lanes
           && p->channels >= lanes && bytes_of(p, elements) <= PACKED_BYTES;
}

/* With a copy of x that has channels last, so that vectors are full. */
static int run_packed(const problem *given, const pass *a, int steps)
{
    problem p = *given;
    uint32_t x[PACKED_BYTES / 4], dy[PACKED_BYTES / 4], out[PACKED_BYTES / 4];
    transpose(&p, p.x, x, p.channels, p.pixels);
    p.x = x;
    if (p.dy) {
        transpose(&p, p.dy, dy, p.channels, p.pixels);
        p.dy = dy;
    }
    if (p.out) p.out = out;
    p.channels_last = 1;
    int status = run(&p, a, steps);
    if (p.out && status == DONE) transpose(&p, out, given->out, p.pixels, p.channels);
    return status;
}

/* Returns DONE, or SHORT_OF_MEMORY. */
int evonorm_run(const problem *p, const pass *a, int steps)
{
    return has_short_rows(p) ? run_packed(p, a, steps) : run(p, a, steps);
}
