"""A page in a real browser, with a list of everything it should not do; and its markup, read without one."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective));
"""


@dataclass(frozen=True, slots=True)
class View:
    """A page on the screen: `page` is playwright's; `seen` are requests of others, dialogs, words on the console."""

    page: Any
    seen: list[str]

    def violations(self) -> list[str]:
        """What the page's policy forbade."""
        return self.page.evaluate("window.violations")


@contextmanager
def opened(path: Path, theme: str = "light", width: int = 390, script: bool = True) -> Iterator[View]:
    """Open a file as a person does, from the disk. Skips where there is no browser."""
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a chromium browser")
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=theme, java_script_enabled=script
        )
        page = context.new_page()
        seen: list[str] = []

        def dialog(shown: Any) -> None:
            seen.append(f"dialog: {shown.message}")
            shown.dismiss()

        page.on("request", lambda request: seen.append(request.url) if request.url != path.as_uri() else None)
        page.on("dialog", dialog)
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.add_init_script(LISTEN)
        page.goto(path.as_uri())
        yield View(page, seen)
        browser.close()


class Markup(HTMLParser):
    """Which elements and attributes a page has, and whether they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br", "input", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


FORBIDDEN = frozenset(["img", "iframe", "object", "embed", "link", "base", "form", "a", "audio", "video", "template"])


def check_markup(text: str, links: frozenset[str] = frozenset()) -> Markup:
    """Nothing from outside, nothing that acts but what the page names by its hash; every element is closed.

    `links`: where the page may lead to on the same disk; without them it has none.
    """
    found = Markup(text)
    assert found.open == []
    assert not found.names & (FORBIDDEN - ({"a"} if links else set()))
    assert not any(":" in link for link in links)
    attributes = {name for name, _ in found.attributes}
    assert not {name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc", "action")}
    assert {value for name, value in found.attributes if name in ("href", "xlink:href")} <= {
        f"#{name}" for name in ("ok", "no", "ask", "warn", "tick", "cross")
    } | links
    policy = next(value for name, value in found.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    for tag in ("style", "script"):
        for inside in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S):
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
            assert not re.search(r"@import|url\(|https?:|innerHTML|eval\(", inside)
    assert text.count("<script") == policy.count("script-src")
    return found
