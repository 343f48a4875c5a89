"""Results and a browser, once for all tests of the report."""

from types import SimpleNamespace

import pytest

from studies import report
from studies.report import page as page_of_report
from studies.report.results import Results
from tests.studies.report.report_results import CHROMIUM, draw_figures, folder_of_results


@pytest.fixture(scope="package")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def results(tmp_path_factory):
    return Results.of(folder_of_results(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="package")
def address(results, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_of_report, "draw_figures", draw_figures)
        return report.write(results, tmp_path_factory.mktemp("out") / "report.html").as_uri()


@pytest.fixture(scope="package")
def opened(browser, address):
    """The page on a desktop, in the light theme, with all errors that it logged and all URLs that it requested."""
    page = browser.new_page(viewport={"width": 1300, "height": 900}, color_scheme="light", reduced_motion="reduce")
    session = SimpleNamespace(page=page, errors=[], requests=[])
    page.on("console", lambda message: session.errors.append(message.text))
    page.on("pageerror", lambda error: session.errors.append(str(error)))
    page.on("dialog", lambda dialog: (session.errors.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: session.requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("#plot .main-svg")
    yield session
    page.close()


@pytest.fixture
def page(opened):
    """Check after each test that the page logged no error and requested nothing but itself."""
    yield opened.page
    assert opened.errors == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
