"""This file holds what tells near-duplicates: MinHash of word shingles, and buckets of documents that share some.

References
----------
.. [1] A. Broder, "On the Resemblance and Containment of Documents", 1997, section 3.
.. [2] J. Leskovec et al., "Mining of Massive Datasets", 3rd edition, 2020, section 3.4.
"""

from rensa import RMinHash, RMinHashDeduplicator

__all__ = ["NearDuplicates", "shingles", "signature"]

_WORDS, _SEED = 5, 0
# Of a document; the resemblance is estimated to 0.04 by as many.
_HASHES = 128
# Of four hashes each: of two documents that resemble each other by 0.8, 5 in 100 million pairs share no bucket, and by
# 0.5, one in eight.
_BUCKETS = 32


class NearDuplicates:
    """Documents that were met, as far as later ones are compared with them: 2.6 kB of each.

    Parameters
    ----------
    threshold : float
        From which resemblance on: the share of shingles, of those in either document, that are in both.

    Examples
    --------
    >>> met = NearDuplicates(0.8)
    >>> text = "the quick brown fox jumps over the lazy dog and runs away from all of us " * 3
    >>> [met.add(signature(each)) for each in (text, text + "today", "another text")]
    [True, False, True]
    """

    def __init__(self, threshold: float) -> None:
        self._met = RMinHashDeduplicator(
            threshold, _HASHES, use_lsh=True, num_bands=_BUCKETS, seed=_SEED
        )
        self._count = 0

    def add(self, minhash: RMinHash) -> bool:
        """Return whether the document of a signature resembles none before it, and if so remember it."""
        self._count += 1
        return bool(self._met.add(str(self._count), minhash))


def signature(text: str) -> RMinHash:
    """The MinHash of a document."""
    found = RMinHash(num_perm=_HASHES, seed=_SEED)
    found.update(shingles(text))
    return found


def shingles(text: str) -> list[str]:
    """All sequences of five words of a text, or the text if it is shorter.

    Examples
    --------
    >>> shingles("one two three four five  six")
    ['one two three four five', 'two three four five six']
    """
    words = text.split()
    return [" ".join(words[i : i + _WORDS]) for i in range(max(1, len(words) - _WORDS + 1))]
