"""Progress where the output is not a terminal."""

import re
import time

import pytest

from studies.bookkeeping import progress
from studies.bookkeeping.console import QUIET, VERBOSITY


def test_a_line_comes_now_and_then_also_while_one_unit_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.2)
    with progress.phase("slow work", 3) as report:
        report(1, note="first")
        deadline = time.monotonic() + 60
        lines = []
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            lines += capsys.readouterr().err.splitlines()
        report(2)
    lines += capsys.readouterr().err.splitlines()
    assert all(re.match(r"slow work +1/3  \d+ s  left \d+ s  first", line) for line in lines[:2])
    assert re.match(r"slow work +3/3  \d+ s  left 0 s", lines[-1])


def test_before_anything_is_done_nothing_is_promised(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.1)
    with progress.phase("slow work", 3):
        deadline, printed = time.monotonic() + 60, ""
        while not printed and time.monotonic() < deadline:
            time.sleep(0.05)
            printed += capsys.readouterr().err
    assert re.match(r"slow work +0/3  \d+ s  left \? s", printed)
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_stages_are_counted_and_the_time_left_follows_from_their_shares(clock, capsys):
    stages = progress.Stages({"read": 0.1, "sweep": 0.5, "draw": 0.4})
    stages.start("read")
    assert stages.seconds_left() is None
    clock[0] = 60.0
    stages.start("sweep")
    assert stages.seconds_left() == pytest.approx(60 / 0.1 * 0.9)
    clock[0] = 60.0 + 120.0
    stages.start("draw")
    assert stages.seconds_left() == pytest.approx((60 + 120) / 0.6 * 0.4)
    assert capsys.readouterr().err.splitlines() == [
        "Stage 1 of 3: read",
        "Stage 2 of 3: sweep; about 9 minutes left in all",
        "Stage 3 of 3: draw; about 2 minutes left in all",
    ]


def test_stages_that_an_earlier_run_finished_say_nothing_about_the_speed(clock):
    stages = progress.Stages({"read": 0.2, "sweep": 0.4, "draw": 0.4})
    stages.start("read")
    clock[0] = 20.0
    stages.start("sweep")
    clock[0] = 20.5  # read from disk
    stages.start("draw")
    assert stages.seconds_left() == pytest.approx(20 / 0.2 * 0.4)


def test_a_quiet_command_shows_neither_stages_nor_phases(clock, capsys):
    token = VERBOSITY.set(QUIET)
    try:
        progress.Stages({"read": 1.0}).start("read")
        with progress.phase("slow work", 1) as report:
            report(note="done")
    finally:
        VERBOSITY.reset(token)
    assert capsys.readouterr() == ("", "")
