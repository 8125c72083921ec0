"""The page to draw with one LoRA, clicked in a real browser; nothing of it comes from another host (P25, C1, L15)."""

import ast
import re
import threading
import zipfile
from contextlib import contextmanager

import pytest
import yaml
from packaging.requirements import Requirement

from lace_lora import config, main
from lace_lora.commissions import Limits
from lace_lora.errors import SettingsError
from tests import browsing
from tests.drawing import settings_of
from tests.generated import ROOT
from tests.serving import FACTS, Painter, Turnstile, quiet, run_in, served_app, until

pytestmark = pytest.mark.browser
# What Gradio's own script says of a request that was under way when the page was left.
LEFT = re.compile(r"^AbortError|Connection errored out")
# The contrast of each text with what lies behind it, by the formula of WCAG 2.1; the worst one with its text.
TOO_PALE = """() => {
  const linear = v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4
  const light = rgb => { const c = rgb.map(linear); return .2126 * c[0] + .7152 * c[1] + .0722 * c[2] }
  const numbers = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number)
  return [...document.querySelectorAll('h1, p, label span, .info, button')].filter(one => {
    if (!one.offsetParent || ![...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) return false
    let behind = one, colour
    do { colour = numbers(getComputedStyle(behind).backgroundColor); behind = behind.parentElement }
    while (behind && colour[3] === 0)
    const [a, b] = [light(numbers(getComputedStyle(one).color).slice(0, 3)), light(colour.slice(0, 3))]
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.4
  }).map(one => one.textContent.trim().slice(0, 40)) }"""


@pytest.fixture(scope="module")
def space():
    """The room, which needs Gradio."""
    browsing.require("gradio", "playwright")
    from lace_lora import space

    return space


@contextmanager
def opened(space, browser, folder, draw=None, *, facts=FACTS, settings=None, run=None, limits=None, size=(1280, 900)):
    """A page in the browser over a service: the page, the service, and all that the browser asked for."""
    run, limits = run or run_in(folder), limits or space.LIMITS
    settings = settings or config.load(preset="none", lora_output_dir=str(folder))
    copies = folder / "copies"
    with served_app(
        run, draw or Painter(run), limits,
        lambda drawing: space.application(drawing, lambda: facts, settings, limits, copies),
    ) as (address, drawing):  # fmt: skip
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True)
        page = context.new_page()
        page.set_default_timeout(30_000)
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        try:
            page.goto(address)
            page.get_by_role("button", name="Draw").wait_for()
            yield page, drawing, asked
            away = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
            assert away == [] and [error for error in errors if not LEFT.search(error)] == []
        finally:
            context.close()


def said(page, words):
    """What stands above the designs, once it holds those words."""
    page.locator("#said").get_by_text(words).wait_for()
    return page.locator("#said").inner_text()


def test_designs_are_drawn_shown_and_taken_away_and_no_request_leaves_this_computer(
    space, browser, tmp_path, made_run, models
):
    """P25, L15: with real models on a CPU; the pictures in the zip are those of the run's sheet, byte for byte."""
    from lace_lora.studio import Studio

    small = settings_of(tmp_path / "out", made_run, models, num_inference_steps=6)
    studio = Studio.open("lace", small, space.LIMITS, quiet)
    made = {"draw": studio.draw, "facts": studio.facts(), "settings": studio.config, "run": studio.run}
    with opened(space, browser, tmp_path, **made) as (page, drawing, asked):
        assert page.get_by_role("heading").inner_text() == "Designs in the style of lace"
        page.locator("#prompt textarea").fill("a photo of <lace> star")
        page.get_by_role("button", name="Draw").click()
        said(page, "Finished: 4 of 4 designs.")
        page.wait_for_function("document.querySelectorAll('#designs img').length >= 4")
        with page.expect_download() as taken:
            page.locator("#download").click()
        taken.value.save_as(tmp_path / "designs.zip")
        (job,) = drawing.jobs()
        assert any("/gradio_api/" in url for url in asked)
    with zipfile.ZipFile(tmp_path / "designs.zip") as archive:
        packed = [archive.read(name) for name in sorted(archive.namelist())]
    assert packed == [one.path.read_bytes() for one in drawing.pictures(job.id).values()] and len(packed) == 4
    assert job.asked["prompts"] == ["a photo of <lace> star"] and (job.asked["width"], job.asked["height"]) == (32, 32)


def test_the_settings_reach_the_service_and_the_page_fits_a_telephone(space, browser, tmp_path):
    """P25, C1: by the names of the settings; 390 px wide nothing is cut off, and all can be read."""
    with opened(space, browser, tmp_path, size=(390, 844)) as (page, drawing, _):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(TOO_PALE) == []
        page.get_by_label("Seed").fill("7")
        page.get_by_label("Seamless repeat").click()
        page.get_by_role("option", name="repeat, half-drop").click()
        page.get_by_label("Shape").click()
        page.get_by_role("option", name="wide 4 : 3").click()
        page.locator("#prompt textarea").fill("a photo of <lace>\n  rosette ")
        page.get_by_role("button", name="Draw").click()
        said(page, "Finished: 4 of 4 designs.")
        asked = drawing.jobs()[0].asked
        assert asked["prompts"] == ["a photo of <lace> rosette"] and asked["num_images"] == 4
        assert (asked["seed"], asked["repeat"], asked["lora_scale"]) == (7, "half-drop", 1.0)
        assert (asked["width"], asked["height"]) == space.size_of("wide 4 : 3", 32)
        page.locator("#designs img").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_progress_is_shown_and_stop_keeps_what_is_finished(space, browser, tmp_path):
    """P25."""
    run = run_in(tmp_path)
    with opened(space, browser, tmp_path, Painter(run, Turnstile(1)), run=run) as (page, drawing, _):
        page.get_by_role("button", name="Draw").click()
        assert "1 of 4 finished" in said(page, "1 of 4 finished")
        assert float(page.locator("#said progress").get_attribute("value")) == pytest.approx(1 / 12, abs=0.001)
        page.get_by_role("button", name="Stop").click()
        said(page, "Stopped: 1 of 4 designs.")
        assert drawing.jobs()[0].state == "cancelled"
        page.locator("#download").wait_for()


