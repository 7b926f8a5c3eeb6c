"""What is held out, decided by what the pictures show: the same on every machine, in every order, at every size."""

from collections.abc import Sequence

from disegno.training.data.dataset import Subset
from disegno.training.pairs import Pairs


def subset(pairs: Pairs, indices: Sequence[int]) -> Pairs:
    """Return the rows at `indices`, in that order."""
    return Subset(pairs, tuple(indices))


def split(pairs: Pairs, num: int) -> tuple[Pairs, Pairs]:
    """Return (train, held_out), both in the order of `pairs`; at most `num` rows and a tenth of all are held out.

    Rows whose targets have the same bytes stay together, so what is measured has never been learned. The rows with the
    smallest sha256 are held out: adding or removing others changes few of them.
    """
    wanted = min(num, len(pairs) // 10)
    rows_of: dict[str, list[int]] = {}
    if wanted:
        for index in range(len(pairs)):
            rows_of.setdefault(pairs.target_digest(index), []).append(index)
    held: set[int] = set()
    for digest in sorted(rows_of):
        if len(held) + len(rows_of[digest]) <= wanted:
            held.update(rows_of[digest])
    train = [index for index in range(len(pairs)) if index not in held]
    return subset(pairs, train), subset(pairs, sorted(held))
