import html as html_module
import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from studies import report
from studies.bookkeeping.verdict_words import CEILING, NOT_SHOWN, SHOWN, UNDECIDED
from studies.claims import CLAIMS
from studies.report import page
from studies.report.gallery import FIGURES
from studies.report.glossary import TERMS, with_terms
from studies.report.packing import packed
from studies.report.pictures import data_url
from studies.report.results import STUDIES, Results, ResultsError
from studies.report.words import HEADINGS, ClaimEntry, evidence_for, in_percent, verdict_summary
from tests.studies.report.report_results import MARKUP, REFERENCE, draw_figures

pytestmark = pytest.mark.filterwarnings("error")


def in_text(text: str) -> str:
    """Return a text with single ordinary spaces."""
    return " ".join(text.split())


class Page(HTMLParser):
    """A page as a browser would parse it: elements with their attributes, and the text outside of scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.words, self.scripts, self._in = [], [], {}, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = dict(attributes).get("id", tag) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in:
            self.scripts[self._in] = data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return in_text(" ".join(self.words))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html(results, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_figures", draw_figures)
        return report.write(results, tmp_path_factory.mktemp("out") / "new" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(html):
    return Page(html)


def test_every_table_has_a_section_and_an_entry_in_the_contents_and_nothing_else_has(read, results):
    sections = {attributes["id"] for attributes in read.all("section") if "id" in attributes}
    assert sections == set(results.tables) | {"summary", "samples", "provenance"}
    assert {f"#{name}" for name in sections} <= {attributes["href"] for attributes in read.all("a")}
    assert set(HEADINGS) >= set(STUDIES)


def test_the_first_screen_has_the_numbers_of_the_tables(read, results):
    rates = results["defence"].query("setting == 'plain' and modality == 'blank' and metric == 'asr'")
    rates = rates[rates.category.isna() & rates.judge.eq(rates.judge.iloc[0])].set_index("defence")
    without, guard = rates.loc["unguarded"], rates.loc["guard"]
    percent = [f"{100 * number:.0f}" for number in (without.value, guard.value, guard.ci_low, guard.ci_high)]
    sentence = "With a blank picture, {} % of attacks succeed; with the guard, {} % [{}, {}].".format(*percent)
    first_screen = read.text[: read.text.index("Of 20 claims")]
    assert sentence in first_screen
    for fact in ("Measured on organism , the built-in toy model", "Requests 60 harmful, 60 harmless", "Split test"):
        assert fact in first_screen
    assert "Machine 2 CPU cores" in first_screen and "Date 2026-11-30" in first_screen
    assert "Weakest: written in the picture, 97 % succeed without a defence" in first_screen
    assert "Simpler: refuse, and change nothing inside the model" in first_screen
    assert "Next: read answers side by side" in first_screen and "vlm-guard repro --model MODEL" in first_screen


def test_claims_are_sentences_with_both_numbers_and_the_verdict(read, results):
    claim = results["claims"].iloc[3]
    assert f"{claim.claim[0].upper()}{claim.claim[1:]}." in read.text
    assert claim.theirs in read.text and all(in_text(in_percent(part)) in read.text for part in claim.ours.split("; "))
    verdicts = [attributes["title"] for attributes in read.all("div") if "verdict" in attributes.get("class", "")]
    assert Counter(verdicts) == Counter(results["claims"].verdict)
    assert verdicts[0] == NOT_SHOWN and verdicts[-1] == SHOWN, "what contradicts the paper comes first"
    assert verdict_summary(list(results["claims"].verdict)) in read.text
    assert read.text.count("Only the abstract and the first paragraphs of the paper could be read.") == 1


def test_the_guard_is_named_in_full_at_the_top_and_in_the_claims_about_it(results, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", lambda results: iter(()))
    finalist = {"setting": "finalists", "selection_rule": "least_kl_near_most_refusal", "layer": 7, "rule": "steer"}
    tables = dict(results.tables) | {"layer_sweep": pd.DataFrame([finalist | {"metric": "kl", "value": 0.1}])}
    tables["claims"] = results["claims"].assign(guard=["rule <b>ablate</b>"] + [None] * (len(results["claims"]) - 1))
    path = report.write(replace(results, tables=tables), tmp_path / "report.html")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "The guard: rule steer, layer 7, gate always; chosen on validation by least_kl_near_most_refusal" in text
    assert text.count("Guard rule <b>ablate</b>") == 1


def test_verdicts_are_counted_in_a_sentence_and_unknown_ones_are_open():
    assert verdict_summary([SHOWN]) == f"Of 1 claim, 1 is {SHOWN}."
    assert verdict_summary([UNDECIDED, SHOWN, NOT_SHOWN, SHOWN]) == (
        f"Of 4 claims, 2 are {SHOWN}, 1 is {NOT_SHOWN} and 1 is {UNDECIDED}."
    )
    entry = ClaimEntry.of("(beyond the paper) it blurs", "not reported", "a 1; b 2; c 3", "by another word")
    assert (entry.sentence, entry.aside, entry.ours) == ("It blurs.", "Beyond the paper", ("a 1", "b 2", "c 3"))
    assert entry.icon == "open"
    assert {ClaimEntry.of("a", "b", "c", verdict).icon for verdict in (UNDECIDED, CEILING)} == {"open"}
    assert verdict_summary([CEILING, UNDECIDED]) == (
        f"Of 2 claims, 1 is {UNDECIDED} and 1 is undecided because the measure is at its limit."
    )


def test_missing_studies_are_listed_at_the_end_with_what_to_run(read):
    assert read.text.count("Not in these results") == 1
    listed = read.text[read.text.index("Not in these results") :]
    assert "Layer sweep: run vlm-guard repro --model MODEL --out FOLDER or vlm-guard sweep --model MODEL" in listed
    assert "Speed: run make bench" in listed and "Separability: run" not in listed


def test_rates_of_claims_are_in_percent_and_their_differences_in_points():
    assert in_text(in_percent("attack success 0.35 -> 0.00 [0.00, 0.06], change -0.35 [-0.48, -0.24]")) == (
        "attack success 35 % → 0 % [0, 6], change −35 points [−48, −24]"
    )
    for text in ("layer 6, AUROC: text 1.00 [0.95, 1.00]", "perplexity 3.04 [0.85, 10.85] times", "p = 0.005"):
        assert in_percent(text) == text


def test_every_claim_leads_to_its_figure_and_to_rows_that_exist():
    names = {spec.name for spec in FIGURES}
    for claim in CLAIMS:
        evidence = evidence_for(claim.name)
        assert evidence, f"{claim.name!r} is not in studies.report.words.EVIDENCE"
        table = pd.read_csv(REFERENCE / f"{evidence.table}.csv", low_memory=False)
        found = (table[list(evidence.rows)].astype(str) == pd.Series(evidence.rows)).all(axis=1)
        assert evidence.figure in names and found.any(), claim.name
        assert evidence.link.startswith(f"#{evidence.table}?")
    assert evidence_for("another claim") is None


def test_a_figure_that_failed_says_why_in_its_section(read):
    assert "Another figure can't be drawn: readings needs layer ; run vlm-guard repro" in read.text
    assert "A figure of the sweep" not in read.text, "nobody asked for it"


def test_captions_are_shown_and_are_the_alt_text(read):
    pictured = [attributes for attributes in read.all("img") if attributes.get("src")]
    assert [attributes["alt"] for attributes in pictured] == [f"What it shows, {MARKUP[1]}."]
    assert pictured[0]["src"].startswith("data:image/")
    assert f"What it shows, {MARKUP[1]}." in read.text


def test_text_from_outside_creates_no_element_and_ends_no_script(read, html):
    assert not [attributes for tag, attributes in read.elements if "onerror" in attributes]
    assert all(not attributes for attributes in read.all("b")) and "<b>bold" not in html
    assert all("mark" in attributes["class"] for attributes in read.all("i"))
    assert {name for name in read.scripts if name.startswith("table-")} == {
        f"table-{name}" for name in ("claims", "points", "separability", "readings", "changes", "defence", "samples")
    }
    data = html[html.index('id="table-points"') :]
    data = data[: data.index("</script>")]
    assert "<" not in data.partition(">")[2] and "\u2028" not in html
    assert MARKUP[0] in read.text, "it is the name of the queries in the provenance"


def test_packed_data_reads_back_as_the_table(read, results):
    table = json.loads(read.scripts["table-changes"])
    columns = {column["name"]: column for column in table["columns"]}
    text = columns["text"]
    assert [text["values"][code] for code in text["codes"]] == results["changes"].text.tolist()
    np.testing.assert_array_equal(columns["coordinate"]["values"], results["changes"].coordinate)
    assert dict(table["same"])["model"] == "organism"


def test_packing_keeps_missing_infinite_whole_and_mixed_values():
    table = pd.DataFrame(
        {
            "value": [0.5, math.nan, math.inf, -math.inf, 2.0],
            "layer": [1.0, math.nan, 1.0, 1.0, 1.0],
            "flag": [True, False, None, True, True],
            "nothing": [math.nan] * 5,
            "one": ["a"] * 5,
        }
    )
    result = packed(table)
    assert (result["rows"], result["empty"], result["same"]) == (5, ["nothing"], [["one", "a"]])
    assert result["names"] == list(table)
    value, layer, flag = result["columns"]
    assert value == {"name": "value", "numeric": True, "values": [0.5, None, "Infinity", "-Infinity", 2]}
    assert layer["values"] == [1, None, 1, 1, 1] and layer["numeric"]
    assert flag["values"] == ["True", "False", None, "True", "True"] and not flag["numeric"]
    json.dumps(result, allow_nan=False)


def test_a_column_that_repeats_itself_is_packed_once():
    packed_column = packed(pd.DataFrame({"modality": ["text", "blank"] * 50}))["columns"][0]
    assert packed_column["values"] == ["text", "blank"] and packed_column["codes"] == [0, 1] * 50


def test_provenance_shows_versions_seed_settings_and_what_was_changed_since(read, results):
    assert "versions.torch" in read.text and "inputs.model" in read.text and "generation.max_new_tokens" in read.text
    assert "Changed since the run that wrote them: points.csv" in read.text
    assert "sha256 of another file changed since the run" in read.text
    assert str(results.folders[0]) not in read.text, "paths on the author's disk stay private"


def test_results_of_a_version_that_recorded_no_date_say_so(results, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", lambda results: iter(()))
    runs = {
        folder: {name: value for name, value in run.items() if name != "date"}
        for folder, run in results.provenance.items()
    }
    text = Page(report.write(replace(results, provenance=runs), tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "Not recorded by the version that wrote these results: date." in text and "Date" not in text


def test_results_without_a_config_say_that_their_origin_is_unknown(results, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", lambda results: iter(()))
    bare = replace(results, configs={}, provenance={}, changed=())
    text = Page(report.write(bare, tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "it is unknown how its tables were made" in text and "Changed since" not in text


def test_hidden_states_without_answers_say_what_to_run(results, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", lambda results: iter(()))
    tables = {name: table for name, table in results.tables.items() if name != "changes"}
    text = Page(report.write(replace(results, tables=tables), tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert "Answers with and without the guard are in changes.csv : run vlm-guard repro" in text


def test_without_points_the_page_has_no_plot_and_no_plotting_library(results, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", lambda results: iter(()))
    tables = {name: table for name, table in results.tables.items() if name == "readings"}
    path = report.write(replace(results, tables=tables), tmp_path / "r.html")
    read = Page(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 1e6
    assert "Hidden states: run" in read.text and "Claims: run" in read.text
    assert "explorer" not in [attributes.get("id") for attributes in read.all("div")]


def test_the_page_requests_nothing_from_the_network(read):
    policy = next(attributes for attributes in read.all("meta") if "http-equiv" in attributes)["content"]
    assert "default-src 'none'" in policy and "http" not in policy
    sources = [
        value for _, attributes in read.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"@import|url\(", read.scripts["style"])


def test_the_scripts_of_the_page_cannot_end_their_element_early():
    for path in page.HERE.glob("*.[cj]s*"):
        assert not re.search("</(script|style)|<!--", path.read_text(encoding="utf-8"), re.IGNORECASE), path


def test_the_same_results_give_the_same_file_small_enough_for_mail(results, html, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", draw_figures)
    path = report.write(results, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == html
    assert path.stat().st_size < 3e6
    assert [other.name for other in tmp_path.iterdir()] == ["report.html"]


def test_a_full_report_without_figures_is_smaller_than_five_megabytes(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", lambda results: iter(()))
    reference = REFERENCE.parent
    results = Results.of(reference / "quick", reference / "bench")
    path = report.write(results, tmp_path / "report.html")
    assert path.stat().st_size < 5e6
    html = path.read_text(encoding="utf-8")
    assert f'data-layer="{results.guard_layer}"' in html, "the slider starts at the guard's layer"
    assert "memory_gb" in html, "the machine of the benchmark"


@pytest.mark.parametrize("n_points", [10, 20_000])
def test_a_figure_is_the_smaller_of_svg_and_png(n_points):
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot(np.sin(np.arange(n_points)), "o")
    source = data_url(figure)
    assert source.startswith("data:image/svg+xml," if n_points == 10 else "data:image/png;base64,")
    assert source == data_url(figure) and '"' not in source


def test_a_path_that_cannot_be_written_is_reported_before_anything_is_drawn(results, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", lambda results: pytest.fail("drawn"))
    with pytest.raises(ResultsError, match=r"is a folder; give the name of a file, such as .*report\.html"):
        report.write(results, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="can't be written: .*; give another place"):
        report.write(results, tmp_path / "file" / "report.html")


def test_progress_is_reported_figure_by_figure(results, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "draw_figures", draw_figures)
    names = []
    report.write(results, tmp_path / "report.html", names.append)
    assert names == ["degradation", "other", "sweep"]


def test_terms_are_explained_once_in_a_text_and_everything_else_is_escaped():
    marked = str(with_terms("Attack success <b>, attack success, gate"))
    assert marked.count("<abbr") == 2 and "&lt;b&gt;" in marked and TERMS["gate"] in html_module.unescape(marked)
    assert len(TERMS) == 5
