"""The page and the zip of a sheet of designs (L15, L16)."""

import json
import os
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from lace_lora import page
from lace_lora.errors import RunError
from lace_lora.run_folder import SheetFolder

PROMPT = "a photo of <myspecialstyle> & \"gül\" 'ışık' <script>alert(1)</script>"


class Elements(HTMLParser):
    """Every element of a page with its attributes, and all text that is read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.found if name == tag]


def read(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


def row(index: int, **changes: object) -> dict[str, object]:
    names = {"refined": f"refined_output_{index:03d}.png", "base": f"base_result_{index:03d}.png"}
    size = {"width": 16, "height": 24, "negative_prompt": "grainy", "versions": {"torch": "2"}}
    return {"index": index, "prompt": PROMPT, "seed": 100 + index, **names, **size, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> SheetFolder:
    """Three finished designs, in a folder whose name has to be quoted; the last has a mask and an outline, too."""
    sheet = SheetFolder(tmp_path / "spring & <lace> #1")
    sheet.root.mkdir()
    for index in range(3):
        for path in (sheet.refined(index, "png"), sheet.base(index, "png")):
            Image.new("RGB", (16, 24), (index, 0, 0)).save(path)
    for what in page.BESIDE:
        page.beside(sheet.refined(2, "png"), what).write_bytes(what.encode())
    write_rows(sheet, [row(index) for index in range(3)])
    Image.new("RGB", (9, 9)).save(sheet.contact_sheet)
    return sheet


def write_rows(sheet: SheetFolder, rows: list[object]) -> None:
    sheet.manifest.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")


# The page


def test_the_page_shows_every_design_with_its_prompt_and_seed(folder):
    """L15."""
    shown = read(page.write(folder))
    pictures = shown.all("img")
    assert [unquote(one["src"]) for one in pictures] == [f"./refined_output_{index:03d}.png" for index in range(3)]
    assert all(one["loading"] == "lazy" and one["alt"] == PROMPT for one in pictures)
    assert all((one["width"], one["height"]) == ("16", "24") for one in pictures)
    assert shown.text.count(PROMPT) == 3
    assert all(f"seed {100 + index}" in shown.text for index in range(3))
    assert "grainy" in shown.text and "torch" not in shown.text


def test_words_of_a_prompt_or_a_name_never_become_part_of_the_page(folder):
    """L15: a prompt may come out of anybody's file."""
    evil = "'><img src=x onerror=alert(1)>\"--></style><script>alert(2)</script>"
    write_rows(folder, [row(0, prompt=evil, seed=evil, scheduler=evil, **{evil: evil})])
    shown = read(page.write(folder))
    assert not shown.all("script") and len(shown.all("img")) == 1
    assert evil in shown.text and shown.all("img")[0]["alt"] == evil
    assert not any(name.startswith("on") for _, attrs in shown.found for name in attrs)


def test_the_page_needs_no_network_and_no_script(folder):
    """L15: it opens from Drive and from an unpacked zip."""
    path = page.write(folder)
    shown = read(path)
    assert {tag for tag, _ in shown.found}.isdisjoint({"script", "link", "iframe", "base", "object"})
    assert "http" not in path.read_text(encoding="utf-8")
    for address in [one["href"] for one in shown.all("a")] + [one["src"] for one in shown.all("img")]:
        parts = urlsplit(address)
        assert not parts.scheme and not parts.netloc
        if parts.path:
            assert (folder.root / unquote(parts.path)).is_file()
        else:
            assert any(one.get("id") == parts.fragment for one in shown.all("article"))


def test_the_page_fits_a_phone_and_the_dark(folder):
    """L15."""
    text = page.write(folder).read_text(encoding="utf-8")
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text


def test_what_was_made_of_a_design_is_linked_where_it_is_there(folder):
    """L15: mask, outline and repeat; the picture before the refiner is L16's."""
    shown = read(page.write(folder))
    links = [unquote(one["href"]) for one in shown.all("a")]
    for ending in page.BESIDE.values():
        assert f"./refined_output_002{ending}" in links
        assert f"./refined_output_001{ending}" not in links
    assert all(f"./base_result_{index:03d}.png" in links for index in range(3))
    assert "./contact_sheet.png" in links
    write_rows(folder, [row(0, refined=None)])
    shown = read(page.write(folder))
    assert shown.all("img")[0]["src"] == "./base_result_000.png" and "before the refiner" not in shown.text


