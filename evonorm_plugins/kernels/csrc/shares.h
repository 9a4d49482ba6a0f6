/* Work shared out to threads: each has a share of its own, and from where that is done on those of
 * others that came late. So a thread finds in its cache what it left there in the pass before.
 */
#ifndef EVONORM_SHARES_H
#define EVONORM_SHARES_H

#include <stdint.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

static inline int this_thread(void)
{
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

enum { MOST_SHARES = 64 };
typedef struct {
    int64_t next, end;
    char apart[48]; /* so that each lies in a cache line of its own */
} share;
typedef struct {
    share of[MOST_SHARES];
    int count;
} work;

static inline void share_out(work *w, int64_t parts, int64_t threads)
{
    w->count = (int)(threads < MOST_SHARES ? threads : MOST_SHARES);
    for (int i = 0; i < w->count; i++) {
        w->of[i].next = parts * i / w->count;
        w->of[i].end = parts * (i + 1) / w->count;
    }
}

/* The next part for this thread, or -1; `passed` counts the shares that it found done. */
static inline int64_t take(work *w, int *passed)
{
    const int own = this_thread();
    for (; *passed < w->count; ++*passed) {
        share *s = &w->of[(own + *passed) % w->count];
        int64_t part;
#if defined(_OPENMP)
#pragma omp atomic capture
#endif
        part = s->next++;
        if (part < s->end) return part;
    }
    return -1;
}

#endif
