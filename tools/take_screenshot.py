"""Takes docs/page.png, a screenshot of the tab Look inside of `evotok app` in a browser.

python tools/take_screenshot.py          needs the extra `app`, Playwright and Chromium
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from evotok.app.server import serve
from evotok.commands.app import listen
from evotok.commands.checkpoints import load_multimodal


TARGET = Path(__file__).resolve().parents[1] / "docs" / "page.png"
SIZE = {"width": 1280, "height": 960}
PATIENCE = 120_000


def main() -> int:
    """Serves the page, uses it, and saves a screenshot of it."""
    with serve(*load_multimodal("mini"), listen("127.0.0.1", None)) as served, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport=SIZE)
        tab.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        tab.goto(served.url)
        tab.get_by_role("tab", name="Look inside").click()
        tab.locator("#inside-examples button").first.click()
        expect(tab.locator("#maps img")).to_have_count(16)
        expect(tab.locator("#plot canvas, #plot svg.marks").first).to_be_visible()
        tab.wait_for_timeout(2000)  # images fade in
        tab.evaluate("window.scrollTo(0, 0)")
        screenshot = Image.open(BytesIO(tab.screenshot()))
        browser.close()
    screenshot.convert("RGB").save(TARGET, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
