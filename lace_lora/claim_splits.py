"""Which claims are learnt from and which are held out: whole patents, or whole trees of claims, never single rows.

Claims of one patent say nearly the same; with some of them on each side, what is measured on the held-out ones would
only show what was learnt by heart. Patents that share a drawing stay together too.
"""

from collections.abc import Mapping, Sequence

from lace_lora.claim_links import Claim
from lace_lora.claims import Key
from lace_lora.errors import SettingsError
from lace_lora.near_duplicates import held_out

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)


def split(
    claims: Sequence[Claim], shares: Sequence[float] = SHARES, seed: int = 0, drawings: Mapping[Key, str] | None = None
) -> dict[Key, str]:
    """The split of each claim, as near to the wished shares as whole groups allow; the same for the same claims.

    shares    of train, validation and test; they add up to 1
    seed      another seed, another choice
    drawings  what tells each claim's drawing from others (a digest), for those that have one

    Raises SettingsError for shares that cannot be.
    """
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] < 0.5:
        told = ", ".join(f"{share:g}" for share in shares)
        raise SettingsError(
            f"The shares of train, validation and test are {told}; give three numbers that add up to 1, the first at "
            "least 0.5, such as 0.8, 0.1, 0.1."
        )
    groups = groups_of(claims, drawings)
    found = dict.fromkeys((claim.key for claim in claims), SPLITS[0])
    left = groups
    for name, share in ((SPLITS[2], shares[2]), (SPLITS[1], shares[1])):
        count = sum(len(group) for group in left)
        wished = share * len(claims) / count if count else 0.0
        places = {key: number for number, key in enumerate(key for group in left for key in group)}
        numbered = [[places[key] for key in group] for group in left]
        chosen = set(held_out(numbered, min(0.5, wished), seed, ["\x1f".join(key) for key in places]))
        taken = [group for group in left if places[group[0]] in chosen]
        left = [group for group in left if places[group[0]] not in chosen]
        found |= {key: name for group in taken for key in group}
    return found


def groups_of(claims: Sequence[Claim], drawings: Mapping[Key, str] | None = None) -> list[tuple[Key, ...]]:
    """Claims that stay together: of one patent, else of one tree, and those whose groups share a drawing."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    names = {claim.key: f"patent {claim.patent_id}" if claim.patent_id else f"tree {claim.root[1]}" for claim in claims}
    for claim in claims:
        for parent in claim.parents:  # a claim with several parents joins their trees
            if parent in names:
                leader[lead(names[claim.key])] = lead(names[parent])
        if drawing := (drawings or {}).get(claim.key):
            leader[lead(names[claim.key])] = lead(f"drawing {drawing}")
    found: dict[str, list[Key]] = {}
    for key, name in names.items():
        found.setdefault(lead(name), []).append(key)
    return [tuple(keys) for keys in found.values()]
