"""The report in a real browser, at desktop and phone width, light and dark (C13, L20)."""

from dataclasses import replace

import pytest
from PIL import Image

from lace_lora import report
from tests.reporting import EVALUATION, reported_run

pytestmark = pytest.mark.browser
# The contrast of each text with what lies behind it, by the formula of WCAG 2.1; the worst one with its text.
CONTRAST = """() => {
  const linear = v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4
  const light = (rgb) => { const c = rgb.map(linear)
    return .2126 * c[0] + .7152 * c[1] + .0722 * c[2] }
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number)
  let worst = [99, '']
  for (const one of document.querySelectorAll('body *:not(svg *)')) {
    if (![...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue
    let behind = one, colour
    do { colour = numbers(getComputedStyle(behind).backgroundColor); behind = behind.parentElement }
    while (behind && colour[3] === 0)
    const [a, b] = [light(numbers(getComputedStyle(one).color)), light(colour)]
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
    if (ratio < worst[0]) worst = [ratio, one.textContent.slice(0, 60)]
  }
  return worst }"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with long words, wide pictures and every part."""
    verdict = ("x" * 300, *EVALUATION.verdict)
    run = reported_run(tmp_path_factory.mktemp("seen") / f"rose-{'e' * 60}", replace(EVALUATION, verdict=verdict))
    for path in (run.pairs, run.film_strip, run.nearest(1), run.sheet("sheet").contact_sheet):
        Image.linear_gradient("L").resize((1584, 500)).save(path)
    rows = [{"chosen": "y" * 90, "times": 19, "why": "z" * 200}]
    return report.write(run, people=[{"title": "Blind", "sentences": ["19 of 30."], "rows": rows}])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_reads_well_and_asks_for_nothing(browser, written, width, scheme):
    """C13, L20: no sideways scrolling, also with all opened; no word on the console, no request, contrast 4.5 : 1."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    try:
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(written.as_uri())
        assert page.locator("img").evaluate_all("all => all.every(one => one.naturalWidth > 0)")
        for _ in range(2):
            assert page.evaluate("document.documentElement.scrollWidth") == width
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        ratio, text = page.evaluate(CONTRAST)
        assert ratio >= 4.5, text
        assert said == [] and [url for url in asked if not url.startswith("data:")] == [written.as_uri()]
        page.get_by_role("link", name="Designs").click()
        assert page.evaluate("scrollY") > 0
    finally:
        context.close()


def test_nothing_runs_in_the_page_even_if_it_stood_there(browser, written):
    """L20: the page's own policy keeps scripts from running and pictures from being fetched."""
    bad = "<script>document.title = 'ran'</script><img src='https://example.com/a.png'></body>"
    changed = written.with_name("changed.html")
    changed.write_text(written.read_text(encoding="utf-8").replace("</body>", bad), encoding="utf-8")
    page = browser.new_page()
    try:
        refused = []
        page.on("console", lambda message: refused.append(message.text))
        page.goto(changed.as_uri())
        assert page.title() != "ran"
        assert len(refused) == 2 and all("Content Security Policy" in text for text in refused)
    finally:
        page.close()
