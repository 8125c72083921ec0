"""Where Lace LoRA comes from, declared once: badges, install cells and their prose are written from these lines.

After a change here, `make address` writes it into every notebook and into README.md; a test shows that they agree.
"""

# Owner and name on GitHub, such as "somebody/lace-lora". Empty: there is no public address yet. Badges then open
# Colab's start page, where a notebook is uploaded by hand, and install cells look on this machine and in Drive.
GITHUB = ""
BRANCH = "main"
# The package's name on the package index (PyPI). Empty: it is not published there.
INDEX = ""

# The file that `make wheel` makes, and the folders of Drive in which install cells look for it.
WHEELS = "lace_lora-*.whl"
DRIVE = "/content/drive"
DRIVE_FOLDERS = ("lace_lora/", "")  # below MyDrive

TITLE = "#@title Install (under a minute; nothing that Colab brings is replaced)"
COLAB = "https://colab.research.google.com/"
# What the lines that are written into a notebook's first cell begin with.
CONTENTS, BADGE_NOTE = "**Contents:**", "*The badge above opens"


def sources() -> list[str]:
    """What pip is given where there is neither a checkout nor a wheel: the package index, then GitHub."""
    return ([INDEX] if INDEX else []) + ([f"git+https://github.com/{GITHUB}@{BRANCH}"] if GITHUB else [])


def badge(notebook: str) -> str:
    """The "Open in Colab" badge of a notebook, in Markdown. notebook: its path below notebooks/."""
    target = f"{COLAB}github/{GITHUB}/blob/{BRANCH}/notebooks/{notebook}" if GITHUB else COLAB
    return f"[![Open in Colab]({COLAB}assets/colab-badge.svg)]({target})"


def badge_note() -> str:
    """What the badge does, for the first notebook."""
    if GITHUB:
        return f"{BADGE_NOTE} this notebook in Colab. On your own computer, open it in JupyterLab.*"
    return (
        f"{BADGE_NOTE} Colab's start page as long as this project has no public address: choose **Upload** there and "
        "pick this file. On your own computer, open it in JupyterLab.*"
    )


def contents(headings: list[tuple[str, str]]) -> str:
    """A line of links to the headings of a notebook, which have the anchors that `anchor` makes.

    headings  (text, id of its cell) each
    """
    links = (f"[{text}](#{_place(cell_id)})" for text, cell_id in headings)
    return f"{CONTENTS} {' · '.join(links)}"


def anchor(cell_id: str) -> str:
    """What a heading carries so that one link finds it everywhere.

    Colab finds a cell by `#scrollTo=` and its id, and nothing else; JupyterLab and Notebook find an element by its id.
    """
    return f'<a id="{_place(cell_id)}"></a>'


def install_prose() -> str:
    """The text above the install cell: which places are looked at, in plain words."""
    places = [
        "the project's own folder, if this notebook lies in it",
        "a file `lace_lora-….whl` in your Google Drive, in its folder `lace_lora` or at the top (the newest one; "
        "somebody with a computer makes it once by typing `make wheel` in the project's folder)",
    ]
    places += ["what is installed here already"] if sources() else []
    places += [f"`{INDEX}` on the package index (PyPI)"] if INDEX else []
    places += [f"https://github.com/{GITHUB}"] if GITHUB else []
    asks = "" if sources() else " In Colab a window may ask whether this notebook may use your Drive: allow it."
    return (
        "Press ▶ to the left of each grey cell, from the top down, and wait for its tick (or choose **Runtime → Run "
        "all**). This one takes Lace LoRA from the first of these places that has it: "
        f"{'; '.join(places)}.{asks} Then it adds what this machine lacks, and replaces nothing that is here. It takes "
        "under a minute and may be run twice. If it cannot go on, it says in a sentence what to do."
    )


def install_cell() -> str:
    """The first code cell of every notebook: bring the package as a pure wheel, then call `install.missing`."""
    wheels = " + ".join(f'glob(f"{{top}}/{folder}{WHEELS}")' for folder in DRIVE_FOLDERS)
    # Where Lace LoRA can be fetched from everywhere, nobody is asked for Drive only to look for a wheel in it.
    mount = (
        "    with contextlib.suppress(Exception):  # where Drive is refused, nothing is found in it",
        '        if "google.colab" in sys.modules and not is_here:',
        f'            from google.colab import drive; drive.mount("{DRIVE}")',
    )
    public = (f"    if not found and not is_here: found = {_quoted(sources())}",)
    lines = (
        TITLE,
        "import contextlib, importlib.util, os, subprocess, sys; from glob import glob",
        "class Stop(Exception): _render_traceback_ = lambda self: [str(self)]  # shown as a sentence",
        'checkouts = [up for up in (".", "..", "../..") if os.path.isfile(f"{up}/lace_lora/install.py")]',
        "if checkouts: sys.path.insert(0, os.path.abspath(checkouts[0]))",
        f'is_here, top = importlib.util.find_spec("lace_lora") is not None, "{DRIVE}/MyDrive"',
        "if not checkouts:",
        *(() if sources() else mount),
        f"    found = sorted({wheels}, key=os.path.getmtime)[-1:]",
        *(public if sources() else ()),
        '    pip = [sys.executable, *"-m pip install -q --no-deps --force-reinstall".split()]',
        "    is_here = any(not subprocess.run([*pip, one]).returncode for one in found) or (is_here and not found)",
        f'if not is_here: raise Stop("{_what_to_do()}")',
        "importlib.invalidate_caches(); from lace_lora import install; install.missing()",
    )
    return "\n".join(lines)


def readme() -> str:
    """How a notebook and the package come into Colab, for README.md."""
    if sources():
        return f"Each opens in Colab by its badge, and installs Lace LoRA by itself.\n\n{badge('01_set_up.ipynb')}"
    return (
        "As long as the project has no public address, somebody with a computer types `make wheel` and puts the file\n"
        "that it makes into the folder `lace_lora` of Drive, or at its top; upload the notebooks to\n"
        f"[Colab]({COLAB}) with File → Upload notebook."
    )


def _what_to_do() -> str:
    if sources():
        return "Is this machine connected to the internet? Run this cell again in a minute."
    return "Put lace_lora-….whl, whole and with its own name, into Drive, and run this again."


def _place(cell_id: str) -> str:
    return f"scrollTo={cell_id}"


def _quoted(texts: list[str]) -> str:
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"
