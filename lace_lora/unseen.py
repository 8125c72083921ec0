"""What is not learnt, and so says how alike different pieces are: which comparisons there are, and what they are worth.

Names, groups and likenesses only: nothing here knows of pictures.
"""

import hashlib
from collections.abc import Collection, Hashable, Sequence

# What is said to be unseen and reaches this is a copy itself, and sets no threshold. Of 69 photographs of different
# pieces of real lace no two reach 0.75 (all 69 are groups of their own); mirrored, or cut by 10 or 15 % on every side,
# 12 of them have 0.998 and more. Of the demo's 60 unseen pieces 30 were compared with its 120: all have 0.9 and more
# (median 0.98), and so have all of 40 learnt ones compared with the others. By near_duplicates the 120 are 8 groups; of
# 30 compared with other groups 40 % have 0.9. So a set is alike by design where most learnt ones of different pieces
# are, or where there are two or more to a piece and most of the unseen ones are.
ALIKE = 0.9
FEW = 4  # comparisons among learnt ones, which do not tell what is usual
# Learnt photographs are compared with the others, drawn by lot, until that many unseen pieces set the threshold: then 1
# in 126 new pictures would be called a copy. At most so many of them, since each takes a fifth of a second.
ENOUGH, MOST = 125, 250


def asked(names: Sequence[str], groups: Sequence[Hashable], held_out: Collection[Hashable]) -> list[int]:
    """Places of the learnt ones that are compared with the others; the same names always give the same.

    groups    of the learnt ones, by piece
    held_out  groups of what was never learnt
    """
    by_lot = sorted(
        range(len(names)), key=lambda place: hashlib.sha256(names[place].encode("utf-8", "replace")).digest()
    )[:MOST]
    enough = (count for count in range(len(by_lot)) if worth(held_out, groups, by_lot[:count]) >= ENOUGH)
    return sorted(by_lot[: next(enough, len(by_lot))])


def worth(held_out: Collection[Hashable], groups: Sequence[Hashable], asked: Sequence[int]) -> int:
    """As how many independent unseen pieces those count that were compared.

    Likeness is mutual: of two learnt pieces that are most like each other both have the same, so that a new piece lies
    above all of n learnt ones if it is in the most alike pair of n + 1, which is 2 in n + 1 and not 1. Counted are
    therefore the pairs of learnt pieces that were compared, each once, and n of them are worth one unseen piece.
    """
    count, questions = len(set(groups)), len({groups[place] for place in asked})
    compared = questions * (count - 1) - questions * (questions - 1) // 2
    return len(held_out) + compared // count


def are_alike_by_design(groups: Sequence[Hashable], among_learnt: Sequence[float], held_out: Sequence[float]) -> bool:
    """Whether the pieces of a set are near copies of each other, so that a likeness of ALIKE says nothing.

    groups        of the learnt ones, by piece
    among_learnt  what learnt ones of different pieces reach
    held_out      what unseen ones reach
    """
    if len(among_learnt) >= FEW and _most(among_learnt):
        return True
    return len(groups) >= FEW and 2 * len(set(groups)) <= len(groups) and _most(held_out or among_learnt)


def _most(likeness: Sequence[float]) -> bool:
    return 2 * sum(one >= ALIKE for one in likeness) > len(likeness)
