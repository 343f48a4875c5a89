"""The report in a real browser, without network access."""

import pandas as pd
import pytest

from studies.report.glossary import NAMES
from tests.studies.report.report_results import CHROMIUM, MARKUP

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium")


def plotted(page, trace=0):
    return page.evaluate("n => Array.from(document.getElementById('plot').data[n].x)", trace)


def move_slider(page, layer):
    page.locator("#layer").focus()
    page.keyboard.press({0: "Home", 7: "End"}[layer])


def states(results, layer, modality="text"):
    points = results["points"]
    return points[(points.layer == layer) & (points.modality == modality)]


def test_the_slider_moves_the_points_to_the_layer(page, results):
    move_slider(page, 7)
    assert plotted(page) == states(results, 7).pc1.tolist()
    move_slider(page, 0)
    assert plotted(page) == states(results, 0).pc1.tolist()
    assert page.locator("#layer-shown").inner_text() == "0 of 7"
    assert page.locator("#layer").get_attribute("aria-valuetext") == "layer 0"
    assert "at layer 0" in page.locator("#chosen").inner_text()


def test_coordinates_can_be_shown_instead_of_the_plane(page, results):
    move_slider(page, 7)
    page.select_option("#view", "coordinate")
    assert plotted(page) == states(results, 7).coordinate.tolist()
    page.select_option("#view", "plane")
    assert plotted(page) == states(results, 7).pc1.tolist()


def test_points_show_which_prompts_are_refused_with_and_without_the_guard(page, results):
    def filled(place):
        symbols = page.evaluate("n => document.getElementById('plot').data[n].marker.symbol", place)
        return [not symbol.endswith("-open") for symbol in symbols]

    move_slider(page, 7)
    place = 2 * list(results["points"].modality.unique()).index("blank")
    harmful = states(results, 7, "blank").harmful.tolist()
    page.select_option("#fill", "refused")
    assert not any(filled(place))
    page.select_option("#fill", "guarded prompt_text")
    assert filled(place) == harmful
    page.select_option("#fill", "")
    assert all(filled(place))


def centre_of_a_point(page, place):
    point = page.locator("#plot .scatterlayer").first.locator("path.point").nth(place)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_hovering_over_a_point_shows_its_prompt_and_answers_and_a_click_selects_it(page, results):
    move_slider(page, 7)
    prompts = states(results, 7)
    x, y = centre_of_a_point(page, 2)
    page.mouse.move(x, y)
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    tip_text = tip.inner_text()
    shown = [text for text in prompts.text if text.strip() in tip_text]
    assert len(shown) == 1
    change = results["changes"].query("modality == 'text' and text == @shown[0]").iloc[0]
    assert change.answer in tip_text and change.guarded_answer in tip_text
    assert "without guard" in tip_text and "with guard" in tip_text
    page.mouse.click(x, y)
    page.locator("#chosen .prompt-text", has_text=shown[0]).wait_for()
    # In steps, as a hand does: a chart that has just been drawn again may report the place before.
    page.mouse.move(0, 0, steps=20)
    tip.wait_for(state="hidden")
    assert page.locator("#chosen .prompt-text").inner_text() == shown[0]
    assert page.locator("#chosen .way").count() == results["points"].modality.nunique()


def test_a_prompt_can_be_chosen_from_the_list_by_keyboard(page, results):
    page.locator("#prompt").focus()
    page.keyboard.press("Home")
    first = page.locator("#chosen .prompt-text").inner_text()
    page.keyboard.press("ArrowDown")
    second = page.locator("#chosen .prompt-text").inner_text()
    assert first != second and {first, second} <= set(results["points"].text)
    row = states(results, 7).query("text == @second").iloc[0]
    assert plotted(page, 1) == [row.pc1], "the ring is around it"


def test_the_zoom_is_kept_while_choosing_prompts(page):
    def shown():
        return page.evaluate("document.getElementById('plot').layout.xaxis.range")

    move_slider(page, 7)
    whole = shown()
    panel = page.locator("#plot .nsewdrag").first
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_function("x => document.getElementById('plot').layout.xaxis.range[0] > x", arg=whole[0])
    part = shown()
    page.locator("#prompt").focus()
    page.keyboard.press("ArrowDown")
    assert shown() == part
    move_slider(page, 0)
    move_slider(page, 7)
    assert shown() == whole, "another layer has its own range"


def test_markup_in_prompts_stays_text_wherever_it_is_shown(page, results):
    for text in MARKUP:
        place = page.locator("#prompt option", has_text=text[:12]).first.get_attribute("value")
        page.select_option("#prompt", place)
        assert page.locator("#chosen .prompt-text").evaluate("e => e.textContent") == text
        assert "Sure! <i>unguarded</i> & done." in page.locator("#chosen").inner_text()
    table = opened_table(page, "changes")
    table.locator("input").fill("onerror")
    assert MARKUP[1] in table.locator("tbody").inner_text()
    table.locator("input").fill("")
    go(page, "#samples?show=all")
    page.locator("#sample-words").fill(MARKUP[1][:20])
    assert page.locator("#sample .prompt-text").evaluate("e => e.textContent") == MARKUP[1]
    elements = "img[onerror], img[src=x], main script:not([type]), #chosen i, details.table tbody i, figcaption img"
    assert page.locator(f"{elements}, #sample i").count() == 0


def opened_table(page, name):
    table = page.locator(f"details.table[data-table={name}]")
    if table.get_attribute("open") is None:
        table.locator("summary").click()
        table.locator("tbody tr").first.wait_for()
    return table


