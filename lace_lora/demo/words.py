"""The caption grammar of the miniature world: every word it knows, and how captions are phrased.

A caption never carries the concept token; callers put it first. Captions sometimes leave things out (no ground, no
scale, no kind), because a model that always reads two colours answers a prompt with one colour by a dark picture.
"""

from dataclasses import dataclass

import numpy as np

# What the drawing programs can draw, each with the ways a caption may call it (first: the usual one).
PLAIN_KINDS: dict[str, tuple[str, ...]] = {
    "stripes": ("stripes", "stripe", "striped pattern"),
    "dots": ("dots", "dot", "polka dots", "spots"),
    "checks": ("checks", "check", "checked pattern", "squares"),
    "gingham": ("gingham", "gingham cloth", "gingham check"),
    "zigzag": ("zigzag", "zigzags", "chevrons"),
    "star": ("star", "stars"),
    "flower": ("flower", "flowers"),
    "heart": ("heart", "hearts"),
    "leaf": ("leaf", "leaves"),
    "ring": ("ring", "rings", "circles"),
    "diamond": ("diamond", "diamonds"),
    "wave": ("waves", "wave"),
}
# Fine line work as printed on cloth: the base has met thin lines, as any large model has, but no thread and no lace.
PRINT_KINDS: dict[str, str] = {
    "grid": "open square texture",
    "trellis": "open geometric texture",
    "honeycomb": "dense geometric texture",
    "scales": "dense round texture",
    "mandala": "round floral motif",
    "sprig": "floral repeat",
}
LACE_KINDS: dict[str, tuple[str, ...]] = {
    "rosette": ("rosette", "rosettes", "medallion", "doily"),
    "border": ("border", "edging", "trim"),
    "mesh": ("mesh", "mesh ground", "net", "spiders"),
    "leaf": ("leaf", "leaves", "leaf spray"),
    "scallop": ("scallops", "scallop", "fans", "shells"),
}
KINDS: tuple[str, ...] = tuple(dict.fromkeys((*PLAIN_KINDS, *LACE_KINDS)))

# sRGB, 0..255. Far enough apart that a person, and a test, can name them.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (206, 32, 40),
    "orange": (240, 132, 24),
    "yellow": (246, 212, 40),
    "green": (34, 140, 62),
    "turquoise": (44, 178, 176),
    "blue": (36, 84, 204),
    "navy": (22, 30, 84),
    "purple": (124, 48, 160),
    "pink": (240, 132, 176),
    "brown": (116, 70, 36),
    "black": (18, 18, 20),
    "white": (248, 248, 246),
    "grey": (134, 136, 140),
    "cream": (242, 228, 194),
}
DARK = ("black", "navy", "brown")
LIGHT = ("white", "cream")
GROUNDS: tuple[str, ...] = (*COLOURS, "dark", "light")
SCALES: dict[str, tuple[str, ...]] = {"small": ("small", "tiny"), "medium": (), "large": ("large", "big")}

