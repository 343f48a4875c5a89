"""Every measured number in README and docs is that of a committed table."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SPEC = spec_from_file_location("measured", Path(__file__).parents[1] / "docs" / "measured.py")
measured = module_from_spec(SPEC)
SPEC.loader.exec_module(measured)


@pytest.mark.parametrize("page", measured.PAGES)
def test_numbers_are_those_of_the_tables(page):
    assert list(measured.differing(page)) == []


@pytest.mark.parametrize("page", measured.PAGES)
def test_every_number_has_a_source(page):
    assert measured.unsourced(page) == []


def test_every_entry_is_used():
    sources = {match["entry"] for page in measured.PAGES for match in measured.SOURCED.finditer(measured.text_of(page))}
    assert len(sources) > 30 and sources == set(measured.entries()) - {measured.NOT_MEASURED}


def test_a_wrong_number_a_missing_source_and_an_ambiguous_one_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "ROOT", tmp_path)
    (tmp_path / measured.REFERENCE / measured.DEFAULT).mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    table = "modality,metric,value,ci_low,ci_high\nblank,asr,0.351,0.2,0.5\ntext,asr,-0.001,,\ntext,kl,-7.04,,\n"
    (tmp_path / measured.REFERENCE / measured.DEFAULT / "defence.csv").write_text(table)
    (tmp_path / "docs/measured.toml").write_text(
        '[blank]\ntable = "defence"\nmodality = "blank"\n[text]\ntable = "defence"\nmodality = "text"\n'
        '[kl]\ntable = "defence"\nmetric = "kl"\n[low]\ntable = "defence"\nmodality = "text"\nmetric = "asr"\n'
        '["not measured"]\nliterals = ["nnsight 0.8"]\n'
    )
    for cached in (measured.entries, measured._table):
        cached.cache_clear()
    page = "0.34 [0.20, 0.50]<!--blank-->, −7.0<!--kl-->, 0.00<!--low-->, 35 % [21, 50]<!--blank-->, nnsight 0.8"
    page += ", `0.1`, and 0.9."
    (tmp_path / "page.md").write_text(page)
    try:
        assert list(measured.differing("page.md")) == [
            ("0.34 [0.20, 0.50]<!--blank-->", "0.35 [0.20, 0.50]<!--blank-->"),
            ("35 % [21, 50]<!--blank-->", "35 % [20, 50]<!--blank-->"),
        ]
        assert measured.unsourced("page.md") == ["0.9"]
        for name, reason in (("text", "2 rows"), ("nothing", "is not in")):
            with pytest.raises(measured.NumberError, match=reason):
                measured.row_of(name)
    finally:
        for cached in (measured.entries, measured._table):
            cached.cache_clear()
