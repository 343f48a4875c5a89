"""Progress where the output is not a terminal."""

import re
import time

from studies.bookkeeping import progress


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
