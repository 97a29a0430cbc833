"""The page at /, driven in a real browser."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from .conftest import MARKUP, Serve, Served

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["wide", "phone"])
def page(browser: Any, server: Served, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, open; whatever it complains of fails the test."""
    phone = request.param == "phone"
    size = {"width": 390, "height": 800} if phone else {"width": 1280, "height": 860}
    context = browser.new_context(viewport=size, color_scheme="dark" if phone else "light")
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda fault: complaints.append(str(fault)))
    page.goto(server.url)
    playwright.expect(page.locator("#model option")).to_have_count(6)
    yield page
    wider = page.locator("html").evaluate("root => root.scrollWidth > root.clientWidth")
    context.close()
    assert not [complaint for complaint in complaints if "Failed to load resource" not in complaint]
    assert not wider, "the page is wider than the window"


def ask(page: Any, text: str) -> None:
    page.fill("#tokens", "12")
    page.fill("#text", text)
    page.press("#text", "Enter")


def test_a_conversation_shows_its_experts(page: Any, server: Served) -> None:
    ask(page, "the e1 e13 and")
    playwright.expect(page.locator(".facts")).to_have_text("tiny, 12 tokens, cut at the limit")
    playwright.expect(page.locator("#chat-view canvas")).to_have_count(1)
    assert page.locator("#chat-view .bars").first.locator(".name").first.inner_text() == "e1"
    turns = [{"role": "user", "content": "the e1 e13 and"}]
    body = {"model": "tiny", "messages": turns, "max_tokens": 12, "temperature": 0}
    told = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    shown = "".join(page.locator(".turn.assistant .token").all_text_contents())
    assert shown == told["choices"][0]["message"]["content"]
    ask(page, "and more")
    playwright.expect(page.locator(".facts")).to_have_count(2)


def test_tokens_tell_their_weights_by_mouse_and_by_keys(page: Any) -> None:
    ask(page, "the e1 e13 and")
    playwright.expect(page.locator(".facts")).to_have_count(1)
    page.locator(".token").nth(1).hover()
    assert page.locator("#tip .strip").count() >= 1
    page.mouse.move(0, 0)
    page.locator(".turn.assistant").focus()
    page.keyboard.press("ArrowRight")
    assert re.search(r"e\d \d\.\d\d", page.locator("#tip").inner_text())
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_two_sides_answer_one_prompt(page: Any) -> None:
    page.fill("#tokens", "8")
    page.click("#tab-compare")
    page.locator("[data-side='0'] select").nth(1).select_option("e1")
    page.fill("#compare-text", "the e1 e13 and")
    page.click("#compare-run")
    playwright.expect(page.locator("#compare-run")).to_be_enabled()
    first, second = page.locator("[data-side='0']"), page.locator("[data-side='1']")
    assert "e1" not in first.locator(".bars").first.locator(".name").all_text_contents()
    assert first.locator("canvas").count() == 1
    assert second.locator("canvas").count() == 0  # the base
    assert second.locator(".answer").inner_text().strip()


def test_two_routers_answer_one_prompt(page: Any) -> None:
    """Only listed models could be chosen, and no router is listed; Enter broke the line."""
    page.fill("#tokens", "4")
    page.click("#tab-compare")
    second = page.locator("[data-side='1']")
    assert second.locator("select").first.input_value() in second.locator("option", has_text="base: ").inner_text()
    assert second.locator("input").is_disabled()
    second.locator("select").first.select_option("tiny")
    second.locator("input").fill("phatgoose")
    page.fill("#compare-text", "the e1 e13 and")
    page.press("#compare-text", "Enter")
    playwright.expect(page.locator(".side canvas")).to_have_count(2)
    assert page.locator("[data-side='0'] .quiet", has_text="alpha").count() == 1
    assert second.locator(".badge").inner_text() == "no global term"


def test_a_new_conversation_begins_with_nothing(page: Any) -> None:
    """The answer that was still being written brought the old turns back."""
    page.fill("#tokens", "400")
    page.fill("#text", "the e1 e13 and")
    page.press("#text", "Enter")
    playwright.expect(page.locator(".token").first).to_be_visible()
    page.click("#clear")
    playwright.expect(page.locator("#send")).to_be_enabled()
    with page.expect_request("**/v1/chat/completions") as request:
        ask(page, "and more")
    assert [turn["content"] for turn in request.value.post_data_json["messages"]] == ["and more"]
    playwright.expect(page.locator(".facts")).to_have_count(1)