def go(page, address):
    """Follow a link within the page."""
    page.evaluate("hash => { location.hash = hash; }", address)
    page.wait_for_function("hash => location.hash === hash", arg=address)
    page.wait_for_timeout(50)


def column(table, name):
    names = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    place = names.index(name) + 1
    return table.locator(f"tbody td:nth-child({place})").all_inner_texts()


def test_the_filter_keeps_the_rows_with_the_words_and_the_chosen_value(page, results):
    readings = results["readings"]
    table = opened_table(page, "readings")
    row_count = table.locator(".row-count")
    assert row_count.inner_text() == f"{len(readings):,} rows"
    table.get_by_label("Only where metric is").select_option("kl")
    n_kl = int((readings.metric == "kl").sum())
    assert row_count.inner_text() == f"{n_kl:,} of {len(readings):,} rows"
    assert set(column(table, "metric")) == {NAMES["kl"]}
    table.locator("input").fill("  SUBSTITUTE blank picture ")
    matching = readings[(readings.metric == "kl") & (readings.rule == "substitute") & (readings.modality == "blank")]
    assert row_count.inner_text() == f"{len(matching):,} of {len(readings):,} rows"
    table.locator("input").fill("no such word")
    assert table.locator("tbody tr").count() == 0
    table.locator("input").fill("")
    table.get_by_label("Only where metric is").select_option(index=0)
    assert row_count.inner_text() == f"{len(readings):,} rows"


def test_only_a_page_of_rows_is_in_the_document_and_pages_turn(page):
    table = opened_table(page, "readings")
    first = column(table, "value")
    assert len(first) == 50 and table.get_by_text("← Back").is_disabled()
    table.get_by_text("Next →").click()
    assert column(table, "value") != first and "Page 2 of" in table.locator(".pages").inner_text()
    table.get_by_text("← Back").click()
    assert column(table, "value") == first


def test_a_header_sorts_numbers_as_numbers_both_ways_and_back(page, results):
    table = opened_table(page, "readings")
    values, as_it_was = results["readings"].value, column(table, "value")
    head = table.locator("thead th", has_text="value")

    def numbers():
        return [float(text.replace("−", "-")) for text in column(table, "value") if text]

    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers() == pytest.approx(values.sort_values().head(50).tolist(), rel=1e-3)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == pytest.approx(values.sort_values(ascending=False).head(50).tolist(), rel=1e-3)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "none" and column(table, "value") == as_it_was


def test_missing_values_come_last_in_both_directions(page, results):
    table = opened_table(page, "readings")
    head = table.locator("thead th", has_text="layer").first.locator("button")
    assert pd.isna(results["readings"].layer.iloc[0]), "otherwise this tests nothing"
    for _ in range(2):
        head.click()
        assert all(column(table, "layer"))
    head.click()


def test_a_figure_is_enlarged_and_closed_by_keyboard(page):
    button, dialog = page.locator("#figure-degradation .zoom"), page.locator("dialog#zoom")
    button.focus()
    page.keyboard.press("Enter")
    dialog.wait_for(state="visible")
    picture, box = dialog.locator("img"), dialog.locator(".scroll")
    page.wait_for_function("document.querySelector('#zoom img').style.width")
    fits = picture.bounding_box()
    inside = box.bounding_box()
    assert fits["width"] <= inside["width"] + 1 and fits["height"] <= inside["height"] + 1
    assert picture.get_attribute("alt") == page.locator("#figure-degradation img").get_attribute("alt")
    page.keyboard.press("+")
    assert picture.bounding_box()["width"] == pytest.approx(1.5 * fits["width"], abs=2)
    page.keyboard.press("0")
    assert picture.bounding_box()["width"] == pytest.approx(fits["width"], abs=1)
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert button.evaluate("e => e === document.activeElement")


def test_the_first_tab_stop_skips_to_the_content(browser, address):
    page = browser.new_page()
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.close()


def background(page):
    return sum(map(int, page.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(", ")))


def ink_of_the_plot(page):
    return page.evaluate("document.getElementById('plot').layout.font.color")


def test_the_theme_switches_and_the_plot_follows(page):
    light, ink = background(page), ink_of_the_plot(page)
    page.get_by_role("button", name="Switch to the dark theme").click()
    assert background(page) < 200 < 600 < light
    assert ink_of_the_plot(page) != ink
    page.get_by_role("button", name="Switch to the light theme").click()
    assert (background(page), ink_of_the_plot(page)) == (light, ink)


def test_the_theme_of_the_system_applies(page):
    light, ink = background(page), ink_of_the_plot(page)
    page.evaluate("delete document.documentElement.dataset.theme")
    page.emulate_media(color_scheme="dark")
    assert background(page) < 200
    page.wait_for_function("ink => document.getElementById('plot').layout.font.color !== ink", arg=ink)
    page.emulate_media(color_scheme="light")
    assert background(page) == light


def test_on_a_phone_the_page_fits_and_tables_scroll_in_their_box(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 720}, has_touch=True, is_mobile=True)
    page.goto(address)
    page.wait_for_selector("#plot .main-svg")
    table = opened_table(page, "readings")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert table.locator(".scroll").evaluate("e => e.scrollWidth > e.clientWidth")
    page.close()


def test_without_scripts_the_verdicts_are_shown_and_the_page_says_what_is_missing(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    text = page.locator("#content").inner_text()
    assert "need JavaScript" in text and "shown on the built-in model" in text
    context.close()
