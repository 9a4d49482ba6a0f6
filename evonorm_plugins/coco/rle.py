"""Check COCO's compressed run lengths before an evaluator reads them.

Over wrong ones pycocotools loops for ever; hotcoco takes them for masks that meet no other.

A mask is the lengths of its runs of 0 and 1, column by column. From the fourth on, each is written
as its difference from the last but one; numbers are cut into 5 bits, lowest first, with a sixth for
"more follows" and the sign in the fifth of the last piece, and 48 is added to get a character.
"""

import numpy as np

_MORE, _SIGN, _LONGEST = 32, 16, 12
_AT_ONCE = 500  # masks whose numbers stay in the processor's cache


def first_bad_rle(texts: list[str], areas: list[int]) -> int | None:
    """Index of the first text that is no mask of its area, or None.

    Args:
        texts: compressed counts, one string for each mask.
        areas: height times width of each.
    """
    for start in range(0, len(texts), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        if not _are_masks(texts[some], areas[some]):
            pairs = zip(texts[some], areas[some], strict=True)
            return start + [_are_masks([text], [area]) for text, area in pairs].index(False)
    return None


def _are_masks(texts: list[str], areas: list[int]) -> bool:
    lengths = np.array([len(text) for text in texts])
    letters = np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8)
    pieces = letters - np.uint8(48)
    if not lengths.all() or pieces.max() >= 2 * _MORE:  # those below 0 have come out large
        return False
    last_of_texts = np.cumsum(lengths) - 1
    if (pieces[last_of_texts] >= _MORE).any():
        return False
    ends = np.flatnonzero(pieces < _MORE)
    numbers, too_long = _numbers(pieces, ends)
    counts = np.diff(np.searchsorted(ends, last_of_texts), prepend=-1)
    first = np.cumsum(counts) - counts
    sums = numbers[first]
    shortest = sums.min()
    # The second and the third start two chains of sums, of odd and of even places.
    place = np.arange(len(numbers)) - np.repeat(first, counts)
    is_odd = (place & 1).astype(bool)
    for chain, n in ((is_odd, counts // 2), (~is_odd & (place > 0), (counts - 1) // 2)):
        runs, totals = _runs(numbers[chain], n)
        shortest = min(shortest, runs.min(initial=0))
        sums = sums + totals
    return not too_long and bool(shortest >= 0 and (sums == areas).all())


def _numbers(pieces: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, bool]:
    """Numbers made of pieces, given the index of each one's last, and whether one has too many."""
    signed = np.arange(_MORE)
    signed[_SIGN:] -= _MORE
    numbers, count = signed[pieces[ends]], np.diff(ends, prepend=-1)
    longer = np.flatnonzero(count > 1)
    for k in range(1, _LONGEST):
        lower = pieces[ends[longer] - k] & (_MORE - 1)
        numbers[longer] = numbers[longer] * _MORE + lower
        longer = longer[count[longer] > k + 1]
    return numbers, len(longer) > 0


def _runs(changes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the changes so far in each text, and what these come to together.

    Args:
        changes: of one text after the other.
        counts: how many of them are each text's.
    """
    ends = np.cumsum(counts)
    sums = np.concatenate([[0], np.cumsum(changes)])
    runs = sums[1:] - np.repeat(sums[ends - counts], counts)
    sums = np.concatenate([[0], np.cumsum(runs)])
    return runs, sums[ends] - sums[ends - counts]
