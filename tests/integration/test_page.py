"""The page in a real browser: Debian's Chromium without a window, driven by Playwright."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from integration.needs import need_module, need_program
from runs import growth

from atomscale_bluesky import AtomscaleCallback
from atomscale_bluesky.server import LocalServer

pytestmark = pytest.mark.integration

MakePage = Callable[..., Any]
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture
def make_page(server: LocalServer) -> Iterator[MakePage]:
    """Pages of one browser; the test fails if one of them raises, complains, or asks another host."""
    need_module("playwright", "playwright")
    chromium = need_program("chromium", "chromium")
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def make(width: int = 1200, **options: Any) -> Any:
            page = browser.new_context(viewport={"width": width, "height": 800}, **options).new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
            page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
            page.on(
                "request",
                lambda asked: None if asked.url.startswith((server.url, "data:")) else wrong.append(asked.url),
            )
            page.goto(server.url)
            return page

        yield make
        browser.close()
    assert wrong == []


def stream(callback: AtomscaleCallback, points: int = 40, **metadata: Any) -> None:
    for name, doc in growth(points, start_metadata=metadata):
        callback(name, doc)
    assert callback.drain(20)


def newest(page: Any, value: str) -> Any:
    """The newest value of the first channel; the page's own policy forbids to wait for a script's result."""
    return page.locator(".channels b", has_text=re.compile(f"^{value}$")).first


def test_a_name_with_markup_and_control_characters_is_shown_as_text(
    make_page: MakePage, make_callback: Callable[..., AtomscaleCallback]
) -> None:
    callback = make_callback(label="{plan_name}", rename={"k0": MARKUP})
    stream(callback, plan_name=f"{MARKUP}\u202edlrow\x07", physical_sample="<b>W1234</b>")
    page = make_page()

    page.locator("#streams a").first.wait_for()
    text = page.locator("#streams a").first.text_content()
    assert MARKUP in text
    assert "<b>W1234</b>" in text
    assert "\u202e" not in text
    page.locator("#streams a").first.click()
    page.locator("figure canvas").first.wait_for()
    assert MARKUP in page.locator(".channels").first.text_content()
    assert page.locator("#stream img, #stream script, #streams img, #streams b").count() == 0


def test_a_stream_appears_and_its_newest_points_follow_within_a_second(
    make_page: MakePage, callback: AtomscaleCallback
) -> None:
    page = make_page()
    page.get_by_text("There is no stream yet.").wait_for()
    documents = list(growth(40))
    for name, doc in documents[:-21]:
        callback(name, doc)
    page.locator("#streams a").first.click()
    for name, doc in documents[-21:-1]:
        callback(name, doc)
    assert callback.drain(20)
    newest(page, "39").wait_for(timeout=1500)
    callback(*documents[-1])
    assert callback.drain(20)
    page.locator("#facts", has_text="complete").wait_for(timeout=1500)


def test_the_page_works_by_keyboard_alone(make_page: MakePage, callback: AtomscaleCallback) -> None:
    stream(callback)
    page = make_page()
    page.locator("#streams a").first.wait_for()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#streams') !== null"):
            break
    page.keyboard.press("Enter")
    page.locator("figure canvas").first.wait_for()
    page.locator("#plots").focus()
    page.keyboard.press("+")
    newest(page, "39").wait_for(state="detached")
    page.keyboard.press("0")
    newest(page, "39").wait_for()
    button = page.locator(".channels button").first
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_page_fits_a_phone_and_follows_its_colours(
    make_page: MakePage, callback: AtomscaleCallback, scheme: str, dark: bool
) -> None:
    stream(callback, plan_name="a_plan_with_a_very_long_name_" * 6)
    page = make_page(width=360, color_scheme=scheme, has_touch=True)
    page.locator("#streams a").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#streams a").first.tap()
    page.locator("figure canvas").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, colour.strip("rgb()").split(","))) < 384) is dark


def test_the_page_says_so_while_the_server_is_away_and_goes_on_when_it_is_back(
    make_page: MakePage, callback: AtomscaleCallback, server: LocalServer
) -> None:
    stream(callback)
    page = make_page()
    page.locator("#streams a").first.wait_for()
    server.unreachable()
    page.locator("#link", has_text="no answer for").wait_for()
    assert page.locator("#streams a").count() == 1  # what is there stays
    server.reachable()
    page.locator("#link", has_text="live").wait_for()