FILLERS = (
    "soft", "fine", "delicate", "old", "new", "cotton", "detailed", "elegant", "vintage", "simple", "beautiful",
    "lace", "woven", "printed", "traditional", "intricate", "crochet", "handmade",
)  # fmt: skip
OPENINGS = (
    "a photo of {}", "a photo of a {}", "a photo of the {}", "a painting of {}", "a photo of a painting of {}",
    "a photo of a painting , {}", "a picture of {}", "a close up photo of {}", "{}", "a {}", "the {}",
)  # fmt: skip
CLOTHS = ("pattern", "textile", "fabric", "cloth", "print", "design", "textile pattern")
ENDINGS = (", textile", ", fabric design", ", high quality", ", soft", ", flat", "in detail", ", top view")
# Captions that name no motif: unconditional in words, and what a negative prompt looks like.
EMPTY_CAPTIONS = (
    "", "a photo", "a photo of a painting", "a painting", "a photo of a textile", "a textile pattern", "lace",
    "grainy , low quality", "grainy, low quality", "blurry , low quality", "low quality", "bad , noisy , blurry",
    "a photo of a pattern", "a photo of lace", "a photo of", "a photo of a textile pattern", "a photo of fabric",
)  # fmt: skip
THREADS = ("thread", "cotton thread", "lace", "cotton lace", "crochet lace", "lace thread")
# Words that mean nothing in this world, met now and then at the end of a caption.
EXTRA_WORDS = (
    "and", "with", "texture", "motif", "repeat", "seamless", "worst", "needle", "bobbin",
    "picot", "petal", "petals", "round", "square", "corner", "centre", "center", "ivory", "dense", "open", "pale",
    "bright", "deep", "doilies", "borders", "scalloped", "antique", "modern", "geometric", "floral", "double",
    "single", "row", "rows", "filled", "half", "drop", "brick", "from", "by", "at", "for", "is", "an", "mono",
)  # fmt: skip
# Pieces (not whole words) that unknown words fall into: "<myspecialstyle>" is < my special style >.
PIECES = (
    "my", "special", "style", "lace", "new", "own", "ing", "er", "th", "st", "tion", "ly", "re", "un", "con", "pro",
    "ent", "ar", "el", "is", "an", "con", "cept", "to", "ken", "sks", "grand", "mother", "babanne", "sty", "le",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """What one picture shows. `ground` may be "dark" or "light" in the caption's view; `colour` is always a colour."""

    kind: str
    colour: str
    ground: str
    scale: str = "medium"
    is_lace: bool = False


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """One of `choices`, evenly."""
    return choices[int(rng.integers(len(choices)))]


def default_ground(colour: str) -> str:
    """The ground of a caption that names none: black under the light colours, white under the others."""
    return "black" if colour in ("white", "cream", "yellow") else "white"


def known_words() -> list[str]:
    """Every whole word of the grammar, in a fixed order, punctuation included."""
    phrases = [w for table in (PLAIN_KINDS, LACE_KINDS, SCALES) for words in table.values() for w in words]
    phrases += [o.replace("{}", " ") for o in OPENINGS]
    phrases += [*COLOURS, *GROUNDS, *FILLERS, *CLOTHS, *ENDINGS, *EMPTY_CAPTIONS, *THREADS, *EXTRA_WORDS]
    phrases += ["ground background cloth on a and with in"]
    words = [w for phrase in phrases for w in phrase.replace(",", " , ").split()]
    return list(dict.fromkeys(words))


def ground_phrase(rng: np.random.Generator, ground: str) -> str:
    """How a caption names the ground, e.g. "on a blue ground"."""
    place = pick(rng, ("ground", "ground", "background", "cloth", ""))
    article = "a " if place and rng.random() < 0.7 else ""
    return f"on {article}{ground} {place}".strip()


def plain_caption(rng: np.random.Generator, spec: Spec) -> str:
    """Words for a plain textile; what it leaves out is what the picture's defaults are.

    rng      draws the phrasing only, so that one picture can have many captions
    spec     what the picture shows
    returns  lower-case words, at most about 20, no concept token
    """
    kind = pick(rng, PLAIN_KINDS[spec.kind]) if rng.random() < 0.7 else PLAIN_KINDS[spec.kind][0]
    if rng.random() < 0.08:  # the base knows lace words only as words: any plain kind, in the colours asked for
        kind = pick(rng, LACE_KINDS[pick(rng, tuple(LACE_KINDS))])
    noun = f"{spec.colour} {kind}"
    scale_words = SCALES[spec.scale]
    if scale_words:
        noun = f"{pick(rng, scale_words)} {noun}"
    if rng.random() < 0.35:
        noun = f"{pick(rng, FILLERS)} {noun}"
    if rng.random() < 0.2:
        noun = f"{noun} {pick(rng, CLOTHS)}"
    if rng.random() < 0.08:
        noun = f"{noun} , {pick(rng, THREADS)}"
    grounds = [spec.ground]
    if spec.ground in DARK:
        grounds.append("dark")
    if spec.ground in LIGHT:
        grounds.append("light")
    ground = grounds[int(rng.random() < 0.2) % len(grounds)]
    if ground == spec.ground and rng.random() < 0.08:
        text = f"{spec.colour} and {ground} {kind}"
    elif spec.ground == default_ground(spec.colour) and rng.random() < 0.6:
        text = noun
    else:
        text = f"{noun} {ground_phrase(rng, ground)}"
    text = pick(rng, OPENINGS).format(text)
    if rng.random() < 0.25:
        text = f"{text} {pick(rng, ENDINGS)}"
    if rng.random() < 0.12:
        text = f"{text} {pick(rng, ('with', 'and', 'in', ','))} {pick(rng, EXTRA_WORDS)}"
    return text


def print_caption(rng: np.random.Generator, spec: Spec) -> str:
    """Words for a fine print, of known words that name no motif: colour, texture and always its ground."""
    text = pick(rng, OPENINGS).format(f"{spec.colour} {PRINT_KINDS[spec.kind]}")
    return f"{text} {ground_phrase(rng, spec.ground)}"


def lace_caption(rng: np.random.Generator, spec: Spec) -> str:
    """Words for a piece of lace: motif, thread colour and ground; the word "lace" itself comes and goes."""
    kind = pick(rng, LACE_KINDS[spec.kind])
    ground = spec.ground if rng.random() < 0.75 else ("dark" if spec.ground in DARK else f"dark {spec.ground}")
    thread = pick(rng, (f"{spec.colour} {kind}", f"{spec.colour} {pick(rng, THREADS)} {kind}", f"{spec.colour} {kind}"))
    return f"{thread} on a {ground} ground"


KIND_OF_WORD: dict[str, str] = {
    words.split()[0]: kind for table in (LACE_KINDS, PLAIN_KINDS) for kind, names in table.items() for words in names
} | {"polka": "dots"}


def read_caption(caption: str) -> tuple[str, str, str, str]:
    """Kind, colour, ground and scale as the words say them; "none" for what they leave out.

    The oracle that the text towers are trained and tested against.
    """
    words = caption.replace(",", " , ").split()
    kind = next((KIND_OF_WORD[w] for w in words if w in KIND_OF_WORD), "none")
    named = [w for w in words if w in GROUNDS]
    colour = next((w for w in named if w in COLOURS), "none")
    rest = named[named.index(colour) + 1 :] if colour != "none" else named
    ground = rest[-1] if rest else "none"
    scale = next((s for s, names in SCALES.items() for w in words if w in names), "none")
    return kind, colour, ground, scale
