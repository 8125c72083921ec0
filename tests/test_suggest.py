"""Suggested captions are cleaned, refused when worthless and saved at once; what people wrote stays as it is."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import data_utils, stopping, suggest
from lace_lora.errors import ModelError, PicturesError, SettingsError
from tests.conftest import draw_lace, draw_threads

ROOT = Path(__file__).parent.parent
TOKEN, PROMPT = "<myspecialstyle>", "a photo of <myspecialstyle>"
SEEN = ["a doily", "a collar with leaves", "a narrow edge", "round motifs on net", "a veil", "white scallops"]


def run(folder, captioner, names=None, **more):
    """One run over a folder with its annotations.txt; returns what came of it and what was said."""
    said: list[str] = []
    values = {"concept_token": TOKEN, "instance_prompt": PROMPT, "existing": suggest.written(folder)} | more
    values.setdefault("save", suggest.saver(folder, say=said.append))
    names = data_utils.list_images(folder) if names is None else names
    return suggest.captions(folder, names, captioner, say=said.append, **values), said


class Scripted:
    """A captioner that gives these answers in turn, raising those that are errors, and notes what it was shown."""

    def __init__(self, *answers):
        self.answers, self.shown = list(answers), []

    def __call__(self, picture):
        self.shown.append(picture)
        answer = self.answers[(len(self.shown) - 1) % len(self.answers)]
        if isinstance(answer, BaseException):
            raise answer
        return answer


# ---- what is written


def test_every_picture_gets_the_instance_prompt_and_what_it_shows_and_training_can_read_it(lace_folder):
    """C4, L11: the concept token stands where config's instance prompt has it."""
    came, said = run(lace_folder, Scripted(*SEEN))
    examples = data_utils.read_annotations(lace_folder)
    assert [example.caption for example in examples] == [f"{PROMPT}, {text}" for text in SEEN]
    assert came.captions == {example.path.name: example.caption for example in examples}
    assert came.written == tuple(came.captions) and not came.kept and not came.refused and not came.is_stopped
    assert came.summary == "captions  6 suggested" and any("6/6" in line for line in said)


def test_a_prompt_without_the_token_gives_way_to_the_token(lace_folder):
    """C4: the token is in every caption, whatever the prompt says."""
    came, _ = run(lace_folder, Scripted(*SEEN), instance_prompt="a photo of lace")
    assert came.captions["lace_0.jpg"] == f"{TOKEN}, a doily"
    with pytest.raises(SettingsError, match="The concept token is empty; write for example <myspecialstyle>"):
        run(lace_folder, Scripted("x"), concept_token=" ")


def test_the_captioner_sees_upright_rgb_pictures_in_the_order_of_the_names(lace_folder):
    """C4: what training will see, turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 90), "white").save(lace_folder / "lace_1.jpg", exif=exif)
    captioner = Scripted(*SEEN)
    run(lace_folder, captioner)
    assert [one.mode for one in captioner.shown] == ["RGB"] * 6 and captioner.shown[1].size == (90, 60)
    with Image.open(lace_folder / "lace_5.jpg") as last:
        assert captioner.shown[5].size == last.size != captioner.shown[0].size


def test_only_annotations_and_its_backup_are_written(lace_folder):
    """C4, P4: the pictures keep their bytes, and the earlier file is kept once."""
    (lace_folder / "annotations.txt").write_text("lace_3.jpg\tmy own words\n", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in lace_folder.iterdir()}
    _, said = run(lace_folder, Scripted(*SEEN))
    after = {path.name: path.read_bytes() for path in lace_folder.iterdir()}
    assert after.keys() - before.keys() == {"annotations.txt.bak"}
    assert after["annotations.txt.bak"] == before["annotations.txt"]
    assert all(after[name] == before[name] for name in before if name != "annotations.txt")
    assert said.count("the earlier annotations.txt is kept as annotations.txt.bak") == 1


# ---- what is kept


def test_a_caption_that_is_there_is_never_overwritten_unless_that_is_asked_for(lace_folder):
    """C4: existing captions are never overwritten silently."""
    own = {"lace_0.jpg": "my own words", "lace_4.jpg": f"{PROMPT}, from Brugge"}
    (lace_folder / "annotations.txt").write_text("".join(f"{n}\t{c}\n" for n, c in own.items()), encoding="utf-8")
    captioner = Scripted(*SEEN)
    came, said = run(lace_folder, captioner)
    assert len(captioner.shown) == 4 and came.kept == ("lace_0.jpg", "lace_4.jpg")
    assert {name: suggest.written(lace_folder)[name] for name in own} == own
    assert "kept 2 captions that are there already" in said and "2 kept as they were" in came.summary
    came, _ = run(lace_folder, Scripted(*SEEN), overwrite=True)
    assert came.captions["lace_0.jpg"] == f"{PROMPT}, a doily" and not came.kept


def test_the_bare_instance_prompt_counts_as_not_written(lace_folder):
    """C4: after `annotate`, suggestions still have something to do, and a person's words stay."""
    data_utils.create_annotations(lace_folder, PROMPT, captions={"lace_2.jpg": "my own words"})
    came, _ = run(lace_folder, Scripted(*SEEN))
    assert came.kept == ("lace_2.jpg",) and len(came.written) == 5
    assert suggest.written(lace_folder)["lace_2.jpg"] == "my own words"


