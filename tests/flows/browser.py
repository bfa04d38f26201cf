"""A person at Prefect's UI, in Debian's Chromium: each action ends once the page shows what it leads to."""

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, TimeoutError, sync_playwright

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 240_000
LOOKS_MS = [1000 * 1.5**n for n in range(12)]
"""How long each look at a page lasts before it is loaded again: ever longer, as a busy machine is slow to show it."""
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

    def quick_run(self) -> str:
        """Starts a run; its name."""
        self._choose_run("Quick run")
        return self._started()

    # A form: that of a deployment, or the one that a suspended run is resumed with.

    def open_form(self) -> None:
        self._choose_run("Custom run")
        self.reads("Validate parameters")

    def field(self, name: str, group: Locator | None = None) -> Locator:
        """A field, which may be a group of fields or be in one."""
        label = self.page.get_by_text(re.compile(rf"^{name}( \(Optional\))?$"))
        return (group or self.page).locator(".schema-form-property", has=label).last

    def fill(self, field: Locator, value: str) -> None:
        field.locator("input, textarea").fill(value)

    def choices(self, field: Locator) -> list[str]:
        """What a field offers."""
        options = self._opened(field)
        texts = options.all_inner_texts()
        self.page.keyboard.press("Escape")
        options.first.wait_for(state="hidden")
        return texts

    def choose(self, field: Locator, value: str) -> None:
        self._opened(field)
        self.page.get_by_role("option", name=value, exact=True).click()

    def _opened(self, field: Locator) -> Locator:
        field.locator(".p-select-button__control").press("ArrowDown")
        options = self.page.get_by_role("option")
        options.first.wait_for()
        return options

    def submit(self) -> str:
        """Starts a run with what the form says; its name."""
        self.press("Submit")
        return self._started()

    def open_answer(self, text: str) -> None:
        """What a suspended run asks, which begins so. The form is there a moment after the run's state, and the page
        does not look for it again."""
        asked = self.page.get_by_text(text).first
        for look in LOOKS_MS:
            self.press("Resume")
            with suppress(TimeoutError):
                asked.wait_for(timeout=look)
                return
            self.page.reload()
        raise AssertionError(f"{text} was never asked")

    # The page of a run.

    def open_run(self, name: str) -> None:
        self.page.get_by_role("link", name=name, exact=True).first.click()
        self.page.get_by_text("Artifacts", exact=True).wait_for()

    def open_tab(self, name: str) -> None:
        self.page.get_by_text(name, exact=True).click()

    def sees_state(self, name: str) -> None:
        """The run comes into this state."""
        self.page.locator(".page-heading-flow-run__meta .state-badge", has_text=name).wait_for()

    def sees(self, tab: str, text: str) -> Locator:
        """A tab shows what there was when the page was loaded, so it is loaded again until the tab shows this."""
        shown = self.page.get_by_text(text).first
        for look in LOOKS_MS:
            self.open_tab(tab)
            with suppress(TimeoutError):
                shown.wait_for(timeout=look)
                return shown
            self.page.reload()
        raise AssertionError(f"{text} never came")

    def reads_artifact(self, name: str, text: str) -> None:
        """One of the run's artifacts of this name says this. The tab shows the older ones too, in any order."""
        run = self.page.url
        for attempt, look in enumerate(LOOKS_MS):
            self.page.goto(run)
            self.sees("Artifacts", name)
            found = self.page.get_by_text(name, exact=True)
            found.nth(attempt % found.count()).click()
            with suppress(TimeoutError):
                self.page.get_by_text(text).first.wait_for(timeout=look)
                return
        raise AssertionError(f"no {name} says {text}")

    # Anywhere.

    def press(self, name: str) -> None:
        """The button of this name, the uppermost if a dialogue has one too."""
        self.page.get_by_role("button", name=name, exact=True).last.click()

    def reads(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()

    def picture(self, file: Path) -> None:
        """What the window shows, in few colours."""
        shown = Image.open(io.BytesIO(self.page.screenshot(animations="disabled")))
        shown.convert("RGB").quantize(COLOURS).save(file, optimize=True)

    def _choose_run(self, how: str) -> None:
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text(how).click()

    def _started(self) -> str:
        said = self.page.locator(".p-toast__message", has_text="scheduled to start").first
        return said.inner_text().split()[0]


@contextmanager
def person(url: str) -> Iterator[Person]:
    """Somebody with a browser window of 1280 x 800."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"]  # which root cannot have
        with playwright.chromium.launch(executable_path=CHROMIUM, args=arguments) as chromium:
            page = chromium.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(PATIENCE_MS)
            yield Person(page, url)
