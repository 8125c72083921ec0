"""Prompts files (L6, L15, P3): every format gives the rows that were written, and says which rows it cannot take."""

import csv
import io
import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import prompt_files
from lace_lora.config import Config, bounds_of
from lace_lora.errors import SettingsError
from lace_lora.prompt_files import COLUMNS, Asked, one_line, read

TABLES = (".csv", ".tsv")
YAML = (".yaml", ".yml")
ENDINGS = (".txt", *TABLES, ".jsonl", *YAML)


def file_of(folder: Path, ending: str, content: str | bytes) -> Path:
    """A prompts file of that content; text is written as UTF-8."""
    path = folder / f"prompts{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def refusal(path: Path) -> str:
    """What is said of a file that cannot be drawn from."""
    with pytest.raises(SettingsError) as caught:
        read(path)
    return str(caught.value)


def given_of(row: Asked) -> dict:
    """The columns of a row that say something."""
    return {name: value for name, value in asdict(row).items() if value is not None}


def table_of(rows, separator: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> str:
    """Rows as a table, by Python's own writer."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, delimiter=separator, quoting=quoting, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(given_of(row) for row in rows)
    return out.getvalue()


# -- what is written is what is read --

SIGNS = st.sampled_from(
    [*"aZ09 ,;\t|'\"#%&{}()[]:-=+!_.\\/<>İIıiçğşé~*?@`", "e\u0301", "日", "🧶", "👩‍🎨", "\u2028", "\n"]
)
TEXTS = st.one_of(
    st.lists(SIGNS, min_size=1, max_size=30).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.sampled_from(["null", "no", "12:30", "1e3", "2024-01-01", "- a", "? b", "{a: 1}", "sep=;", "prompt", "../../x"]),
).map(one_line).filter(bool)  # fmt: skip
SIDES = st.integers(4, 512).map(lambda number: number * 8)
ROWS = st.builds(
    Asked,
    prompt=TEXTS,
    count=st.none() | st.integers(1, 100_000),
    seed=st.none() | st.integers(0, 2**32 - 1),
    negative_prompt=st.none() | TEXTS,
    width=st.none() | SIDES,
    height=st.none() | SIDES,
    subset=st.none() | TEXTS,
)
CODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prompts")


@given(st.lists(ROWS, min_size=1, max_size=6), st.sampled_from(",;\t"), st.booleans(), CODINGS)
@settings(max_examples=150, deadline=None)
def test_a_table_gives_its_rows_whatever_separates_and_encodes_them(folder, rows, separator, is_quoted, coding):
    """L6, L15: as Excel writes in English, German and Turkish, with and without a byte order mark, and as UTF-16."""
    text = table_of(rows, separator, csv.QUOTE_ALL if is_quoted else csv.QUOTE_MINIMAL)
    assert read(file_of(folder, ".csv", text.encode(coding))) == tuple(rows)


@given(st.lists(TEXTS, min_size=1, max_size=6), CODINGS)
@settings(max_examples=100, deadline=None)
def test_a_table_of_one_column_needs_no_quotes_around_commas(folder, texts, coding):
    """L15: where nothing separates, a comma is a comma; only what begins with a quote must be quoted."""
    texts = [text for text in texts if '"' not in text] or ["white, fine; lace"]
    assert read(file_of(folder, ".csv", "\n".join(["prompt", *texts]).encode(coding))) == tuple(map(Asked, texts))


@given(st.lists(ROWS, min_size=1, max_size=6), CODINGS)
@settings(max_examples=150, deadline=None)
def test_json_lines_give_their_rows(folder, rows, coding):
    """L6, L15: a row that says nothing else may be a text alone; null is the same as nothing."""
    values = [row.prompt if row == Asked(row.prompt) else given_of(row) for row in rows] + [asdict(rows[0])]
    text = "\n".join(json.dumps(value, ensure_ascii=coding == "utf-16") for value in values)
    assert read(file_of(folder, ".jsonl", text.encode(coding))) == (*rows, rows[0])


@given(st.lists(ROWS, min_size=1, max_size=6), st.booleans(), CODINGS)
@settings(max_examples=100, deadline=None)
def test_yaml_gives_its_rows(folder, rows, is_flow, coding):
    """L6, L15: block or flow style, texts and rows mixed, written by PyYAML."""
    values = [row.prompt if row == Asked(row.prompt) else given_of(row) for row in rows] + [asdict(rows[0])]
    text = yaml.safe_dump(values, allow_unicode=True, default_flow_style=is_flow, sort_keys=False)
    assert read(file_of(folder, ".yaml", text.encode(coding))) == (*rows, rows[0])


@given(st.lists(TEXTS, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n", "\r"]), CODINGS)
@settings(max_examples=100, deadline=None)
def test_plain_lines_give_their_prompts(folder, texts, ending, coding):
    """L15: every sign but a comment's is the prompt's own, whichever system ended the lines."""
    texts = [text for text in texts if text != "#" and not text.startswith("# ") and text != "prompt"] or ["a"]
    assert read(file_of(folder, ".txt", ending.join(["", *texts, ""]).encode(coding))) == tuple(map(Asked, texts))


def test_a_line_of_a_hash_and_a_space_is_a_comment(tmp_path):
    """L15: and one that only begins with a hash is a prompt."""
    lines = "# roses\n#rose\n  # indented\n#\n\n rose # 3 \n"
    assert read(file_of(tmp_path, ".txt", lines)) == (Asked("#rose"), Asked("rose # 3"))


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".csv", "sep=;\r\nPrompt;Count;Negative prompt;HEIGHT\r\n\r\na;2.0;;96\r\n;;;\r\nb;;\"c\nd\";"),
        (".CSV", 'Height,negative-prompt, count ,"prompt"\n96,,2,a\n,"c\n\nd",,b,,\n'),
        (".tsv", "prompt\tcount\tnegative_prompt\theight\na\t 2 \t\t96\nb\t\tc  d\n"),
        (".txt", "prompt\tcount\tnegative prompt\theight\na\t2\t\t96\nb\t\tc d\t\n"),
        (".jsonl", '\n{"prompt": "a", "count": 2.0, "height": "96"}\n\n{"prompt": " b ", "Negative prompt": "c\\nd"}'),
        (".yaml", "# mine\n- prompt: a\n  count: 2\n  height: 96\n- {prompt: b, negative_prompt: 'c  d', seed: }\n"),
        (".yml", "- {prompt: a, count: '2', height: 96}\n- &b\n  prompt: b\n  negative_prompt: |\n    c\n    d\n"),
    ],
)  # fmt: skip
def test_tables_as_people_and_programs_write_them(tmp_path, ending, text):
    """L15, P3: capitals, spaces, empty rows, texts over two lines, 2.0 for 2 as pandas writes."""
    assert read(file_of(tmp_path, ending, text)) == (Asked("a", count=2, height=96), Asked("b", negative_prompt="c d"))


def test_an_empty_negative_prompt_is_one_where_a_format_can_say_so(tmp_path):
    """P3: "" asks for none, what is left out asks for the settings' own."""
    assert read(file_of(tmp_path, ".jsonl", '{"prompt": "a", "negative_prompt": " "}'))[0].negative_prompt == ""
    assert read(file_of(tmp_path, ".yaml", "- prompt: a\n  negative_prompt: ''"))[0].negative_prompt == ""
    assert read(file_of(tmp_path, ".yaml", "- prompt: a\n  negative_prompt:"))[0].negative_prompt is None
    assert read(file_of(tmp_path, ".csv", "prompt,negative_prompt\na, "))[0].negative_prompt is None


def test_yaml_keeps_words_that_it_usually_takes_for_something_else(tmp_path):
    """L15."""
    text = "- no\n- 2024\n- 12:30\n- 2024-01-01\n- 1_000\n- a {white|cream} rose\n- true\n"
    prompts = [row.prompt for row in read(file_of(tmp_path, ".yaml", text))]
    assert prompts == ["no", "2024", "12:30", "2024-01-01", "1_000", "a {white|cream} rose", "true"]


def test_prompts_of_any_kind_stay_one_line_of_text(tmp_path):
    """L15: paths, line breaks, emoji, quotes, control signs, 500 words."""
    long = "leaf " * 500
    told = ["../../etc/passwd", "two\nlines\u2028of\tlace", "a \"fine\" 'leaf' 👩‍🎨", "bell\x07 \x1b[2J \ufeff!", long]
    rows = read(file_of(tmp_path, ".jsonl", "\n".join(map(json.dumps, told))))
    expected = ["../../etc/passwd", "two lines of lace", "a \"fine\" 'leaf' 👩‍🎨", "bell [2J !", long.strip()]
    assert [row.prompt for row in rows] == expected


@given(st.text(max_size=60))
def test_one_line_changes_a_text_once(text):
    """L15: and leaves nothing that ends a line anywhere."""
    done = one_line(text)
    assert one_line(done) == done and len(done.splitlines()) <= 1 and "\t" not in done


# -- what cannot be taken --

WRONG_ROWS = [
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": " \u2028 "}, "prompt is empty"),
    ({"count": 3}, "prompt is empty"),
    ({"prompt": "a" * 10_001}, "prompt has 10,001 characters; 10,000 are the most, and the models read 75 tokens"),
    ({"prompt": "a", "count": 0}, "count is 0 but must be 1 to 100000"),
    ({"prompt": "a", "count": -1}, "count is -1 but must be 1 to 100000"),
    ({"prompt": "a", "count": "two"}, "count is 'two', not a whole number"),
    ({"prompt": "a", "count": "2.5"}, "count is '2.5', not a whole number"),
    ({"prompt": "a", "count": "1.000"}, "count is '1.000', not a whole number"),
    ({"prompt": "a", "seed": 2**32}, "seed is 4294967296 but must be 0 to 4294967295"),
    ({"prompt": "a", "seed": -1}, "seed is -1 but must be 0 to 4294967295"),
    ({"prompt": "a", "width": 1004}, "width is 1004 px but must be a multiple of 8; use 1000 or 1008"),
    ({"prompt": "a", "height": 33}, "height is 33 px but must be a multiple of 8; use 32 or 40"),
    ({"prompt": "a", "height": 4097}, "height is 4097 px but must be 32 to 4096"),
    ({"prompt": "a", "promt": "b"}, "there is no column 'promt'; did you mean prompt?"),
    ({"prompt": "a", "text": "b"}, f"there is no column 'text'; the columns are {', '.join(COLUMNS)}"),
    ({"prompt": "a", "Prompt": "b"}, "names prompt twice"),
]


MIXED = """{"prompt": "a", "prompt": "b"}
{"prompt": "a"
plain
"\\ud800"
{"prompt": "a", "count": true}
{"prompt": "a", "seed": 0.5}"""
HUGE = f'{{"prompt": "a", "seed": 1{"0" * 400}}}\n{"9" * 5000}\n{"[" * 100_000}\n{{"prompt": "a", "seed": NaN}}'


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".yaml"])
@pytest.mark.parametrize(("row", "fault"), WRONG_ROWS, ids=range(len(WRONG_ROWS)))
def test_what_is_wrong_with_a_row_is_said_in_every_format(tmp_path, ending, row, fault):
    """L15, P3: no row is drawn from a file with a wrong one."""
    good = {"prompt": "b", "count": 1}
    if ending == ".csv":
        place = "row 1" if "column" in fault or "twice" in fault else "row 2"
        if "".join(map(str, row.values())).isspace() or not any(row.values()):
            row = row | {"seed": 1}  # a row of nothing is none in a table
        if "prompt" not in row:
            row = {"prompt": ""} | row
        out = io.StringIO()
        csv.writer(out).writerows([[*row], [*row.values()]])
        text = out.getvalue()
    else:
        place = "line 2" if ending == ".jsonl" else "row 2"
        dumped = yaml.safe_dump([good, row], allow_unicode=True)
        text = f"{json.dumps(good)}\n{json.dumps(row)}" if ending == ".jsonl" else dumped
    said = refusal(file_of(tmp_path, ending, text))
    assert f"\n  {place}: {fault}\n" in said
    assert said.startswith(f"{tmp_path}/prompts{ending} cannot be drawn from:") and "Correct this" in said


