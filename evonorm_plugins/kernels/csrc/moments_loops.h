/* Mean and sum of squared deviations of every channel, or of rows that adjoin. */

#define FEW 4      /* vectors whose mean stands for that of a strand */
#define UNROLL 4   /* sums side by side, where the next addition would wait for the last one */

/* `n` numbers, whose deviations from `shift` sum up to s and their squares to ss, join `count`
   others (Chan, Golub, LeVeque 1979); for each of `lanes` channels. */
INLINE void join(const problem *p, double count, double n, int lanes, vec shift, vec s, vec ss,
                 double *mean, double *m2)
{
    const double share = n / (count + n), inverse = 1 / n;
    for (int l = 0; l < lanes; l++) {
        double offset = s[l] * inverse, delta = shift[l] + offset - mean[l];
        if (p->centred) {
            mean[l] += delta * share;
            m2[l] += ss[l] - s[l] * offset + delta * delta * (count * share);
        } else {
            m2[l] += ss[l];
        }
    }
}

/* What a strand's deviations are taken from, near enough to its mean. Where the mean of the first k
   of n numbers is off by d, these k alone add k d^2 to the squares, so that the n d^2 too much
   cost n / k ulps at most. Later strands take the mean of those before, by the same reasoning. */
INLINE vec shift_of(int dtype, int last, const problem *p, strand s, const double *mean)
{
    vec shift = {0};
    if (!p->centred) return shift;
    if (!s.first) {
        for (int l = 0; l < LANES; l++)
            shift[l] = (float)mean[last && l < s.lanes ? l : 0];
        return shift;
    }
    s.whole = least(FEW, s.whole);
    s.rest = s.whole ? 0 : least(FEW, s.rest);
    EACH(s, at, lanes, shift += load(dtype, p->x, at, lanes);)
    if (!last) shift = splat(sum_of(shift));
    return shift / (float)(s.whole * s.wide + s.rest * s.narrow);
}

/* Rows of p->run channels that adjoin count as one, of the first of them. */
INLINE void moments_of(int dtype, int last, const problem *p, int64_t n, int64_t c0, int64_t c1)
{
    for (int64_t c = c0, width; c < c1; c += width) {
        width = last ? part_width(last, c1 - c) : p->run;
        const int64_t pixels = last ? p->pixels : p->pixels * p->run;
        STRANDS(s, k, pixels) {
            double *mean = p->moments + n * p->channels + c + k;
            double *m2 = mean + p->samples * p->channels;
            const int channels = last ? s.lanes : 1;
            for (int l = 0; s.first && l < channels; l++) mean[l] = m2[l] = 0;
            const vec shift = shift_of(dtype, last, p, s, mean);
            const int64_t count = s.whole * s.wide + s.rest * s.narrow;
            vec sum[UNROLL] = {{0}}, squares[UNROLL] = {{0}};
            for (; s.whole >= UNROLL; s.whole -= UNROLL)
                for (int u = 0; u < UNROLL; u++, s.at += s.stride) {
                    ask(dtype, p->x, s.at + s.ahead);
                    vec d = load(dtype, p->x, s.at, LANES) - shift;
                    sum[u] += d;
                    squares[u] += d * d;
                }
            EACH(s, at, lanes,
                vec d = only(load(dtype, p->x, at, lanes) - shift, lanes);
                sum[0] += d;
                squares[0] += d * d;
            )
            for (int u = 1; u < UNROLL; u++) sum[0] += sum[u], squares[0] += squares[u];
            if (!last)
                sum[0] = splat(sum_of(sum[0])), squares[0] = splat(sum_of(squares[0]));
            join(p, (double)pixel_, (double)count, channels, shift, sum[0], squares[0], mean, m2);
        }
    }
}
FOR_ALL_DTYPES(moments)