def test_experts_and_metrics_without_markup_of_others(page: Any) -> None:
    page.click("#tab-experts")
    playwright.expect(page.locator(".card")).to_have_count(4)
    assert MARKUP in page.locator(".card").first.inner_text()
    assert page.locator("#experts img").count() == 0
    page.locator("#tab-experts").press("ArrowRight")
    playwright.expect(page.locator(".tile")).to_have_count(9)
    assert page.title() == "glider"
    assert not [text for text in page.locator("#metrics .value").all_text_contents() if "." in text]  # of one: 1.00


def test_errors_are_said(page: Any, server: Served) -> None:
    page.fill("#tokens", "4096")
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    playwright.expect(page.locator("#alert")).to_contain_text("512 is the most")


def test_a_key_is_asked_for(browser: Any, serve: Serve, tmp_path: Any) -> None:
    from .test_limits import key_file

    served = serve("--api-key-file", key_file(tmp_path / "keys", {"name": "ann"}))
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.url)
    page.fill("#key", "ann")
    page.click("#key-save")
    playwright.expect(page.locator("#model option")).to_have_count(6)
    assert page.locator("#alert").is_hidden()
    context.close()


def test_a_key_that_may_only_ask_asks(browser: Any, serve: Serve, tmp_path: Any) -> None:
    """The page wanted weights, and all that such a key got was a refusal. Of a wrong key nothing was said beside it."""
    from .test_limits import key_file

    served = serve("--api-key-file", key_file(tmp_path / "keys", {"name": "ann", "rights": ["ask"]}))
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.url)
    page.fill("#key", "wrong")
    page.click("#key-save")
    playwright.expect(page.locator("#key-fault")).to_contain_text("does not know this key")
    page.fill("#key", "ann")
    page.click("#key-save")
    playwright.expect(page.locator("#model option")).to_have_count(6)
    ask(page, "the e1 e13 and")
    playwright.expect(page.locator(".facts")).to_have_count(1)
    playwright.expect(page.locator("#chat-view")).to_contain_text("lacks the right to see weights")
    page.locator(".token").first.hover()
    assert "no expert" not in page.locator("#tip").inner_text()
    page.click("#tab-experts")
    playwright.expect(page.locator(".card")).to_have_count(4)
    context.close()


def test_changes_are_shown_to_who_may_make_them(browser: Any, serve: Serve, tmp_path: Any) -> None:
    """Every key saw the buttons, and all but few got a refusal from them."""
    from .test_limits import key_file

    rights = ["ask", "trace", "change"]
    keys = key_file(tmp_path / "keys", {"name": "ann"}, {"name": "ops", "rights": rights})
    served = serve("--api-key-file", keys, "--allow-changes")
    for key, count in (("ops", 1), ("ann", 0)):
        context = browser.new_context()
        page = context.new_page()
        page.goto(served.url)
        page.fill("#key", key)
        page.click("#key-save")
        page.click("#tab-experts")
        playwright.expect(page.locator(".card")).to_have_count(4)
        for button, cards in (("Add an expert", 1), ("Reload from disk", 1), ("Remove", 4)):
            playwright.expect(page.get_by_role("button", name=button)).to_have_count(count * cards)
        context.close()


def test_an_adapter_comes_and_goes(browser: Any, serve: Serve, pool_directory: Path, tmp_path: Path) -> None:
    """One without gates stood nowhere on the page: not among the experts, and not among the models to ask."""
    (tmp_path / "bare").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(pool_directory / "e1" / file, tmp_path / "bare" / file)
    served = serve("--allow-changes", "--changes-from", str(tmp_path))
    context = browser.new_context()
    page = context.new_page()
    page.goto(served.url)
    page.click("#tab-experts")
    page.get_by_label("Name of the expert").fill("mine")
    page.get_by_label("Its directory").fill("bare")
    page.get_by_role("button", name="Add an expert").click()
    playwright.expect(page.locator("#status")).to_contain_text("by its name alone")
    playwright.expect(page.locator(".card")).to_have_count(5)
    assert page.locator("#model option").all_text_contents().count("mine alone") == 1
    page.get_by_role("button", name="Remove mine").click()
    playwright.expect(page.locator(".card")).to_have_count(4)
    assert page.locator("#alert").is_hidden()
    playwright.expect(page.locator("#model option")).to_have_count(6)
    context.close()


def test_nothing_comes_from_elsewhere(server: Served) -> None:
    answer = httpx.get(server.url)
    assert not re.findall(r"(?:src|href)=|https?://|@import|url\(", answer.text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert httpx.get(server.url).headers["content-security-policy"] != policy  # a nonce each time