@pytest.mark.parametrize(
    ("ending", "text", "faults"),
    [
        (".jsonl", 'true\n["a"]\n{"prompt": ["a"]}\n{"prompt": 3}\n{"prompt": {"a": 1}}\nnull', [
            "line 1: is true, not a prompt or a row with columns", "line 2: is a list, not a prompt or a row with",
            "line 3: prompt is a list, not a text; put it in quotes", "line 4: prompt is 3, not a text; put it in",
            "line 5: prompt is a table in a table, not a text", "line 6: prompt is empty",
        ]),
        (".jsonl", MIXED, [
            "line 1: names prompt twice", "line 2: is not JSON (Expecting ',' delimiter); write \"a prompt\" or {",
            "line 3: is not JSON (Expecting value)", "line 4: prompt holds half a character",
            "line 5: count is true, not a whole number",
            "line 6: seed is 0.5, not a whole number",
        ]),
        (".jsonl", HUGE, [
            "line 1: seed is a number of more than 18 digits but must be 0 to", "line 2: is not JSON",
            "line 3: is not JSON", "line 4: seed is no usable number, not a whole number",
        ]),
        (".csv", 'prompt,seed\na,1,2\nb,x\n"c",3\n,4\n"d" e,5\nf,y', [
            "row 2: has more cells than there are columns; put a text with a separator in quotes",
            "row 3: seed is 'x', not a whole number", "row 5: prompt is empty",
            "row 6: its quotes cannot be read (',' expected after '\"'); the rows below were not read",
        ]),
        (".csv", 'prompt\na\n"b', ["row 3: its quotes cannot be read (unexpected end of data)"]),
        (".csv", "white lace\nblue lace", ["row 1: there is no column 'white lace'; the columns are",
                                          "row 1: there is no column prompt; the first row names the columns"]),
        (".csv", "promt;cuont\na;3", ["row 1: there is no column 'promt'; did you mean prompt?",
                                      "row 1: there is no column 'cuont'; did you mean count?",
                                      "row 1: there is no column prompt; the first row"]),
        (".txt", "\nprompt\tcount\na\t0", ["row 3: count is 0 but must be"]),
        (".yaml", "- a: white rose\n- \n- [a, b]\n- {white|cream}\n- prompt: a\n  prompt: b\n", [
            "row 1: there is no column 'a'", "row 2: prompt is empty", "row 3: is a list, not a prompt",
            "row 4: there is no column 'white|cream'", "row 5: names prompt twice",
            "\nCorrect this and run again. A prompt that begins with { or holds a colon and a space must stand in",
        ]),
    ],
)  # fmt: skip
def test_every_wrong_row_is_named_by_its_number(tmp_path, ending, text, faults):
    """L15: as a spreadsheet or an editor counts, all at once."""
    said = refusal(file_of(tmp_path, ending, text))
    assert [fault for fault in faults if fault not in said] == []
    places = [line.split(":")[0] for line in said.splitlines() if line.startswith("  ")]
    assert places == [f"  {fault.split(':')[0]}" for fault in faults if not fault.startswith("\n")]