def test_a_worthless_suggestion_leaves_the_earlier_caption_even_when_overwriting(lace_folder):
    """C4."""
    (lace_folder / "annotations.txt").write_text("lace_0.jpg\tmy own words\n", encoding="utf-8")
    came, _ = run(lace_folder, Scripted(""), overwrite=True)
    assert came.captions == {"lace_0.jpg": "my own words"} and len(came.refused) == 6


def test_lines_of_pictures_that_are_gone_or_not_asked_for_stay(lace_folder):
    """L11: a run over one picture loses nothing of the others."""
    text = "gone.jpg\tonce there\nlace_5.jpg\tmy own words\n"
    (lace_folder / "annotations.txt").write_text(text, encoding="utf-8")
    run(lace_folder, Scripted("a veil"), names=["lace_1.jpg", lace_folder / "lace_1.jpg"])
    assert suggest.written(lace_folder) == {
        "lace_1.jpg": f"{PROMPT}, a veil",
        "gone.jpg": "once there",
        "lace_5.jpg": "my own words",
    }


@pytest.mark.parametrize("line", ["lace_0.jpg no tab", "../other.jpg\tx", "a.jpg\tx\na.jpg\ty"])
def test_annotations_that_cannot_be_read_are_refused_before_anything_is_asked(lace_folder, line):
    """L11: a file with such lines would lose them."""
    (lace_folder / "annotations.txt").write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(PicturesError, match="Correct or remove these lines first"):
        suggest.written(lace_folder)


def test_names_outside_the_folder_or_unfit_for_a_line_are_refused_together(lace_folder):
    """L11."""
    with pytest.raises(PicturesError) as caught:
        run(lace_folder, Scripted("x"), names=["../a.jpg", "with\ttab.jpg", "lace_0.jpg"])
    assert "../a.jpg leads outside the folder" in str(caught.value) and "with\\ttab.jpg" in str(caught.value)


# ---- what is refused


@pytest.mark.parametrize(
    "text, fault",
    [
        ("", "is empty"),
        (" \t\n ", "is empty"),
        ("...", "is empty"),
        ("12 + 3", "holds no word"),
        ("aaaaaaa", "repeats one letter"),
        ("A a a A.", "repeats one letter"),
        ("loooooooooooong lace", "repeats one letter"),
        ("lace Lace lace", "repeats one word"),
        ("white lace, " * 30, "repeats itself"),
        ("the image shows", ""),
        ("lace", ""),
        ("beyaz dantel, kenarı oyalı", ""),
        ("白色蕾丝", ""),
    ],
)
def test_worthless_texts_are_told_from_short_ones(text, fault):
    """C4: empty, a letter, a word or a phrase over and over."""
    assert suggest.fault_of(suggest.clean(text)) == fault


