"""The page as a person uses it, in headless Chromium; skipped where there is no Chromium or Playwright."""

import re
import shutil
import threading
import time

import pytest
from conftest import build_chat_model
from PIL import Image

from evotok.app.draw import preview
from evotok.commands.app import listen


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
    """A page over a tiny random model of the emoji's size, which answers at once and nonsense."""
    with serve(*build_chat_model(64), listen("127.0.0.1", None)) as served:
        yield served


@pytest.fixture
def visit(browser, request):
    """Function: a new visitor, who opens a tab of the page."""
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
def test_chat_about_an_upload_in_several_turns(visit, tmp_path, size):
    Image.new("RGB", (200, 120), (220, 30, 30)).save(tmp_path / "red.png")
    page = visit("Chat", size)
    page.locator("#question input[type=file]").set_input_files(tmp_path / "red.png")
    expect(page.locator("#question img")).to_be_visible()
    send(page, "What color is the emoji?")
    expect(answers(page)).to_have_text(re.compile(r"\w"))
    expect(page.locator("#transcript .user img").first).to_be_visible()
    send(page, "What is this?")
    expect(answers(page)).to_have_count(2)
    expect(page.locator("#transcript")).to_contain_text("What is this?")
    page.locator("#chat-new").click()
    expect(answers(page)).to_have_count(0)


def test_a_copied_image_is_pasted(visit, tmp_path):
    """Ctrl+V into the question, and by the button of the tab that looks inside."""
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


def test_files_that_are_no_images_and_empty_prompts_are_told_in_a_line(visit, tmp_path):
    (tmp_path / "page.png").write_text("<html>")
    page = visit("Chat")
    page.locator("#question input[type=file]").set_input_files(tmp_path / "page.png")
    expect(page.locator("#question img")).to_have_count(1)
    send(page, "What is this?")
    expect(page.get_by_text("page.png: not an image")).to_be_visible()
    page.get_by_role("tab", name="Draw").click()
    page.locator("#draw-go").click()
    expect(page.get_by_text("Write what to draw first.")).to_be_visible()
    assert "Traceback" not in page.content()