def test_a_prompt_that_cannot_be_drawn_an_error_and_a_full_queue_are_sentences(space, browser, tmp_path):
    """P25: words in them are words, never a part of the page."""
    run, pause = run_in(tmp_path), threading.Event()
    painter = Painter(run, pause, SettingsError(f"No <img src=x onerror=alert(1)> in {tmp_path}/secret/file."))
    with opened(space, browser, tmp_path, painter, run=run, limits=Limits(waiting=1, images=4)) as (page, drawing, _):
        page.locator("#prompt textarea").fill("a {rose")
        page.get_by_role("button", name="Draw").click()
        assert "never closed" in said(page, "Not drawn.") and drawing.jobs() == []
        page.locator("#prompt textarea").fill("a rose")
        page.get_by_role("button", name="Draw").click()
        assert "No <img src=x onerror=alert(1)> in file." in said(page, "in file.")
        painter.error = None
        drawing.submit({"num_images": 1}, 1)
        until(lambda: any(job.state == "running" for job in drawing.jobs()))
        drawing.submit({"num_images": 1}, 1)
        page.get_by_role("button", name="Draw").click()
        assert "1 requests are waiting already" in said(page, "waiting already")
        pause.set()


def test_closing_the_page_cancels_what_it_asked_for(space, browser, tmp_path):
    """P25: nobody waits for it any more, and others do."""
    run = run_in(tmp_path)
    with opened(space, browser, tmp_path, Painter(run, Turnstile(1)), run=run) as (page, drawing, _):
        page.get_by_role("button", name="Draw").click()
        said(page, "1 of 4 finished")
        page.goto("about:blank")
        until(lambda: drawing.jobs()[0].state == "cancelled")


def test_files_of_the_run_cannot_be_fetched_through_the_page(space, browser, tmp_path):
    """P25: not by their path, whatever lies there."""
    with opened(space, browser, tmp_path) as (page, drawing, _):
        page.get_by_role("button", name="Draw").click()
        said(page, "Finished")
        picture = next(iter(drawing.pictures(drawing.jobs()[0].id).values())).path
        for path in (picture, ROOT / "pyproject.toml", tmp_path / "lace/served"):
            answer = page.request.get(f"{page.url}gradio_api/file={path}")
            assert answer.status in (403, 404), path


# -- a Space --


def test_the_files_of_a_space_are_sound(space):
    """P25: app.py is Python that calls a function that there is; the card's front matter is what the Hub reads."""
    files = space.space_files("Lace: “roses”\n", base_model="stabilityai/stable-diffusion-xl-base-1.0")
    assert set(files) == {"app.py", "requirements.txt", "README.md"}
    calls = [node for node in ast.walk(ast.parse(files["app.py"])) if isinstance(node, ast.Call)]
    assert any(ast.unparse(call.func) == "space.public" for call in calls) and callable(space.public)
    front = yaml.safe_load(files["README.md"].split("---\n")[1])
    assert (front["sdk"], front["app_file"], front["license"]) == ("gradio", "app.py", "openrail++")
    assert front["title"] == "Lace: “roses”\n" and front["models"] == ["stabilityai/stable-diffusion-xl-base-1.0"]
    assert "models" not in space.space_files("x", base_model="lace-demo")["README.md"]


@pytest.mark.parametrize("folder", ["run", 'it\'s "one"', "x')\nimport os#"])
def test_a_folder_of_any_name_is_a_text_in_app_py(space, folder):
    """P25."""
    tree = ast.parse(space.space_files("x", base_model="a/b", run_folder=folder)["app.py"])
    assert folder in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert len([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]) == 2


def test_a_space_installs_the_version_of_gradio_that_is_tested_here(space):
    """P25: sdk_version is the pinned one, and the package's own requirement allows it."""
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    assert pinned["gradio"] == space.SDK_VERSION
    files = space.space_files("x", base_model="a/b", requirement="git+https://example.org/lace@main")
    wanted = Requirement(files["requirements.txt"].strip())
    assert wanted.name == "lace-lora" and wanted.extras == {"space"} and "example.org" in wanted.url
    assert space.space_files("x", base_model="a/b", requirement="./a.whl")["requirements.txt"] == "./a.whl\n"


@pytest.mark.parametrize("shape", ["square", "upright 3 : 4", "wide 4 : 3", "unknown"])
@pytest.mark.parametrize("side", [32, 96, 768, 1024])
def test_shapes_keep_the_area_and_are_multiples_of_8(space, shape, side):
    """P25."""
    width, height = space.size_of(shape, side)
    assert width % 8 == height % 8 == 0 and min(width, height) >= 32
    assert width * height == pytest.approx(side * side, rel=0.15 if side > 32 else 0.3)
    assert space.size_of("square", side) == (side, side)


def test_gradio_tells_nobody(space):
    """P25: its analytics are off before it is imported, so that no start and no visit is reported."""
    from gradio import analytics

    assert not analytics.analytics_enabled()


def test_without_gradio_the_command_says_what_to_type(monkeypatch, capsys):
    """P25."""
    from lace_lora import serve_command

    monkeypatch.setattr(serve_command, "find_spec", lambda name: None)
    assert main.run(["space"]) == 1
    assert "pip install 'lace-lora[space]'" in capsys.readouterr().err