def test_a_worthless_answer_is_said_with_its_picture_and_the_others_go_on(lace_folder):
    """C4."""
    came, said = run(lace_folder, Scripted("a doily", "", "!!!", "lace lace lace", None, "a veil"))
    assert came.written == ("lace_0.jpg", "lace_5.jpg")
    assert "lace_1.jpg: its suggestion is empty" in said and "lace_3.jpg: its suggestion repeats one word" in said
    assert set(came.refused) == {"lace_1.jpg", "lace_2.jpg", "lace_3.jpg", "lace_4.jpg"}
    assert "4 without a suggestion" in came.summary


@pytest.mark.parametrize("own, equal", [(7, 6), (4, 4)])
def test_up_to_half_of_equal_texts_are_kept(tmp_path, own, equal):
    """C4: doilies are many, and each may be called one."""
    folder = draw_threads(tmp_path / "many", own + equal)
    answers = [f"piece number {'abcdefgh'[number]}" for number in range(own)] + ["a doily"] * equal
    assert len(run(folder, Scripted(*answers))[0].written) == own + equal


def test_a_text_that_most_pictures_get_is_taken_back_from_all_of_them(tmp_path):
    """C4: what stood before comes back, also the bare prompt, and other suggestions stay."""
    folder = draw_threads(tmp_path / "many", 12)
    (folder / "annotations.txt").write_text(f"threads_0.jpg\t{PROMPT}\n", encoding="utf-8")
    answers = ["White lace."] * 4 + ["a veil", "a collar", "white lace", "a lace", "white lace", *["white lace"] * 3]
    came, said = run(folder, Scripted(*answers))
    assert came.written == ("threads_2.jpg", "threads_3.jpg", "threads_5.jpg")
    assert not [text for text in suggest.written(folder).values() if text.endswith("white lace")]
    assert suggest.written(folder)["threads_0.jpg"] == PROMPT and suggest.written(folder) == came.captions
    assert any(line.startswith("took back 5 suggestions of this run") for line in said)
    assert len(came.refused) == 9 and "most other pictures" in came.refused["threads_0.jpg"]


# ---- what fails


def test_a_picture_that_cannot_be_opened_is_said_and_is_no_failure_of_the_captioner(lace_folder):
    """P4: the file's own fault, in its own words."""
    for number in (1, 2, 3):
        (lace_folder / f"lace_{number}.jpg").write_bytes(b"no picture")
    came, said = run(lace_folder, Scripted(*SEEN))
    assert came.written == ("lace_0.jpg", "lace_4.jpg", "lace_5.jpg")
    assert any("lace_2.jpg" in line and "not a picture" in line for line in said)


def test_two_failures_in_a_row_do_not_end_it_and_three_do(lace_folder):
    """C4: what was suggested before is saved, and the second run asks for the rest alone."""
    broken = ModelError("the server is away.")
    came, said = run(lace_folder, Scripted("a doily", broken, ValueError("odd"), "a veil", broken, "an edge"))
    assert len(came.written) == 3 and "lace_2.jpg: no caption: odd" in said
    (lace_folder / "annotations.txt").unlink()
    with pytest.raises(ModelError) as caught:
        run(lace_folder, Scripted("a doily", "a veil", broken, broken, broken))
    assert str(caught.value) == (
        "No caption for 3 pictures in a row, last for lace_4.jpg: the server is away. 2 suggestions of this run are "
        "saved; run again to go on from there."
    )
    captioner = Scripted(*SEEN)
    came, _ = run(lace_folder, captioner)
    assert len(captioner.shown) == 4 and came.kept == ("lace_0.jpg", "lace_1.jpg")


def test_what_only_a_setting_can_mend_ends_it_at_once(lace_folder):
    """C4: a refused key is refused for every picture."""
    captioner = Scripted("a doily", SettingsError("the key is refused."))
    with pytest.raises(SettingsError, match="the key is refused"):
        run(lace_folder, captioner)
    assert len(captioner.shown) == 2 and len(suggest.written(lace_folder)) == 1


