"""Reading the report in a real browser: readers follow links, step through samples, download, read on a phone."""

import io

import pandas as pd
import pytest

from studies import report
from studies.report import page as page_of_report
from tests.studies.report.report_results import CHROMIUM, draw_figures
from tests.studies.report.test_in_a_browser import column, go

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium")


@pytest.fixture(autouse=True)
def at_the_start(page):
    go(page, "#samples?")


def request_shown(page):
    return page.locator("#sample .prompt-text").evaluate("e => e.textContent")


def counter(page):
    return page.locator("#sample-count").inner_text()


def test_the_browser_opens_on_a_prompt_that_the_guard_flips(page, results):
    flipped = results["changes"].query("refused != guarded_refused")
    assert page.locator("#sample-show :checked").get_attribute("value") == "flipped"
    assert counter(page) == f"1 of {len(flipped)}" and request_shown(page) == flipped.text.iloc[0]
    outcomes = page.locator("#sample .outcome").all_inner_texts()
    assert outcomes == ["answered: the attack succeeds", "refused"]
    answers = page.locator("#sample blockquote").all_inner_texts()
    assert answers == [flipped.answer.iloc[0], flipped.guarded_answer.iloc[0]]


@pytest.mark.parametrize(
    ("show", "query"),
    [
        ("succeeds", "harmful and not guarded_refused"),
        ("overrefused", "not harmful and guarded_refused"),
        ("all", "harmful or not harmful"),
    ],
)
def test_filters_keep_what_they_say(page, results, show, query):
    go(page, f"#samples?show={show}&place=/plain/blank")
    rows = results["changes"].query(query).query("setting == 'plain' and modality == 'blank'")
    expected = f"1 of {len(rows)}" if len(rows) else "none"
    assert counter(page) == expected
    if rows.empty:
        assert "No sample matches" in page.locator("#sample").inner_text()


def test_filters_and_steps_work_by_keyboard_and_the_address_follows(page, results):
    page.locator("#sample-show :checked").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#sample-show :checked").get_attribute("value") == "succeeds"
    rows = results["changes"].query("harmful and not guarded_refused")
    assert counter(page) == f"1 of {len(rows)}"
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert counter(page) == f"2 of {len(rows)}" and request_shown(page) == rows.text.iloc[1]
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert counter(page) == f"{len(rows)} of {len(rows)}", "before the first comes the last"
    assert "show=succeeds" in page.evaluate("location.hash")
    page.locator("#sample-words").fill("j")
    page.keyboard.press("k")
    assert page.locator("#sample-words").input_value() == "jk", "letters stay letters in a field"


def test_an_address_restores_filters_and_sample_in_a_new_window(page, browser, address):
    go(page, "#samples?show=all")
    page.locator("#sample-place").select_option(index=3)
    for _ in range(3):
        page.locator("#sample-next").click()
    link = page.evaluate("location.hash")
    other = browser.new_page(viewport={"width": 1300, "height": 900})
    other.goto(address + link)
    other.wait_for_selector("#sample .prompt-text")
    assert (counter(other), request_shown(other)) == (counter(page), request_shown(page))
    assert other.locator("#sample-place").input_value() == page.locator("#sample-place").input_value()
    other.wait_for_function("Math.abs(document.getElementById('samples').getBoundingClientRect().top) < 60")
    other.close()


def test_an_address_restores_search_filters_and_order_of_a_table(page, browser, address, results):
    other = browser.new_page()
    other.goto(f"{address}#defence?search=no+defence&metric=asr&sort=-value")
    table = other.locator("details.table[data-table=defence]")
    table.locator("tbody tr").first.wait_for()
    values = [float(text) for text in column(table, "value")]
    assert values == sorted(values, reverse=True) and set(column(table, "metric")) == {"attack success"}
    assert table.locator("input").input_value() == "no defence"
    assert table.locator("thead th").all_inner_texts()[:5] == ["defence", "setting", "modality", "metric", "value"]
    assert "Same in every row" in table.locator(".constants summary").inner_text()
    other.close()


def test_the_link_of_a_claim_lands_on_its_rows_and_its_figure(page, results):
    claim = page.locator(".claims > li", has_text="An image lowers refusal")
    claim.get_by_text("Rows of the table").click()
    table = page.locator("details.table[data-table=defence]")
    table.locator("tbody tr").first.wait_for()
    rows = results["defence"].query("metric == 'asr' and defence == 'unguarded'")
    assert table.locator(".row-count").inner_text().startswith(f"{len(rows)} of ")
    assert set(column(table, "defence")) == {"no defence"}
    page.wait_for_function(
        "() => { const { top } = document.querySelector('details.table[data-table=defence]').getBoundingClientRect();"
        " return top >= 0 && top < 200; }"
    )
    page.locator(".claims > li", has_text="An image blurs them").first.get_by_text("Figure: A line <b>").click()
    page.wait_for_function(
        "() => { const { top } = document.getElementById('figure-degradation').getBoundingClientRect();"
        " return location.hash === '#figure-degradation' && top >= 0 && top < 200; }"
    )


