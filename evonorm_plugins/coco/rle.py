"""Check COCO's compressed run lengths before C code reads them: wrong ones make it loop for ever.

A mask is the lengths of its runs of 0 and 1, column by column. From the fourth on, each is written
as its difference from the last but one; numbers are cut into 5 bits, lowest first, with a sixth for
"more follows" and the sign in the fifth of the last piece, and 48 is added to get a character.
"""

import numpy as np

_MORE, _SIGN, _BITS, _LONGEST = 32, 16, 5, 12
_AT_ONCE = 500  # masks whose numbers stay in the processor's cache


def first_bad_rle(texts: list[str], areas: list[int]) -> int | None:
    """Index of the first text that is no mask of its area, or None.

    Args:
        texts: compressed counts, one string for each mask.
        areas: height times width of each.
    """
    for start in range(0, len(texts), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        bad = _bad(texts[some], areas[some])
        if bad.any():
            return start + int(bad.argmax())
    return None


def _bad(texts: list[str], areas: list[int]) -> np.ndarray:
    """Which texts are no masks of their areas, (len(texts),) bool."""
    lengths = np.array([len(text) for text in texts])
    letters = np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)
    pieces = letters.astype(np.int64) - 48
    of_text = np.repeat(np.arange(len(texts)), lengths)
    bad = lengths == 0
    bad[of_text[(pieces < 0) | (pieces >= 2 * _MORE)]] = True
    last = np.cumsum(lengths) - 1
    bad |= (pieces[last] & _MORE) != 0
    if bad.any():
        return bad
    runs, of_run, too_long = _numbers(pieces, of_text)
    runs = _undo_differences(runs, of_run)
    sums = np.bincount(of_run, runs, len(texts))
    bad[of_run[(runs < 0) | too_long]] = True
    bad |= sums != np.asarray(areas)
    return bad


def _numbers(pieces: np.ndarray, of_text: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers made of pieces, which text each belongs to, and which have too many pieces."""
    ends = np.flatnonzero((pieces & _MORE) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    count = ends - starts + 1
    place = np.arange(len(pieces)) - np.repeat(starts, count)
    values = (pieces & (_MORE - 1)) << (_BITS * np.minimum(place, _LONGEST - 1))
    numbers = np.add.reduceat(values, starts)
    negative = (pieces[ends] & _SIGN) != 0
    numbers -= negative * (1 << (_BITS * np.minimum(count, _LONGEST)))
    return numbers, of_text[starts], count > _LONGEST


def _undo_differences(numbers: np.ndarray, of_run: np.ndarray) -> np.ndarray:
    first = np.flatnonzero(np.diff(of_run, prepend=-1))
    position = np.arange(len(numbers)) - np.repeat(first, np.diff(first, append=len(numbers)))
    runs = numbers.copy()
    # The second and third start two chains of sums, of odd and of even places.
    for parity in (1, 0):
        chain = (position % 2 == parity) & (position > 0)
        sums = np.cumsum(np.where(chain, numbers, 0))
        before = np.concatenate([[0], sums])[first]
        runs[chain] = (sums - np.repeat(before, np.diff(first, append=len(numbers))))[chain]
    return runs
