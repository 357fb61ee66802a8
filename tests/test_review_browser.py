"""The review page in a real browser: fifty decisions by key, a kill in the middle, a reload; nothing is lost."""

import json
import signal
from pathlib import Path

import pytest

from factory.review import read_log
from tests.browser import Browser, find_chromium
from tests.review_run import make_run
from tests.test_review import start

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian: apt-get install chromium)")
KEYS = "1124153121"  # ten decisions of every kind; 3 marks a negative first
KINDS = {"1": "good", "2": "not-answerable", "3": "positive", "4": "drop", "5": "skip"}


@pytest.fixture
def browser(tmp_path):
    assert CHROMIUM
    with Browser(CHROMIUM, tmp_path / "profile") as opened:
        opened.size(1400, 900)
        yield opened


def shown(browser: Browser) -> str:
    """The id of the question that is there, once nothing is under way."""
    return browser.wait("document.body.getAttribute('aria-busy') === 'false' && document.body.dataset.id")


def counted(browser: Browser) -> int:
    return int(browser.evaluate("document.getElementById('count').textContent").split()[0])


def decide(browser: Browser, key: str) -> tuple[str, str, list[str]]:
    """Press the key, wait until the next question is there; what must then be in the file."""
    pair, negatives = shown(browser), []
    if key == "3":
        browser.press("ArrowDown")
        browser.press("ArrowDown")
        browser.press(" ")
        negatives = [browser.evaluate("document.querySelector('.card.marked').dataset.candidate")]
    browser.press(key)
    browser.wait(f"document.body.dataset.id !== {json.dumps(pair)}")
    return pair, KINDS[key], negatives


def in_file(run: Path) -> list[tuple[str, str, list[str]]]:
    rows = [json.loads(line) for line in (run / "review.jsonl").read_text("utf-8").splitlines()]
    return [(row["id"], row["decision"], row["negatives"]) for row in rows]


def test_fifty_decisions_a_kill_a_reload_and_nothing_is_lost(tmp_path, browser):
    run = make_run(tmp_path / "run", 60)
    server, url = start(run, "--reviewer", "王芳")
    browser.open(url)
    done = [decide(browser, key) for key in KEYS * 3]
    server.kill()
    server.wait()
    assert in_file(run) == done and len({pair for pair, _, _ in done}) == 30
    stopped = shown(browser)
    browser.press("1")  # nobody hears it, and the page says so
    assert "NOT SAVED" in browser.wait("document.querySelector('#message.error')?.textContent")
    assert shown(browser) == stopped

    server, url = start(run, "--reviewer", "王芳")
    browser.open(url)
    assert shown(browser) == stopped and counted(browser) == sum(kind != "skip" for _, kind, _ in done)
    done += [decide(browser, key) for key in KEYS * 2]
    assert in_file(run) == done and len({pair for pair, _, _ in done}) == 50
    browser.call("Page.reload")
    browser.wait("document.readyState === 'complete'")
    shown(browser)
    assert counted(browser) == 45

    for pair, kind, _ in reversed(done[-3:]):  # through the reload, back one by one
        before = counted(browser)
        browser.press("u")
        browser.wait(f"document.body.dataset.id === {json.dumps(pair)}")
        assert counted(browser) == before - (kind != "skip")
    history = read_log(run, pytest.fail)
    assert all((history.of(p).decision, list(history.of(p).negatives)) == (k, n) for p, k, n in done[:-3])
    assert not any(history.of(p) for p, _, _ in done[-3:])
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=120) == 0


def test_mouse_touch_filters_and_the_other_language(tmp_path, browser):
    run = make_run(tmp_path / "run", 8)
    server, url = start(run)
    browser.size(390, 844)
    browser.open(url)
    first = shown(browser)
    assert browser.evaluate("document.documentElement.scrollWidth") == 390  # nothing to scroll sideways
    assert browser.evaluate("document.querySelectorAll('#question mark').length") >= 1
    assert "<b>" in browser.evaluate("document.getElementById('positives').textContent")  # text stays text
    browser.press("3")
    assert "First mark" in browser.evaluate("document.getElementById('message').textContent")
    browser.click("#candidates .card:nth-child(2)")
    browser.click("#candidates .card:nth-child(3)")
    named = browser.evaluate("[...document.querySelectorAll('.card.marked')].map(c => c.dataset.candidate)")
    assert len(named) == 2
    browser.click("[data-decide=positive]")
    browser.wait(f"document.body.dataset.id !== {json.dumps(first)}")
    assert in_file(run) == [(first, "positive", named)]
    second = shown(browser)
    browser.click("[data-decide=skip]")
    browser.wait(f"document.body.dataset.id !== {json.dumps(second)}")

    choose = "(e => { e.value = %s; e.dispatchEvent(new Event('change')) })(document.getElementById(%s))"
    browser.evaluate(choose % ("'decided'", "'filter'"))
    browser.wait(f"document.body.dataset.id === {json.dumps(first)}")
    assert browser.evaluate("document.querySelectorAll('.card.marked').length") == 2  # as it was left
    assert "Decided" in browser.evaluate("document.getElementById('decided').textContent")
    browser.evaluate(choose % ("'all'", "'filter'") + ";" + choose % ("'held'", "'split'"))
    browser.wait("document.body.dataset.id === 'q9'")
    browser.press("3")
    assert "no other passages" in browser.evaluate("document.getElementById('message').textContent")
    browser.evaluate("document.getElementById('jump').focus()")
    for key in "q5":  # neither of these is a decision here
        browser.press(key)
    browser.press("Enter")
    browser.wait("document.body.dataset.id === 'q5'")
    browser.evaluate(choose % ("'undecided'", "'filter'") + ";" + choose % ("''", "'split'"))
    for _ in range(8):  # the skipped one comes again, last
        assert shown(browser) != second
        decide(browser, "1")
    assert shown(browser) == second
    browser.press("4")
    browser.wait("!document.getElementById('done').hidden")
    browser.click("#language")
    assert "决定都已保存" in browser.evaluate("document.getElementById('done').textContent")
    assert "已定 10 / 10" in browser.evaluate("document.getElementById('count').textContent")
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=120) == 0


def test_a_chinese_browser_gets_the_chinese_page(tmp_path):
    server, url = start(make_run(tmp_path / "run", 4))
    with Browser(CHROMIUM, tmp_path / "profile", "zh-CN") as browser:
        browser.open(url)
        shown(browser)
        assert "没问题" in browser.evaluate("document.querySelector('footer').textContent")
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=120) == 0