def test_a_thousand_wrong_rows_fit_on_a_screen(tmp_path):
    """L15."""
    said = refusal(file_of(tmp_path, ".jsonl", "x\n" * 1000))
    assert len(said.splitlines()) == 53 and "line 50: " in said and "line 51: " not in said and "and 950 more" in said


@pytest.mark.parametrize(
    ("ending", "content", "said"),
    [
        (".txt", "ok\nd\u00fcz\nok\nğ\n".encode("cp1254"), "is not UTF-8 text in lines 2, 4. In Excel choose"),
        (".csv", b"prompt\r\n\xff", "is not UTF-8 text in line 2."),
        (".txt", "a\nb".encode("utf-16-le"), "holds zero bytes, so it is no text, or in another encoding."),
        (".txt", "a".encode("utf-32"), "holds zero bytes"),
        (".txt", "a".encode("utf-16") + b"\0", "is not UTF-8 text. "),
        (".txt", b"", "holds no prompt. Write one a line"),
        (".txt", b"\xef\xbb\xbf\n# only a comment\n", "holds no prompt"),
        (".csv", b"prompt,count\n,\n", "holds no prompt"),
        (".jsonl", b"\n \n", "holds no prompt"),
        (".yaml", b"# nothing\n", "holds no prompt"),
        (".yaml", b"[]", "holds no prompt"),
        (".yaml", b"prompt: a", "holds names and values, not a list. Begin each row with `- `"),
        (".yaml", b"a white rose", "holds a str, not a list."),
        (".yaml", b"- a\n- {a|b} c", "is not YAML at line 2, column 9: "),
        (".yaml", b"- a\n--- \n- b", "is not YAML at line 2, column 1: but found another document"),
        (".yaml", b"- &a [*a]", "row 1: is a list, not a prompt or a row with columns"),
        (".yaml", b"- &a {prompt: *a}", "found unconstructable recursive node"),
        (".yaml", b"- !!int ''", "is not YAML that can be read here"),
        (".yaml", b"- !!bool x", "is not YAML that can be read here"),
        (".yaml", b"- !!timestamp x", "is not YAML that can be read here"),
        (".yaml", b"- !!python/name:os.system x", "could not determine a constructor"),
        (".yaml", b"[" * 100_000, "is not YAML that can be read here"),
        (".yaml", b"- \x07", "is not YAML that can be read here"),
        (".json", b"[]", "is no prompts file: its name must end in .txt, .csv, .tsv, .jsonl, .yaml, .yml."),
        ("", b"a", "is no prompts file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_says_why_and_what_to_do(tmp_path, ending, content, said):
    """L15."""
    assert said in refusal(file_of(tmp_path, ending, content))


def test_an_alias_is_read_once_however_often_it_is_named(tmp_path):
    """L15: a file of a few lines that would unfold to 10^9 texts is refused at once."""
    levels = "".join(f"- &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert "row 9: is a list" in refusal(file_of(tmp_path, ".yaml", "- &l0 [a]\n" + levels))


def test_missing_and_oversized_files_are_refused(tmp_path, monkeypatch):
    """L15: also a folder, and a pipe, which would be waited for without end."""
    assert "There is no prompts file" in refusal(tmp_path / "gone.txt")
    (tmp_path / "folder.txt").mkdir()
    assert "There is no prompts file" in refusal(tmp_path / "folder.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "There is no prompts file" in refusal(tmp_path / "pipe.txt")
    monkeypatch.setattr(prompt_files, "LARGEST", 100)
    monkeypatch.setattr(prompt_files, "LARGEST_YAML", 50)
    assert len(read(file_of(tmp_path, ".txt", "a\n" * 50))) == 50
    assert "is larger than" in refusal(file_of(tmp_path, ".txt", "a\n" * 50 + "a"))
    assert len(read(file_of(tmp_path, ".yaml", "- a\n" * 12))) == 12
    assert "write it as .jsonl" in refusal(file_of(tmp_path, ".yaml", "- a\n" * 13))


def test_more_prompts_than_a_sheet_can_hold_are_refused(tmp_path, monkeypatch):
    """L6."""
    assert prompt_files.most_pictures() == 100_000
    monkeypatch.setattr(prompt_files, "most_pictures", lambda: 1000)
    assert len(read(file_of(tmp_path, ".txt", "a\n" * 1000))) == 1000
    assert "holds 1,001 prompts; at most 1,000" in refusal(file_of(tmp_path, ".txt", "a\n" * 1001))


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    """L15."""
    path = file_of(tmp_path, ".txt", "a")

    def refuse(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SettingsError, match=r"Cannot read .*prompts.txt \(Permission denied\)"):
        read(path)


@given(
    st.sampled_from(ENDINGS),
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.sampled_from([
            "prompt", "count", "seed", "a", ",", ";", "\t", "\n", '"', "'", "{", "}", "[", "]", ":", "- ", "&a ",
            "*a", "!!int ", "!!set ", "<<", "|", ">", "%", "#", "0", "9", "-", ".", "\\u", "\r", "null", "~", "sep=",
            "\x1f", "\0",
        ]), max_size=40).map(lambda parts: "".join(parts).encode()),
    ),
)  # fmt: skip
@settings(max_examples=600, deadline=None)
def test_no_file_whatever_gives_a_traceback(folder, ending, content):
    """L15: rows that can be drawn, or one SettingsError."""
    path = file_of(folder, ending, content)
    try:
        rows = read(path)
    except SettingsError as error:
        assert str(error).startswith(str(path)) and "Traceback" not in str(error)
    else:
        assert rows
        for row in rows:
            assert row.prompt and row.prompt == one_line(row.prompt)
            assert row.count is None or 1 <= row.count <= 100_000
            assert row.seed is None or 0 <= row.seed < 2**32
            assert all(side is None or (32 <= side <= 4096 and side % 8 == 0) for side in (row.width, row.height))


def test_bounds_are_those_of_the_settings_that_a_row_stands_in_for(tmp_path):
    """L8: a setting's bound that changes changes here too; only seeds go on to all that torch tells apart."""
    for column, name in {"count": "num_images", "width": "width", "height": "height"}.items():
        high = int(bounds_of(Config.model_fields[name])["le"])
        [row] = read(file_of(tmp_path, ".jsonl", json.dumps({"prompt": "a", column: high})))
        assert getattr(row, column) == high
        assert f"{column} is {high + 8}" in refusal(
            file_of(tmp_path, ".jsonl", json.dumps({"prompt": "a", column: high + 8}))
        )
    assert [field.name for field in fields(Asked)] == [*COLUMNS]


def test_P20_a_subset_is_one_line_of_at_most_a_hundred_characters(tmp_path):
    """P20: it becomes a heading and part of a file's name."""
    assert read(file_of(tmp_path, ".csv", "prompt;Subset\na; two  words \nb;\n")) == (
        Asked("a", subset="two words"),
        Asked("b"),
    )
    text = refusal(file_of(tmp_path, ".jsonl", json.dumps({"prompt": "a", "subset": "s" * 101}) + '\n{"subset": 3}'))
    assert "line 1: subset has 101 characters; 100 are the most" in text
    assert "line 2: subset is 3, not a text; put it in quotes" in text


def test_P22_a_reference_is_found_beside_the_prompts_file_however_its_path_is_spelled(tmp_path, monkeypatch):
    """P22: on this system or on Windows, from the root or from the home folder on."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    Image.new("L", (20, 20)).save(folder / "rose 1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelled in ("drawings/rose 1.png", "drawings\\rose 1.png", str(folder / "rose 1.png"), "~/drawings/rose 1.png"):
        text = json.dumps({"prompt": "a", "reference_path": f" {spelled} "})
        assert read(file_of(tmp_path, ".jsonl", text))[0].reference_path == str(folder / "rose 1.png")
    for nothing in ("", " ", None):
        text = json.dumps({"prompt": "a", "reference_path": nothing})
        assert read(file_of(tmp_path, ".jsonl", text))[0].reference_path is None
