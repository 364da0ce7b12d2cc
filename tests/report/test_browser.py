"""The page in a real browser: it opens, closes, sorts and finds, asks nothing, and fits a phone."""

import json
import shutil

import made
import pytest

from mechprobe.report import make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on PATH"
)
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
         "disable-background-networking", "disable-component-update", "disable-sync",
         "disable-dev-shm-usage")  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory, report):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(report.html, encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.set_window_size(1200, 900)
    browser.get(address)
    return browser


def _ask(page, script, *arguments):
    return page.execute_script(f"return {script}", *arguments)


def _shown(page):
    return _ask(page, "[...document.querySelectorAll('#list>details')].filter(r=>!r.hidden)"
                      ".map(r=>r.id)")  # fmt: skip


def _requests(page):
    messages = [json.loads(line["message"])["message"] for line in page.get_log("performance")]
    return [
        one["params"]["request"]["url"]
        for one in messages
        if one["method"] == "Network.requestWillBeSent"
    ]


def test_it_asks_for_itself_alone_and_reports_no_error(page, address):
    page.execute_script("document.getElementById('all').click()")
    asked = [url for url in _requests(page) if not url.startswith("data:,")]
    assert asked == [address]
    assert page.get_log("browser") == []


def test_a_row_opens_by_keyboard_and_shows_its_counts(page, material):
    index, row = next((i, row) for i, row in enumerate(material.document["rows"]) if row["danger"])
    at = f"#r{index}"
    summary = page.find_element("css selector", f"{at}>summary")
    evidence = page.find_element("css selector", f"{at} .evidence")
    assert not evidence.is_displayed()
    summary.send_keys("\ue007")  # enter
    assert evidence.is_displayed()
    delta = row["deltas"]["refusal"]
    assert f"{delta['before_count']} → {delta['after_count']} of {delta['n']}" in evidence.text
    assert "p060" in evidence.text


def test_a_field_of_the_matrix_leads_to_its_row(page):
    link = page.find_element("css selector", ".heat td.l3 a, .heat td.l4 a")
    target = link.get_attribute("href").rpartition("#")[2]
    link.click()
    row = page.find_element("id", target)
    assert row.get_attribute("open") is not None
    assert _ask(page, "document.activeElement.parentElement.id") == target


def test_rows_are_found_by_words_and_by_regime(page, material):
    every = _shown(page)
    assert len(every) == len(material.document["rows"])
    page.find_element("id", "find").send_keys("calm q2_k")
    assert len(_shown(page)) == 1
    assert "1 of 10 rows" in page.find_element("id", "found").text
    page.find_element("id", "find").clear()
    page.find_element("id", "find").send_keys(" ")
    page.find_element("css selector", "#regime option[value=hidden_danger]").click()
    hidden = [f"r{i}" for i, row in enumerate(material.document["rows"])
              if row["regime"] == "hidden_danger"]  # fmt: skip
    assert sorted(_shown(page)) == sorted(hidden)


def test_rows_come_in_the_order_that_is_asked_for(page, material):
    worst = _shown(page)[0]
    rows = material.document["rows"]
    assert rows[int(worst[1:])]["regime"] == "hidden_danger"
    page.find_element("css selector", "#order option[value=matrix]").click()
    assert _shown(page) == [f"r{i}" for i in range(len(rows))]
    page.find_element("css selector", "#order option[value=lost]").click()
    points = [rows[int(name[1:])]["deltas"].get("refusal", {}).get("points") for name in
              _shown(page)]  # fmt: skip
    known = [value for value in points if value is not None]
    assert known == sorted(known)
    assert points[: len(known)] == known


def test_all_open_and_close(page):
    button = page.find_element("id", "all")
    button.click()
    assert _ask(page, "[...document.querySelectorAll('#list>details')].every(r=>r.open)")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert not _ask(page, "[...document.querySelectorAll('#list>details')].some(r=>r.open)")


def test_hostile_names_do_nothing(page):
    assert made.HOSTILE in page.find_element("id", "matrix").text
    assert _ask(page, "document.images.length") == 0
    assert _ask(page, "document.scripts.length") == 1


@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_page_is_wider_than_the_screen(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        page.find_element("id", "all").click()
        assert _ask(page, "document.documentElement.scrollWidth") <= width
        small = _ask(
            page,
            "Math.min(...[...document.querySelectorAll('p,li,dt,dd,summary span')]"
            ".filter(e=>e.offsetParent).map(e=>parseFloat(getComputedStyle(e).fontSize)))",
        )
        assert small >= 11
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_read_on_its_ground(page, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    try:
        ground = _ask(page, "getComputedStyle(document.body).backgroundColor")
        assert (sum(_rgb(ground)) < 150) is (scheme == "dark")
        for where in ("body", "h1", ".run", "a[href]", ".said", "figcaption"):
            ink = _ask(page, "getComputedStyle(document.querySelector(arguments[0])).color", where)
            assert _contrast(_rgb(ink), _rgb(ground)) >= 4.5, where
        for name in ("l4", "l3", "l2", "l1", "z", "g1", "g2"):
            ink, field = _ask(
                page,
                "(s=>[s.color,s.backgroundColor])"
                "(getComputedStyle(document.querySelector('.shades .'+arguments[0])))",
                name,
            )
            assert _contrast(_rgb(ink), _rgb(field)) >= 4.5, name
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _rgb(text):
    return [float(part) for part in text.partition("(")[2].rstrip(")").split(",")[:3]]


def _contrast(one, other):
    def luminance(colour):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (part / 255 for part in colour)
        ]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_reads_without_its_script(page, report, tmp_path):
    bare = tmp_path / "bare.html"
    bare.write_text(report.html.replace("sha256-", "sha256-x"), encoding="utf-8")
    page.get(bare.as_uri())
    assert not page.find_element("css selector", ".tools").is_displayed()
    row = page.find_element("css selector", "#list>details>summary")
    row.click()
    assert page.find_element("css selector", "#list .evidence").is_displayed()


@pytest.mark.verify
def test_ten_thousand_rows_fit_a_browser(browser, tmp_path):
    cells = {f"m{i}": {"FP16@t": (90, 80), "Q8_0@t": (89, 80), "Q2_K@t": (90 - i, 80)}
             for i in range(4)}  # fmt: skip
    few = made.material(cells)
    document = few.document | {
        "rows": [
            row | {"model": f"{row['model']}-{i}"}
            for i in range(834)
            for row in few.document["rows"]
        ]
    }
    file = tmp_path / "large.html"
    file.write_text(make_report(type(few)("large", document)).html, encoding="utf-8")
    browser.get(file.as_uri())
    assert len(_shown(browser)) == 200
