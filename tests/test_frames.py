"""A video as a source of pictures, encoded by the tests themselves: which frames are taken, and what is said (C2)."""

import csv
import sys

import numpy
import pytest
from PIL import Image, ImageFilter

from lace_lora import frames, frames_command, main
from lace_lora.demo.draw import lace
from lace_lora.errors import MachineError, PicturesError, SettingsError

av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
SIDE = 160


def encoded(path, pictures, turn=0):
    """Encode pictures losslessly, 10 a second."""
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264" if path.suffix != ".mkv" else "ffv1", rate=10)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        if path.suffix != ".mkv":
            stream.options = {"crf": "4", "preset": "ultrafast"}
        if turn:
            stream.set_display_rotation(turn)
        for picture in pictures:
            video.mux(stream.encode(av.VideoFrame.from_image(picture)))
        video.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def pieces():
    """Five pieces of lace, none like another."""
    return [lace(seed, SIDE)[0] for seed in (3, 14, 25, 36, 47)]


@pytest.fixture(scope="module")
def film(pieces, tmp_path_factory):
    """Six stretches of six frames: five pieces and the first one again; of each only the fifth frame is sharp, of the
    fourth piece none."""
    shown = []
    for number, piece in enumerate([*pieces, pieces[0].rotate(90)]):
        for place in range(6):
            blur = 5 if number == 3 else 0 if place == 4 else 2.5
            shown.append(piece.filter(ImageFilter.GaussianBlur(blur)) if blur else piece)
    return encoded(tmp_path_factory.mktemp("film") / "Grandmother's lace.mp4", shown)


def test_the_sharpest_of_each_stretch_is_taken_and_no_piece_twice(film, pieces, tmp_path):
    """C2: frames 4, 10, 16 and 28 by hand; the stretch without a sharp frame and the piece shown again are told."""
    taken = frames.take(film, tmp_path / "out", every=6)
    numbers = [frame.number for _, frame in taken.written]
    assert numbers == sorted(numbers) and taken.count == 36
    # Of the piece that is shown twice, whichever was encoded a little more sharply.
    twice = [{*numbers} - {10, 16, 28}, {frame.number for frame in taken.alike}]
    assert twice in ([{4}, {34}], [{34}, {4}])
    assert [frame.number // 6 for frame in taken.soft] == [3]
    once = {frame.number: (file, frame) for file, frame in taken.written}
    for number, piece in zip((10, 16, 28), (pieces[1], pieces[2], pieces[4]), strict=True):
        file, frame = once[number]
        assert file.name == f"grandmother-s-lace_{number:06d}.jpg"
        difference = numpy.asarray(Image.open(file), float) - numpy.asarray(piece, float)
        assert abs(difference).mean() < 12 and frame.seconds == pytest.approx(number / 10)
    assert repr(taken).startswith(
        "4 pictures out of 36 frames; 1 left out as blurred, 1 as showing the same as another"
    )
    rows = list(csv.reader((tmp_path / "out/frames.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["file", "frame", "seconds", "blur_px"] and [int(row[1]) for row in rows[1:]] == numbers


def test_all_sharp_frames_can_be_kept(film, tmp_path):
    """C2."""
    taken = frames.take(film, tmp_path, every=6, keeps_alike=True)
    assert [frame.number for _, frame in taken.written] == [4, 10, 16, 28, 34] and not taken.alike


def test_called_again_it_leaves_what_is_there(film, tmp_path):
    """C2: a cut costs nothing that was written; the list is whole again."""
    first = frames.take(film, tmp_path, every=6)
    marked = first.written[1][0]
    marked.write_bytes(b"touched by a person")
    (tmp_path / "frames.csv").unlink()
    again = frames.take(film, tmp_path, every=6)
    assert again.written == first.written and marked.read_bytes() == b"touched by a person"
    assert (tmp_path / "frames.csv").is_file() and len(list(tmp_path.glob("*.jpg"))) == 4


def test_a_film_of_a_telephone_held_upright_is_turned_upright(pieces, tmp_path):
    """C2: the pixels lie on their side, and a number beside them says by how much."""
    wide = pieces[0].crop((0, 0, 160, 96))
    for turn in (90, -90, 180):
        film = encoded(tmp_path / f"film{turn}.mp4", [wide.rotate(-turn, expand=True)] * 4, turn)
        ((file, _),) = frames.take(film, tmp_path / "out", every=4).written
        found = Image.open(file)
        assert found.size == wide.size
        assert abs(numpy.asarray(found, float) - numpy.asarray(wide, float)).mean() < 12, turn


def test_a_film_that_was_cut_off_gives_what_can_be_read(pieces, tmp_path):
    """C2: and says where it ended."""
    film = encoded(tmp_path / "film.mkv", [piece for piece in pieces for _ in range(6)])
    data = film.read_bytes()
    film.write_bytes(data[: len(data) // 2])
    taken = frames.take(film, tmp_path / "out", every=6, say=lambda line: None)
    assert 1 <= len(taken.written) <= 3 and taken.count < 30


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is no video that can be read"), (b"text" * 500, "is no video that can be read"), (None, "There is no")],
)  # fmt: skip
def test_what_is_no_video_is_said(tmp_path, content, said):
    """C2."""
    film = tmp_path / "film.mp4"
    if content is not None:
        film.write_bytes(content)
    with pytest.raises(PicturesError, match=said):
        frames.take(film, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sound_alone_is_said(tmp_path):
    """C2."""
    film = tmp_path / "sound.wav"
    with av.open(str(film), "w") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, 800), numpy.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        sound.mux(stream.encode(frame))
        sound.mux(stream.encode())
    with pytest.raises(PicturesError, match="holds no pictures, only sound"):
        frames.take(film, tmp_path / "out")


def test_too_many_or_too_few_are_refused(film, tmp_path, monkeypatch):
    """C2."""
    with pytest.raises(SettingsError, match="--every is at least 1"):
        frames.take(film, tmp_path, every=0)
    monkeypatch.setattr(frames, "MOST", 3)
    with pytest.raises(SettingsError, match="gives more than 3 pictures. Choose a larger --every."):
        frames.take(film, tmp_path, every=2)


def test_a_missing_package_is_said_with_what_to_type(film, tmp_path, monkeypatch):
    """C2."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MachineError, match=r"package av, which is not installed. Type pip install av"):
        frames.take(film, tmp_path / "out")


def test_the_command_says_what_it_took_and_what_comes_next(film, tmp_path, capsys):
    """C2, P27."""
    assert frames_command.EVERY == frames.EVERY
    assert main.run(["frames", str(film), "--output", str(tmp_path / "out"), "--every", "6"]) == 0
    out = capsys.readouterr().out
    assert "4 pictures out of 36 frames" in out and f"lace-lora check --images-dir {tmp_path / 'out'}" in out
    assert main.run(["frames", "lost.mp4", "--output", str(tmp_path)]) == 1
    assert "There is no video lost.mp4" in capsys.readouterr().err