def test_a_folder_that_cannot_be_written_is_said(lace_folder, monkeypatch):
    """C4: the earlier file then stands as it was, because a new one takes its place only when it is whole."""
    text = "lace_1.jpg\tmy own words\n"
    (lace_folder / "annotations.txt").write_text(text, encoding="utf-8")

    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lace_lora.checkpoint.os.replace", refuse)
    with pytest.raises(PicturesError, match=r"Cannot write .*annotations.txt \(Permission denied\)"):
        run(lace_folder, Scripted(*SEEN))
    assert (lace_folder / "annotations.txt").read_text(encoding="utf-8") == text


# ---- stopping and kills


def test_a_request_to_stop_ends_after_the_picture_in_hand(lace_folder):
    """C4: with a form's button, or Ctrl-C."""
    stop = stopping.Stop()

    def pressed(picture):
        stop.asked = True
        return "a doily"

    came, _ = run(lace_folder, pressed, stop=stop)
    assert came.written == ("lace_0.jpg",) and came.is_stopped and "run again to go on" in came.summary

    def interrupted(picture):
        os.kill(os.getpid(), signal.SIGINT)
        return "a veil"

    came, said = run(lace_folder, interrupted)
    assert came.written == ("lace_1.jpg",) and came.is_stopped
    assert any("every caption so far is saved" in line for line in said)
    assert list(suggest.written(lace_folder)) == ["lace_0.jpg", "lace_1.jpg"]


