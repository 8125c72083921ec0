"""Claims of patents as the USPTO publishes them in XML: an example of a reader of one's own, no parser of everything.

Read are grants and applications since 2001, in the four forms of those years, by the names of their elements: `claim`
or `CLM` with its text, `claim-ref` or "claim 1" in the text for what it refers to, the number, the title and the
classes of the document. Several documents one after the other in one file, as in the weekly ones, are read too.
Source: https://www.uspto.gov/learning-and-resources/xml-resources
"""

import re
from collections.abc import Iterator
from html.entities import name2codepoint
from pathlib import Path
from xml.etree import ElementTree

from lace_lora import claim_language
from lace_lora.errors import SettingsError
from lace_lora.file_names import printable
from lace_lora.tables import Cells, Row

LARGEST = 1024**3  # bytes; a weekly file has about half of that
ROOTS = {
    "us-patent-grant": "grant",
    "us-patent-application": "application",
    "patent-application-publication": "application, 2001 to 2004",
    "PATDOC": "grant, 2001 to 2004",
}
_NUMBER = (".//publication-reference//doc-number", ".//subdoc-bibliographic-information/document-id/doc-number",
           ".//SDOBI/B100/B110//PDAT")  # fmt: skip
_KIND = (".//publication-reference//kind", ".//subdoc-bibliographic-information/document-id/kind-code",
         ".//SDOBI/B100/B130/PDAT")  # fmt: skip
_TITLE = (".//invention-title", ".//title-of-invention", ".//B540")
_CLASSES = (".//classification-ipc/main-classification", ".//classification-ipc/further-classification", ".//ipc",
            ".//B510/B511/PDAT", ".//B510/B512/PDAT")  # fmt: skip
_CPC = ".//classification-cpc"  # section, class, subclass, main-group and subgroup apart, since 2015
_BLOCKS = {"claim-text", "PARA", "p", "BTEXT"}  # elements whose text is no continuation of the word before them


def rows_of(path: Path) -> tuple[list[Row], list[str]]:
    """The claims of a file as rows (claim_id, claim_text, dependent_on, patent_id, title, cpc), and notes.

    Raises SettingsError where the file is no XML, or no document of the USPTO.
    """
    rows: list[Row] = []
    notes: list[str] = []
    for number, document in enumerate(_documents(path), 1):
        root = _parsed(path, document, number)
        if root.tag not in ROOTS and number > 1:  # weekly files also hold lists of sequences
            notes.append(f"{printable(path.name)}: document {number} is a {printable(root.tag)}; it is passed over")
            continue
        if root.tag not in ROOTS:
            raise SettingsError(
                f"{printable(path)} is XML, but no patent of the USPTO: it begins with <{printable(root.tag)}>, not "
                f"with one of {', '.join(ROOTS)}. Write its claims into a table with claim_id and claim_text."
            )
        found = _claims(root)
        rows += found
        patent = _patent_id(root) or f"document {number}"
        if not found:
            notes.append(f"{printable(path.name)}: {patent} has no claims that can be read; it is passed over")
    return rows, notes


# -- inside --


def _documents(path: Path) -> Iterator[bytes]:
    """The documents of a file, each from its first line on."""
    try:
        if path.stat().st_size > LARGEST:
            raise SettingsError(f"{printable(path)} is larger than {LARGEST / 1024**3:g} GB. Split it.")
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"Cannot read {printable(path)} ({error.strerror}). Check who may read it.") from error
    starts = [match.start() for match in re.finditer(rb"(?m)^<\?xml ", data)] or [0]
    starts[0] = 0
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        yield data[start:end]


def _parsed(path: Path, document: bytes, number: int) -> ElementTree.Element:
    # Nothing outside the file is read, and expat itself stops entities that grow without end. defusedxml would refuse
    # grants of 2001 to 2004, which declare each of their drawings as an entity.
    parser = ElementTree.XMLParser()
    parser.entity.update({name: chr(code) for name, code in name2codepoint.items()})
    try:
        parser.feed(document)
        return parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        which = f", document {number}," if number > 1 else ""
        raise SettingsError(
            f"{printable(path)}{which} is no XML that can be read ({error}). Fetch it again from the USPTO."
        ) from error


def _claims(root: ElementTree.Element) -> list[Row]:
    patent, title = _patent_id(root), _first(root, _TITLE)
    classes = ", ".join(_classes(root))
    rows = []
    for number, element in enumerate([one for one in root.iter() if one.tag in ("claim", "CLM")], 1):
        text = re.sub(r"^\s*\d{1,4}\s*\.\s*", "", _text(element))
        told = element.get("num") or re.sub(r"\D", "", element.get("id") or element.get("ID") or "")
        own = int(told) if told.isdecimal() else number
        parents = [int(digits) for one in element.iter() if (digits := _referred(one))]
        parents = list(dict.fromkeys(parents)) or [one for one in claim_language.claims_in(text) if one != own]
        cells = {
            "claim_id": str(own), "claim_text": text, "dependent_on": [str(one) for one in parents] or None,
            "patent_id": patent, "title": title, "cpc": classes or None,
        }  # fmt: skip
        rows.append(Row(f"{patent or 'patent'} claim {own}", Cells(cells.items())))
    return rows


def _referred(element: ElementTree.Element) -> str:
    """The number of the claim that a claim-ref element refers to, or nothing."""
    if element.tag not in ("claim-ref", "CLREF", "dependent-claim-reference"):
        return ""
    return re.sub(r"\D", "", element.get("idref") or element.get("ID") or element.get("depends_on") or "")


def _patent_id(root: ElementTree.Element) -> str:
    """Such as US6859910B2: country, number without the zeros in front of it, kind."""
    number, kind = _first(root, _NUMBER), _first(root, _KIND)
    plain = re.sub(r"^([A-Z]*)0+", r"\1", number)
    return f"US{plain}{kind}" if plain else ""


def _classes(root: ElementTree.Element) -> list[str]:
    written = [_text(element) for path in _CLASSES for element in root.findall(path)]
    for one in root.findall(_CPC):
        parts = [one.findtext(name, "") for name in ("section", "class", "subclass", "main-group", "subgroup")]
        written.append("{}{}{} {}/{}".format(*parts))
    return list(dict.fromkeys(found for text in written for found in claim_language.cpc_in(text)))


def _first(root: ElementTree.Element, paths: tuple[str, ...]) -> str:
    found = next((one for path in paths if (one := root.find(path)) is not None), None)
    return _text(found) if found is not None else ""


def _text(element: ElementTree.Element) -> str:
    """The text of an element and all inside it; blocks stand apart, what is bold or a link does not."""
    parts: list[str] = []

    def walk(one: ElementTree.Element) -> None:
        parts.append((" " if one.tag in _BLOCKS else "") + (one.text or ""))
        for child in one:
            walk(child)
            parts.append((" " if child.tag in _BLOCKS else "") + (child.tail or ""))

    walk(element)
    return " ".join("".join(parts).split())
