"""Complete or absent, never half (P19, L14)."""

import errno
import os
import stat

import pytest

from lace_lora import checkpoint
from lace_lora.errors import MachineError, RunError


def filled(text):
    def write(folder):
        (folder / "weights.bin").write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "state.json").write_text("{}")

    return write


def test_a_saved_folder_is_complete_and_its_newest_is_found(tmp_path):
    for step in (2, 10):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled(str(step)))
    found, notes = checkpoint.newest(tmp_path)
    assert found == tmp_path / "step-000010" and notes == []


def test_a_writer_that_fails_leaves_the_earlier_folder_and_no_remains(tmp_path):
    folder = tmp_path / "step-000001"
    checkpoint.save_folder(folder, filled("first"))

    def fail(partial):
        (partial / "weights.bin").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_folder(folder, fail)
    assert (folder / "weights.bin").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_folder_with_one_changed_byte_is_passed_over_with_a_sentence(tmp_path):
    for step in (1, 2):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("same"))
    weights = tmp_path / "step-000002" / "weights.bin"
    weights.write_text("sbme")
    found, notes = checkpoint.newest(tmp_path)
    assert found == tmp_path / "step-000001"
    assert notes == ["step-000002 is passed over: weights.bin is not as it was written (its checksum differs)."]


def test_a_folder_without_marker_or_file_is_passed_over(tmp_path):
    checkpoint.save_folder(tmp_path / "step-000003", filled("x"))
    (tmp_path / "step-000003" / "weights.bin").unlink()
    (tmp_path / "step-000004").mkdir()
    found, notes = checkpoint.newest(tmp_path)
    assert found is None
    assert "cut off while being written" in notes[0] and "weights.bin is missing" in notes[1]


def test_pruning_keeps_the_newest_complete_ones(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("x"))
    (tmp_path / "step-000009").mkdir()  # never finished: it must not count as one of those kept, nor outlive them
    checkpoint.prune(tmp_path, keep=2, written=tmp_path / "step-000003")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_pruning_never_keeps_a_damaged_folder_before_the_one_just_written(tmp_path):
    """P19: 100 is good, 200 was damaged, the work went on from 100 to 150."""
    for step in (100, 200, 150):
        checkpoint.save_folder(tmp_path / f"step-{step:06d}", filled("x"))
    (tmp_path / "step-000200" / "weights.bin").write_text("y")
    checkpoint.prune(tmp_path, keep=1, written=tmp_path / "step-000150")
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-000150", [])


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run.json"
    checkpoint.write_json(path, {"step": 1})

    def fail(partial):
        partial.write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MachineError, match="The disk is full: .*run.json"):
        checkpoint.write_file(path, fail)
    assert path.read_text() == '{\n  "step": 1\n}\n'
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("number", "kind", "sentence"),
    [
        (errno.ENOSPC, MachineError, "The disk is full"),
        (errno.EACCES, RunError, "No permission to write"),
        (errno.EROFS, RunError, "No permission to write"),
        (errno.ENOTCONN, MachineError, "Drive is not answering"),
        (errno.EIO, MachineError, "Drive is not answering"),
        (errno.ENAMETOOLONG, RunError, "could not be written"),
    ],
)
def test_what_the_system_says_becomes_a_sentence_that_names_the_path(tmp_path, number, kind, sentence):
    with pytest.raises(kind) as caught, checkpoint.writing(tmp_path / "adapter"):
        raise OSError(number, os.strerror(number))
    assert sentence in str(caught.value) and "adapter" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_has_its_sentence(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(RunError, match="No permission to write"):
        checkpoint.write_text(tmp_path / "run.json", "{}")


def test_a_log_line_that_a_cut_left_half_is_passed_over(tmp_path):
    log = tmp_path / "log.jsonl"
    for step in (1, 2):
        checkpoint.append_line(log, f'{{"step": {step}}}')
    with open(log, "a") as file:
        file.write('{"step": 3, "lo')
    assert [row["step"] for row in checkpoint.read_json_lines(log)] == [1, 2]
    assert checkpoint.read_json_lines(tmp_path / "none.jsonl") == []
