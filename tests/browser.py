"""A headless Chromium, or Firefox, for tests of pages; they are skipped where there is none."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LIMIT = 300_000  # milliseconds: how long a busy machine may take to start a browser, or to answer
NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium")
needs_firefox = pytest.mark.skipif(FIREFOX is None, reason="needs Firefox: apt-get install firefox-esr")

# The least contrast (WCAG 2.1) of the words that are shown with what lies behind them, and these words.
LEAST_CONTRAST = """() => {
  const colour = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if ((found[3] ?? 1) === 1) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    const words = [...element.childNodes].filter((node) => node.nodeType === 3).map((n) => n.data.trim()).join('');
    if (!words || !element.checkVisibility() || ['SCRIPT', 'STYLE'].includes(element.tagName)) continue;
    const [a, b] = [light(colour(getComputedStyle(element).color)), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), words]);
  }
  return found.sort((one, other) => one[0] - other[0])[0];
}"""
CONTROLS = {
    "button", "checkbox", "radio", "slider", "spinbutton", "application", "image", "DisclosureTriangle", "region",
}  # fmt: skip


@contextmanager
def chromium() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"], timeout=LIMIT)  # CI is root
        yield browser
        browser.close()


@contextmanager
def page_of(browser: "Browser", width: int = 1280, scheme: str = "light") -> Iterator["Page"]:
    """An empty page of that width. What it says on the console, raises, or asks a server fails the test at the end."""
    said: list[str] = []
    view = {"width": width, "height": 900}
    page = browser.new_page(viewport=view, color_scheme=scheme, has_touch=True)  # type: ignore[arg-type]
    page.set_default_timeout(LIMIT)
    page.on("request", lambda asked: said.append("" if asked.url[:5] in ("file:", "data:") else asked.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    page.close()
    assert not any(said), said


@contextmanager
def browser_page(width: int = 1280, scheme: str = "light") -> Iterator["Page"]:
    """The same in a browser of its own."""
    with chromium() as browser, page_of(browser, width, scheme) as page:
        yield page


def nameless(page: "Page") -> list[str]:
    """The roles of controls and pictures that a screen reader has no name for."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert len(shown) > 2
    return [node["role"]["value"] for node in shown if not node.get("name", {}).get("value")]


class Firefox:
    """A page in Firefox, by its own remote protocol (Marionette): `length:[type, id, command, parameters]`."""

    def __init__(self, connection: socket.socket) -> None:
        self.stream = connection.makefile("rwb")
        self._answer()  # it says who it is
        self.send("WebDriver:NewSession", {})

    def send(self, command: str, parameters: dict[str, Any]) -> Any:
        text = json.dumps([0, 1, command, parameters]).encode()
        self.stream.write(b"%d:%s" % (len(text), text))
        self.stream.flush()
        _, _, error, result = self._answer()
        assert error is None, error
        return result

    def evaluate(self, script: str, *given: Any) -> Any:
        """What a function of the page returns, as text; it may be async."""
        called = f"JSON.stringify(await ({script})(...{json.dumps(given)}))"
        run = f"return window.eval({json.dumps(f'(async () => {called})()')})"
        return json.loads(self.send("WebDriver:ExecuteScript", {"script": run, "args": []})["value"])

    def wait_for(self, script: str, *given: Any) -> None:
        """Until a function of the page returns true."""
        until = time.monotonic() + LIMIT / 1000
        while not self.evaluate(script, *given):
            assert time.monotonic() < until, script
            time.sleep(0.05)

    def find(self, selector: str) -> str:
        """The protocol's name of an element."""
        found = self.send("WebDriver:FindElement", {"using": "css selector", "value": selector})["value"]
        return str(next(iter(found.values())))

    def said(self, page: str) -> list[str]:
        """Firefox's errors and warnings about a page. Unlike Chromium's, they hold nothing that a page itself logs."""
        script = "return Services.console.getMessageArray().map(String).filter((one) => one.includes(arguments[0]))"
        found: list[str] = self._of_firefox(script, page)
        return found

    def look(self, width: int, scheme: str) -> None:
        """Gives pages a width, below that of Firefox's narrowest window too, and a colour scheme: dark or light."""
        script = """window.resizeTo(Math.max(arguments[0], 500), 900);
            const { style } = gBrowser.selectedBrowser;
            style.minWidth = style.maxWidth = `${arguments[0]}px`;
            Services.prefs.setIntPref("layout.css.prefers-color-scheme.content-override", arguments[1]);"""
        self._of_firefox(script, width, ["dark", "light"].index(scheme))

    def _of_firefox(self, script: str, *given: Any) -> Any:
        """Runs a script in Firefox itself, not in its page."""
        self.send("Marionette:SetContext", {"value": "chrome"})
        found = self.send("WebDriver:ExecuteScript", {"script": script, "args": given})["value"]
        self.send("Marionette:SetContext", {"value": "content"})
        return found

    def _answer(self) -> Any:
        length = b""
        while (one := self.stream.read(1)) != b":":
            assert one, "Firefox ended"
            length += one
        return json.loads(self.stream.read(int(length)))


@contextmanager
def firefox_page(folder: Path) -> Iterator[Firefox]:
    """An empty page in Firefox; folder: an empty one, for its settings."""
    port = free_port()
    (folder / "user.js").write_text(f'user_pref("marionette.port", {port});\n', encoding="utf-8")
    started = subprocess.Popen(
        [str(FIREFOX), "--headless", "--marionette", "--remote-allow-system-access", "--profile", str(folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with _connected(port) as connection:
            firefox = Firefox(connection)
            yield firefox
            firefox.stream.close()
    finally:
        started.terminate()
        started.wait(60)


def _connected(port: int) -> socket.socket:
    """A connection, once Firefox answers."""
    until = time.monotonic() + LIMIT / 1000
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), LIMIT / 1000)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
