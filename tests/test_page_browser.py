"""The page in headless Chromium; skipped without Chromium or Playwright."""

import re
import shutil
import time

import pytest
from conftest import build_chat_model
from PIL import Image

from evotok.app.examples import WORLD_PROMPTS, WORLD_QUESTIONS
from evotok.commands.app import listen
from evotok.inference import preview_images


sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
pytest.importorskip("gradio", reason="the page needs the extra `app`")
from evotok.app.server import serve  # noqa: E402


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
expect = sync_api.expect

COPY = """bytes => navigator.clipboard.write(
    [new ClipboardItem({"image/png": new Blob([new Uint8Array(bytes)], {type: "image/png"})})])"""
SIZES = {"laptop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}
PATIENCE = 60_000


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tiny_page():
    """Serves a page over a tiny random model of the world's image size."""
    with serve(*build_chat_model(64), listen("127.0.0.1", None)) as served:
        yield served


@pytest.fixture
def visit(browser, request):
    """Yields a function that opens a tab of the page for a new visitor."""
    contexts = []
    expect.set_options(timeout=PATIENCE)

    def open_page(tab, size="laptop", of="app_page"):
        contexts.append(browser.new_context(viewport=SIZES[size], is_mobile=size == "phone"))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(request.getfixturevalue(of).url)
        page.get_by_role("tab", name=tab).click()
        return page

    yield open_page
    for context in contexts:
        context.close()


def send(page, question):
    page.locator("#question textarea").fill(question)
    page.locator("#question").get_by_test_id("submit-button").click()


def answers(page):
    return page.locator("#transcript .bot.message:not(.pending)")


@pytest.mark.parametrize("size", SIZES)
def test_chat_answers_about_an_upload(visit, tmp_path, size):
    Image.new("RGB", (200, 120), (220, 30, 30)).save(tmp_path / "red.png")
    page = visit("Chat", size)
    page.locator("#question input[type=file]").set_input_files(tmp_path / "red.png")
    expect(page.locator("#question img")).to_be_visible()
    send(page, WORLD_QUESTIONS[1])
    expect(answers(page)).to_have_text(re.compile(r"\w"))
    expect(page.locator("#transcript .user img").first).to_be_visible()
    send(page, "What is this?")
    expect(answers(page)).to_have_count(2)
    expect(page.locator("#transcript")).to_contain_text("What is this?")
    page.locator("#chat-new").click()
    expect(answers(page)).to_have_count(0)


def test_copied_image_can_be_pasted(visit, tmp_path):
    """Ctrl+V pastes into the question, and a button into the tab Look inside."""
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "grey.png")
    page = visit("Chat")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(COPY, list((tmp_path / "grey.png").read_bytes()))
    page.locator("#question textarea").focus()
    page.keyboard.press("Control+V")
    expect(page.locator("#question img")).to_be_visible()
    send(page, "What is this?")
    expect(answers(page)).to_have_text(re.compile(r"\w"))
    expect(page.locator("#transcript .user img").first).to_be_visible()
    page.get_by_role("tab", name="Look inside").click()
    page.locator("#source").get_by_label("Paste from clipboard").click()
    page.locator("#source").get_by_role("button", name="Paste from clipboard").last.click()
    expect(page.locator("#figure")).to_contain_text("PSNR")


