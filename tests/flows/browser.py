"""A person at Prefect's UI, in Debian's Chromium: each action ends once the page shows what it leads to."""

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 240_000
COLOURS = 64


class Person:
    """Uses the UI at `url`."""

    def __init__(self, page: Page, url: str):
        self.page, self._url = page, url

    def log_in(self, name_and_password: str) -> None:
        self.page.goto(f"{self._url}/login")
        self.page.get_by_placeholder("admin:pass").fill(name_and_password)
        self.page.get_by_role("button", name="Login").click()
        self.reads("Dashboard")

    def open_deployment(self, name: str) -> None:
        self.page.goto(f"{self._url}/deployments")
        self.page.get_by_role("link", name=name, exact=True).first.click()
        self.page.get_by_role("button", name="Run", exact=True).wait_for()

    def quick_run(self) -> None:
        self._run("Quick run")

    def open_form(self) -> None:
        self._run("Custom run")
        self.reads("Validate parameters")

    def _run(self, how: str) -> None:
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text(how).click()

    def field(self, group: str, name: str) -> Locator:
        """A setting of a group in the form."""
        return self._property(self._property(self.page.locator("body"), group), name)

    def _property(self, within: Locator, name: str) -> Locator:
        label = self.page.get_by_text(f"{name} (Optional)", exact=True)
        return within.locator(".schema-form-property", has=label).last

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).last.click()

    def sees_state(self, name: str) -> None:
        """The run whose page is open comes into this state."""
        self.page.locator(".state-badge").get_by_text(name, exact=True).first.wait_for()

    def reads(self, text: str | re.Pattern[str]) -> None:
        self.page.get_by_text(text).first.wait_for()

    def picture(self, file: Path) -> None:
        """What the window shows, in few colours."""
        shown = Image.open(io.BytesIO(self.page.screenshot(animations="disabled")))
        shown.convert("RGB").quantize(COLOURS).save(file, optimize=True)


@contextmanager
def person(url: str) -> Iterator[Person]:
    """Somebody with a browser window of 1280 x 800."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"]  # which root cannot have
        with playwright.chromium.launch(executable_path=CHROMIUM, args=arguments) as chromium:
            page = chromium.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(PATIENCE_MS)
            yield Person(page, url)
