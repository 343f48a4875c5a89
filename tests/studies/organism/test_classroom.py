"""An interrupted course resumes where it was, and ends where an uninterrupted one does."""

import pytest
import torch
from torch import nn

from studies.organism import classroom
from studies.organism.classroom import Classroom, Course, Stage
from studies.organism.lessons import LessonPicture


def teacher(rng):
    return LessonPicture("noise", seed=int(rng.integers(100)))


COURSE = Course("a: counting", Stage(steps=12, batch_size=4, learning_rate=0.1), teacher, seed=3)


class Student(nn.Module):
    """Learns to count; `own` is not trained."""

    def __init__(self, stop_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.learner, self.own = nn.Linear(1, 1), nn.Linear(1, 1)
        self.stop_at, self.seen = stop_at, []

    def loss(self, pictures):
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append([picture.seed for picture in pictures])
        numbers = torch.tensor([[picture.seed / 100] for picture in pictures])
        return (self.learner(numbers) - self.own(numbers)).square().mean()


def teach(student, folder, sources=()):
    Classroom({"seed": 1}, folder, sources).teach(student, COURSE, student.loss, {student.learner: 1.0})
    return student


def test_an_interrupted_course_resumes_with_the_same_lessons_and_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "SNAPSHOT_EVERY", 0)
    whole = teach(Student(), tmp_path / "whole")
    cut = Student(stop_at=7)
    with pytest.raises(KeyboardInterrupt):
        teach(cut, tmp_path / "cut")
    resumed = teach(Student(), tmp_path / "cut")
    assert cut.seen + resumed.seen == whole.seen and len(resumed.seen) == 5
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    # What is finished is loaded, and its snapshot is gone.
    again = teach(Student(), tmp_path / "cut")
    assert not again.seen and torch.equal(again.learner.weight, whole.learner.weight)
    assert [path.suffix for path in (tmp_path / "cut").iterdir()] == [".safetensors"]


def test_a_change_of_the_code_starts_from_the_beginning(tmp_path):
    source = tmp_path / "code.py"
    source.write_text("one")
    teach(Student(), tmp_path / "room", [source])
    source.write_text("two")
    assert len(teach(Student(), tmp_path / "room", [source]).seen) == 12