def test_favourites_have_a_star_and_are_linked_at_the_top(folder):
    """L15."""
    shown = read(page.write(folder, starred={1, 77}))
    assert [one["href"] for one in shown.all("a")].count("#design-1") == 1
    assert "#design-77" not in [one["href"] for one in shown.all("a")]
    assert len([one for one in shown.all("span") if one.get("aria-label") == "favourite"]) == 1
    assert "★" not in read(page.write(folder)).text


def test_designs_that_are_gone_and_rows_that_are_wrong_are_left_out(folder, tmp_path):
    """L15: a changed row cannot bring in a file from elsewhere."""
    outside = tmp_path / "private.png"
    Image.new("RGB", (4, 4)).save(outside)
    (folder.root / "linked.png").symlink_to(outside)
    (folder.root / ".hidden.png").write_bytes(outside.read_bytes())
    names = ["../private.png", str(outside), "linked.png", ".hidden.png", "gone.png", "x\0.png", "x" * 5000, 7, "", "."]
    wrong = [row(10 + number, refined=name, base=name) for number, name in enumerate(names)]
    folder.refined(0, "png").unlink()
    write_rows(folder, [row(2, prompt="earlier"), row(2), *wrong, 7, None, [], {"index": "x"}, {}, row(0), row(1)])
    shown = read(page.write(folder))
    assert [unquote(one["src"]) for one in shown.all("img")] == ["./refined_output_001.png", "./refined_output_002.png"]
    assert "2 designs" in shown.text and "earlier" not in shown.text
    with zipfile.ZipFile(page.zipped(folder)) as archive:
        assert not [name for name in archive.namelist() if "private" in name or "linked" in name or "hidden" in name]


def test_a_sheet_of_very_many_designs_is_shown_in_part_and_it_is_said(folder, monkeypatch):
    """L15."""
    monkeypatch.setattr(page, "ON_PAGE", 2)
    shown = read(page.write(folder, starred={0, 2}))
    assert len(shown.all("img")) == 2 and "3 designs, the first 2 are shown" in shown.text
    assert "#design-2" not in [one["href"] for one in shown.all("a")]


def test_a_folder_without_designs_is_said(tmp_path):
    """L15."""
    for make in (page.write, page.zipped):
        with pytest.raises(RunError, match="nothing.* holds no finished designs.*lace-lora generate"):
            make(SheetFolder(tmp_path / "nothing"))
    assert list(tmp_path.iterdir()) == []


# The zip


def test_the_zip_holds_what_is_finished_and_nothing_else(folder):
    """L15: no latents, no partial or hidden files, no other programs' files, no earlier zip."""
    page.write(folder)
    folder.latents.mkdir()
    for name in ("latents/drawn-00000.safetensors", ".DS_Store", "refined_output_003.png.partial", "notes.txt"):
        (folder.root / name).write_bytes(b"x")
    folder.request.write_text("{}")
    Image.new("RGB", (4, 4)).save(folder.base(3, "png"))  # drawn, but not refined yet: no row
    path = page.zipped(folder)
    assert page.zipped(folder) == path == folder.root / "spring & <lace> #1.zip"
    finished = [path.name for index in range(3) for path in (folder.refined(index, "png"), folder.base(index, "png"))]
    finished += [f"refined_output_002{ending}" for ending in page.BESIDE.values()]
    finished += ["index.html", "images.jsonl", "contact_sheet.png"]
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(f"{folder.root.name}/{name}" for name in finished)
        assert archive.testzip() is None
        for name in finished:
            assert archive.read(f"{folder.root.name}/{name}") == (folder.root / name).read_bytes()
    assert not [one for one in os.listdir(folder.root) if "zip" in one and one != path.name]


def test_the_same_files_give_the_same_zip_whenever_they_were_written(folder):
    """L15."""
    first = page.zipped(folder).read_bytes()
    for path in folder.root.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o600)
    write_rows(folder, [row(index) for index in range(3)])
    assert page.zipped(folder).read_bytes() == first


def test_the_unpacked_page_finds_all_its_pictures(folder, tmp_path):
    """L15."""
    page.write(folder)
    with zipfile.ZipFile(page.zipped(folder)) as archive:
        archive.extractall(tmp_path / "elsewhere")
    unpacked = tmp_path / "elsewhere" / folder.root.name
    shown = read(unpacked / "index.html")
    linked = [one["href"] for one in shown.all("a")] + [one["src"] for one in shown.all("img")]
    assert linked and all((unpacked / unquote(address)).is_file() for address in linked)