@pytest.mark.parametrize("size", SIZES)
def test_generated_image_goes_to_the_other_tabs(visit, size):
    page = visit("Generate", size)
    page.locator("#generate-examples button").first.click()
    expect(page.locator("#prompt textarea")).to_have_value(WORLD_PROMPTS[0])
    page.locator("#count input[type=number]").fill("2")
    page.locator("#generate-start").click()
    expect(page.locator("#status")).to_contain_text(re.compile(r"\d+ of 64 positions .* images/s .* seed \d+"))
    expect(page.locator("#status")).to_contain_text("64 of 64")
    expect(page.locator("#gallery img")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no element exceeds the window"
    page.locator("#ask").click()
    expect(page.locator("#transcript .user img")).to_be_visible()
    send(page, "What is this?")
    expect(answers(page)).to_have_text(re.compile(r"\w"))
    page.get_by_role("tab", name="Generate").click()
    page.locator("#look").click()
    expect(page.locator("#decoded img")).to_be_visible()


def test_generation_stops_and_starts_again(visit, monkeypatch):
    """Gradio ignores a click while the previous generation is being cancelled: the button is disabled until then."""

    def slow(*args):
        time.sleep(1)
        return preview_images(*args)

    monkeypatch.setattr("evotok.app.generate.preview_images", slow)
    page = visit("Generate")
    page.locator("#prompt textarea").fill("a pizza")
    page.locator("#count input[type=number]").fill("8")
    page.locator("#generate-start").click()
    expect(page.locator("#status .bar")).to_be_visible()
    page.locator("#generate-stop").click()
    expect(page.locator("#status")).to_contain_text("stopped")
    expect(page.locator("#gallery img")).to_have_count(8)
    page.locator("#count input[type=number]").fill("1")
    page.locator("#generate-start").click()
    expect(page.locator("#status")).to_contain_text("64 of 64")
    expect(page.locator("#gallery img")).to_have_count(1)


@pytest.mark.parametrize("size", SIZES)
def test_look_inside_decodes_and_swaps(visit, tmp_path, size):
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "grey.png")
    page = visit("Look inside", size)
    page.locator("#source input[type=file]").set_input_files(tmp_path / "grey.png")
    expect(page.locator("#figure")).to_contain_text(re.compile(r"4 of 4 levels · PSNR \d+\.\d dB"))
    expect(page.locator("#maps img")).to_have_count(16)
    expect(page.locator("#plot canvas, #plot svg.marks").first).to_be_visible()
    before = page.locator("#decoded img").get_attribute("src")
    page.locator("#depth input[type=number]").fill("1")
    page.locator("#depth input[type=number]").press("Enter")
    expect(page.locator("#figure")).to_contain_text("1 of 4 levels")
    assert page.locator("#decoded img").get_attribute("src") != before
    page.locator("#other-examples button").first.click()
    expect(page.locator("#swapped img")).to_have_count(2)
    text = page.locator("#likeness").inner_text()
    page.locator("#levels").get_by_label("2", exact=True).check()
    expect(page.locator("#likeness")).not_to_have_text(text)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no element exceeds the window"


# --- on a tiny model -------------------------------------------------------------------------------------------------


def test_prompt_is_submitted_by_enter_with_an_empty_seed(visit):
    page = visit("Generate", of="tiny_page")
    expect(page.locator("#ask")).to_be_disabled()
    expect(page.locator("#look")).to_be_disabled()
    page.get_by_role("button", name="More").click()
    expect(page.locator("#seed input, #seed textarea")).to_have_value("")
    page.locator("#count input[type=number]").fill("1")
    seeds = ["none yet"]
    for _ in range(2):
        page.locator("#prompt textarea, #prompt input").fill("a frog")
        page.locator("#prompt textarea, #prompt input").press("Enter")
        expect(page.locator("#status")).not_to_contain_text(f"seed {seeds[-1]}")
        expect(page.locator("#status")).to_contain_text("64 of 64")
        expect(page.locator("#generate-start")).to_be_enabled()
        seeds.append(re.search(r"seed (\d+)", page.locator("#status").inner_text())[1])
        page.locator("#prompt textarea, #prompt input").fill("")
    assert len(set(seeds)) == 3 and "0" not in seeds
    expect(page.locator("#ask")).to_be_enabled()


def test_images_and_buttons_have_names(visit):
    page = visit("Look inside", of="tiny_page")
    page.locator("#inside-examples button").first.click()
    expect(page.locator("#maps img")).to_have_count(4)
    page.locator("#other-examples button").nth(1).click()
    expect(page.locator("#swapped img")).to_have_count(2)
    for tab in ("Chat", "Generate", "Look inside"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("img, button")].filter(e => e.checkVisibility() && !(
                e.alt || e.ariaLabel || e.title || e.innerText.trim() || e.querySelector?.("img[alt]:not([alt=''])")
            )).map(e => e.outerHTML.slice(0, 200))"""
        )
        assert not nameless, tab