@pytest.mark.parametrize("size", SIZES)
def test_draw_ask_about_it_and_look_inside_it(visit, size):
    page = visit("Draw", size)
    page.locator("#draw-examples button").first.click()
    expect(page.locator("#prompt textarea")).to_have_value("a frog, noto style")
    page.locator("#count input[type=number]").fill("2")
    page.locator("#draw-go").click()
    expect(page.locator("#status")).to_contain_text(re.compile(r"\d+ of 64 positions .* images/s .* seed \d+"))
    expect(page.locator("#status")).to_contain_text("64 of 64")
    expect(page.locator("#gallery img")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
    page.locator("#ask").click()
    expect(page.locator("#transcript .user img")).to_be_visible()
    send(page, "What is this?")
    expect(answers(page)).to_have_text(re.compile(r"\w"))
    page.get_by_role("tab", name="Draw").click()
    page.locator("#look").click()
    expect(page.locator("#decoded img")).to_be_visible()


def test_seed_and_negative_prompt_are_heeded(visit):
    page = visit("Draw")
    expect(page.locator("#guidance input[type=number]")).to_have_value("7.5")
    page.locator("#prompt textarea").fill("a frog, noto style")
    page.locator("#count input[type=number]").fill("1")
    page.get_by_role("button", name="More").click()
    page.locator("#seed input").fill("7")
    page.locator("#draw-go").click()
    expect(page.locator("#status")).to_contain_text(re.compile(r"64 of 64 .* seed 7\b"))
    expect(page.locator("#draw-go")).to_be_enabled()
    picture = page.locator("#gallery img")
    first = picture.get_attribute("src")  # the name of a picture is that of its content
    negative = page.locator("#negative input, #negative textarea")
    negative.fill("a pizza")
    page.locator("#draw-go").click()
    expect(picture).not_to_have_attribute("src", first)  # unfinished ones, too
    expect(page.locator("#status")).to_contain_text("64 of 64")
    expect(page.locator("#draw-go")).to_be_enabled()
    assert picture.get_attribute("src") != first
    negative.fill("")
    page.locator("#draw-go").click()
    expect(picture).to_have_attribute("src", first)


def test_drawing_stops_and_draws_again_however_long_a_step_takes(visit, monkeypatch):
    """Gradio passes over a click while the drawing before is still being cancelled: it must not be possible then."""

    def slow(*args):
        time.sleep(1)
        return preview(*args)

    monkeypatch.setattr("evotok.app.draw.preview", slow)
    page = visit("Draw")
    page.locator("#prompt textarea").fill("a pizza")
    page.locator("#count input[type=number]").fill("8")
    page.locator("#draw-go").click()
    expect(page.locator("#status .bar")).to_be_visible()
    page.locator("#draw-stop").click()
    expect(page.locator("#status")).to_contain_text("stopped")
    expect(page.locator("#gallery img")).to_have_count(8)
    page.locator("#count input[type=number]").fill("1")
    page.locator("#draw-go").click()
    expect(page.locator("#status")).to_contain_text("64 of 64")
    expect(page.locator("#gallery img")).to_have_count(1)


def test_a_visitor_who_leaves_in_the_middle_holds_nobody_up(visit):
    first, second = visit("Draw"), visit("Draw")
    for page, count in ((first, "8"), (second, "1")):
        page.locator("#prompt textarea").fill("a robot")
        page.locator("#count input[type=number]").fill(count)
    first.locator("#draw-go").click()
    expect(first.locator("#status .bar")).to_be_visible()
    second.locator("#draw-go").click()
    first.context.close()
    expect(second.locator("#status")).to_contain_text("64 of 64")


@pytest.mark.parametrize("size", SIZES)
def test_look_inside_and_swap(visit, tmp_path, size):
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
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"


# --- on a tiny model -------------------------------------------------------------------------------------------------


def test_a_prompt_is_sent_by_enter_and_more_leaves_the_seed_empty(visit):
    page = visit("Draw", of="tiny_page")
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
        expect(page.locator("#draw-go")).to_be_enabled()
        seeds.append(re.search(r"seed (\d+)", page.locator("#status").inner_text())[1])
        page.locator("#prompt textarea, #prompt input").fill("")
    assert len(set(seeds)) == 3 and "0" not in seeds
    expect(page.locator("#ask")).to_be_enabled()


def test_a_question_is_shown_at_once_and_can_be_retried_edited_and_copied(visit, monkeypatch):
    page = visit("Chat", of="tiny_page")
    page.locator("#chat-examples button, #chat-examples .gallery-item").first.click()
    expect(page.locator("#question textarea")).to_have_value("What is this?")
    released = threading.Event()
    monkeypatch.setattr("evotok.app.chat.steps", lambda *_: (released.wait(30), iter(["a", " frog"]))[1])
    page.locator("#question").get_by_test_id("submit-button").click()
    expect(page.locator("#transcript .user.message").last).to_contain_text("What is this?")
    expect(page.locator("#question textarea")).to_have_value("")
    released.set()
    expect(answers(page)).to_have_text(re.compile("a frog"))
    monkeypatch.setattr("evotok.app.chat.steps", lambda *_: iter(["a", " pizza"]))
    page.locator("#transcript").get_by_label("Retry").last.click()
    expect(answers(page)).to_have_text(re.compile("a pizza"))
    expect(answers(page)).to_have_count(1)
    page.locator("#transcript").get_by_label("Edit").last.click()
    page.locator("#transcript textarea").fill("Which group is this?")
    page.locator("#transcript").get_by_label("Submit").click()
    expect(page.locator("#transcript .user.message").last).to_contain_text("Which group is this?")
    expect(page.locator("#transcript")).not_to_contain_text("What is this?")
    expect(page.locator("#transcript").get_by_label("Copy message").first).to_be_attached()


def test_messages_are_plain_text(visit, monkeypatch):
    said = "![x](https://evil.example/x.png) <form action='https://evil.example'><input name=a></form> **b**"
    monkeypatch.setattr("evotok.app.chat.steps", lambda *_: iter([said]))
    page = visit("Chat", of="tiny_page")
    fetched = []
    page.on("request", lambda request: fetched.append(request.url))
    page.locator("#chat-examples button, #chat-examples .gallery-item").first.click()
    expect(page.locator("#question textarea")).to_have_value("What is this?")
    page.locator("#question").get_by_test_id("submit-button").click()
    expect(answers(page)).to_contain_text("![x](https://evil.example/x.png)")
    assert page.locator("#transcript form").count() == 0
    assert not [url for url in fetched if "evil" in url]


def test_images_are_drawn_in_the_chat(visit):
    page = visit("Chat", of="tiny_page")
    send(page, "/draw a frog, noto style")
    expect(page.locator("#transcript .user img")).to_be_visible()
    send(page, "Who painted the Mona Lisa?")
    expect(answers(page)).to_contain_text("has not learned")


def test_a_bad_image_after_an_example_is_told_and_leaves_no_stale_results(visit, tmp_path, monkeypatch):
    monkeypatch.setattr("gradio.image_utils.preprocess_image", pytest.fail)
    (tmp_path / "bad.png").write_text("<html>")
    page = visit("Look inside", of="tiny_page")
    page.locator("#inside-examples button").first.click()
    expect(page.locator("#figure")).to_contain_text("PSNR")
    page.locator("#source").get_by_label(re.compile("Clear|Remove")).first.click()
    page.locator("#source input[type=file]").set_input_files(tmp_path / "bad.png")
    expect(page.get_by_text("bad.png: not an image")).to_be_visible()
    expect(page.locator("#figure")).not_to_contain_text("PSNR")
    expect(page.locator("#source img")).to_have_count(0)


def test_images_and_buttons_have_names(visit):
    page = visit("Look inside", of="tiny_page")
    page.locator("#inside-examples button").first.click()
    expect(page.locator("#maps img")).to_have_count(4)
    page.locator("#other-examples button").nth(1).click()
    expect(page.locator("#swapped img")).to_have_count(2)
    for tab in ("Chat", "Draw", "Look inside"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("img, button")].filter(e => e.checkVisibility() && !(
                e.alt || e.ariaLabel || e.title || e.innerText.trim() || e.querySelector?.("img[alt]:not([alt=''])")
            )).map(e => e.outerHTML.slice(0, 200))"""
        )
        assert not nameless, tab