def test_captions_are_saved_after_every_picture_with_all_that_were_there(lace_folder):
    """C4: `save` gets everything, each time."""
    states: list[Mapping[str, str]] = []
    run(lace_folder, Scripted(*SEEN), existing={"lace_5.jpg": "my own words"}, save=states.append)
    assert [len(state) for state in states] == [2, 3, 4, 5, 6]
    assert all(state["lace_5.jpg"] == "my own words" for state in states)


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_at_any_instant_loses_no_caption_and_the_next_run_asks_only_for_the_rest(tmp_path, seed):
    """C4: real processes, killed in the captioner or at any call of the file system, until all is written."""
    folder = draw_lace(tmp_path / "pictures")
    (folder / "annotations.txt").write_text("lace_1.jpg\tmy own words\n", encoding="utf-8")
    chance, asked, known = random.Random(seed), tmp_path / "asked.txt", {"lace_1.jpg": "my own words"}
    kills = 0
    while kills < 12:
        job = json.dumps({"folder": str(folder), "asked": str(asked), "kill_at": chance.randrange(6, 24)})
        done = subprocess.run([sys.executable, "-m", "tests.test_suggest", job], cwd=ROOT, capture_output=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()[-2000:]
        now = suggest.written(folder)
        assert known.items() <= now.items()
        known = now
        if done.returncode == 0:
            break
        kills += 1
    assert done.returncode == 0 and len(known) == 6 and kills
    # A picture is asked for again only when the kill came between its question and its line.
    times = asked.read_text().splitlines()
    assert set(times) == set(known) - {"lace_1.jpg"} and len(times) <= 5 + kills


def one_run_that_is_killed(job):
    """Suggest captions and kill this process at its n-th event: a call of the file system, or a question."""
    left = job["kill_at"]
    folder, asked = Path(job["folder"]), Path(job["asked"])
    existing = suggest.written(folder)

    def count(event, arguments):
        nonlocal left
        is_write = event in ("os.rename", "os.remove", "os.mkdir", "question")
        if is_write or (event == "open" and str(folder) in str(arguments[0])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def captioner(picture):
        name = next(name for name in names if name not in existing and name not in seen)
        seen.append(name)
        with open(asked, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        sys.audit("question")
        return SEEN[int(name[5])]

    seen: list[str] = []
    names = [path.name for path in data_utils.list_images(folder)]
    sys.addaudithook(count)
    run(folder, captioner, existing=existing)


# ---- texts


@pytest.mark.parametrize(
    "said, kept",
    [
        ("The image shows a white doily on a dark ground.", "a white doily on a dark ground"),
        ("A photo of a collar.", "a collar"),
        ("The image is a close-up of net lace.", "a close-up of net lace"),
        ("In this image, we can see leaves and stars", "leaves and stars"),
        ("In the picture there is a veil.", "a veil"),
        ("There are two doilies.", "two doilies"),
        ("Sure! Here's a caption: “White scallops.”", "White scallops"),
        ("Here is a short description of it:\nA narrow\tedge\r\nwith picots.", "a narrow edge with picots"),
        ("**Caption:** Bobbin lace.", "Bobbin lace"),
        ("a photo of <myspecialstyle>, a veil", "a veil"),
        ("<MySpecialStyle> lace, ivory", "lace, ivory"),
        ("<think>Hmm.\nLace?</think> A veil.</s>", "a veil"),
        ("a black and white photo of lace", "a black and white photo of lace"),
        ("Chantilly lace, black", "Chantilly lace, black"),
        ("imagery of lace", "imagery of lace"),
        ("The image of a rose in the lace is large. It shows leaves.", "a rose in the lace is large. It shows leaves"),
        ("half a \ud83d character", "half a character"),
    ],
)
def test_lead_ins_dots_and_breaks_are_taken_away_and_the_rest_stays(said, kept):
    """C4."""
    assert suggest.clean(said, TOKEN) == kept


def test_a_long_answer_ends_at_a_sentence_or_a_comma_within_what_clip_reads():
    """C4: 75 tokens; the words beyond them would be lost without a word."""
    sentences = "A white doily lies on dark cloth. Its edge has scallops; " + "and more is said of it " * 9
    assert suggest.shortened(sentences) == "A white doily lies on dark cloth. Its edge has scallops"
    commas = "white threads make a net, leaves, and stars, " * 3 + "round " * 40
    assert suggest.shortened(commas).endswith(", and stars") and len(suggest.shortened(commas).split()) <= 45
    assert len(suggest.shortened("word " * 100).split()) == 45
    assert suggest.shortened("short. enough") == "short. enough"


@settings(max_examples=300, deadline=None)
@given(st.text(), st.lists(st.sampled_from(["The image shows ", "a photo of ", "\t", "\u2028", "</s>", '"', "lace "])))
def test_whatever_an_answer_holds_its_caption_fits_a_line_or_is_refused(text, parts):
    """C4, L11: cleaning twice changes nothing that a line cannot take, and never raises."""
    cleaned = suggest.clean("".join(parts) + text, TOKEN)
    if not suggest.fault_of(cleaned):
        caption = f"{PROMPT}, {suggest.shortened(cleaned)}"
        assert caption.isprintable() and caption == caption.strip() and len(caption.split()) <= 45 + 4


if __name__ == "__main__":
    one_run_that_is_killed(json.loads(sys.argv[1]))


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but I cannot help with that image.", "As an AI, I see nothing", "I can’t tell"]
)
def test_a_refusal_is_no_caption_even_once(lace_folder, answer):
    """C4: it would be learnt as what the picture shows."""
    came, _ = run(lace_folder, Scripted("a doily", answer, "a collar", "a veil", "an edge", "a net"))
    assert list(came.refused.values()) == ["its suggestion is a refusal"] and len(came.written) == 5


def test_markdown_is_taken_away():
    """C4."""
    assert suggest.clean("**A doily** - white - round, __fine__ T-shaped") == "a doily white round, fine T-shaped"


def test_a_captioner_that_says_nothing_from_the_start_is_given_up(tmp_path):
    """C4: with 300 pictures and a slow server the wait would be for nothing."""
    for number in range(14):
        Image.new("RGB", (70, 70), (number, 0, 0)).save(tmp_path / f"{number:02}.jpg")
    silent = Scripted("")
    with pytest.raises(ModelError, match="Nothing of use came for the first 10 pictures"):
        run(tmp_path, silent)
    assert len(silent.shown) == 10