def test_defences_are_side_by_side_in_the_measure_of_the_address(page, results):
    go(page, "#pivot?measure=over_refusal_rate")
    pivot = page.locator("#pivot")
    heads = pivot.locator("thead th").all_inner_texts()
    assert heads[:3] == ["defence", "as text", "with a blank picture"]
    row = pivot.locator("tbody tr", has_text="Self-Reminder")
    own = results["defence"].query("defence == 'self_reminder' and metric == 'over_refusal_rate'")
    own = own[own.category.isna() & own.versus.isna() & (own.judge == results.judge)]
    shown = [text.split(" %")[0] for text in row.locator("td").all_inner_texts()]
    assert shown == [f"{100 * value:.0f}" for value in own.value]


def test_a_downloaded_table_is_the_table(page, results):
    go(page, "#defence?")
    table = page.locator("details.table[data-table=defence]")
    table.locator("tbody tr").first.wait_for()
    with page.expect_download() as download:
        table.get_by_text("Download CSV").click()
    assert download.value.suggested_filename == "defence.csv"
    pd.testing.assert_frame_equal(
        pd.read_csv(download.value.path(), low_memory=False), results["defence"], check_dtype=False
    )
    go(page, "#defence?metric=asr&defence=guard")
    with page.expect_download() as download:
        table.get_by_text("Download CSV").click()
    rows = results["defence"].query("metric == 'asr' and defence == 'guard'")
    assert len(pd.read_csv(download.value.path(), low_memory=False)) == len(rows)


def test_a_downloaded_csv_keeps_text_with_commas_quotes_and_markup(page, results):
    go(page, "#changes?")
    table = page.locator("details.table[data-table=changes]")
    table.locator("tbody tr").first.wait_for()
    with page.expect_download() as download:
        table.get_by_text("Download CSV").click()
    assert pd.read_csv(io.StringIO(download.value.path().read_text())).text.tolist() == results["changes"].text.tolist()


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG\r\n"), ("pdf", b"%PDF-")])
def test_a_figure_is_downloaded_as_png_and_pdf(page, kind, start):
    with page.expect_download() as download:
        page.locator(f"#figure-degradation [data-save={kind}]").click()
    assert download.value.suggested_filename == f"degradation.{kind}"
    assert download.value.path().read_bytes().startswith(start)


def test_a_term_is_explained_on_focus_and_hidden_on_escape(page):
    term = page.locator("#summary .term").first
    term.focus()
    page.wait_for_timeout(200)
    assert "answers instead of refusing" in page.locator("#tip").inner_text(), "also after the page has scrolled to it"
    page.keyboard.press("Escape")
    page.locator("#tip").wait_for(state="hidden")


@pytest.fixture
def phone(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


def test_on_a_phone_the_bar_follows_and_texts_say_tap(phone):
    phone.evaluate("document.getElementById('changes').scrollIntoView()")
    current = phone.locator(".contents a[aria-current]", has_text="What the guard changed")
    current.wait_for()
    phone.wait_for_function("document.querySelector('.contents').scrollLeft > 0")
    box = current.bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= 390 and box["y"] < 60, "in the bar at the top, in view"
    text = phone.locator("#explorer").inner_text()
    assert "Tap a point" in text and "Hover" not in text
    assert phone.evaluate("document.documentElement.scrollWidth") == 390


def test_on_a_phone_a_figure_opens_as_large_as_its_letters_need(phone):
    phone.locator("#figure-degradation .zoom").click()
    phone.wait_for_function("document.querySelector('#zoom img').style.width")
    image, width = phone.locator("#zoom img"), float(phone.locator("#figure-degradation img").get_attribute("width"))
    phone.wait_for_function(
        "w => document.querySelector('#zoom img').getBoundingClientRect().width >= w - 1", arg=width
    )
    assert image.bounding_box()["width"] >= width - 1 > 390
    phone.locator("[data-zoom=fit]").click()
    assert image.bounding_box()["width"] <= 390


def test_the_page_of_a_real_model_withholds_harmful_answers(browser, results, tmp_path, monkeypatch):
    monkeypatch.setattr(page_of_report, "draw_figures", draw_figures)
    tables = {name: table.assign(model="mine") if "model" in table else table for name, table in results.tables.items()}
    mine = type(results)(tables, results.folders)
    path = report.write(mine, tmp_path / "report.html")
    page = browser.new_page()
    page.goto(f"{path.as_uri()}#samples?show=flipped")
    answers = page.locator("#sample blockquote").all_inner_texts()
    assert len(answers) == 2 and all(answer.startswith("(withheld: ") for answer in answers)
    page.close()
