"""The review page as people use it, in headless Chromium: keys, fingers, a screen reader's view, and faults."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from review_server import KEYS, MANY, Desk, make_desk, served

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium and chromedriver here (Debian: apt install chromium-driver)")]
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

PATIENCE_S = 20
Open = Callable[..., "Page"]


class Page:
    """One reviewer's browser."""

    def __init__(self, driver: Any, desk: Desk) -> None:
        self.driver, self.desk = driver, desk

    def enter(self, secret: str = "ada") -> "Page":
        self.driver.get(self.desk.url)
        self.until(lambda: self.one("#secret").is_displayed())
        self.one("#secret").send_keys(secret + "\n")
        return self

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return [found for found in self.driver.find_elements("css selector", selector) if found.is_displayed()]

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).innerText", selector)).strip()

    def until(self, holds: Callable[[], Any]) -> Any:
        until = time.monotonic() + PATIENCE_S
        while not (found := holds()):
            assert time.monotonic() < until, (self.text("body"), self.log())
            time.sleep(0.02)
        return found

    def ready(self) -> "Page":
        """An item is shown, its picture too, and a tap would no longer count as a slip."""
        self.until(lambda: self.all("#picture") and self.one(".choice").is_enabled())
        time.sleep(0.3)
        return self

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def told(self, count: int) -> list[tuple[str, str | None, str]]:
        """What clients were told, once it is `count` words."""
        self.until(lambda: len(self.desk.told.words) >= count)
        assert len(self.desk.told.words) == count
        return self.desk.told.words

    def log(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def desk(stack: ExitStack, tmp_path: Path) -> Callable[..., Desk]:
    return lambda **settings: stack.enter_context(served(make_desk(tmp_path, **settings)))


@pytest.fixture
def browse(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setenv("SE_OFFLINE", "true")  # selenium would ask the network for another driver

    def start(desk: Desk, *, width: int = 1280, height: int = 900, phone: bool = False, dark: bool = False) -> Page:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for switch in ("headless=new", "disable-dev-shm-usage", "disable-gpu", f"window-size={width},{height}",
                       "disable-background-networking", *(["no-sandbox"] if os.geteuid() == 0 else [])):
            options.add_argument(f"--{switch}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        stack.callback(driver.quit)
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone})
        if phone:
            driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 5})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        return Page(driver, desk)

    return start


def test_labels_by_keyboard_alone_and_takes_back(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=4)).enter().ready()
    first, second, third, _ = list(page.desk.lane._waiting)
    page.press("4")
    assert page.told(1) == [(first, "pear", "human:ada")]
    page.ready()
    assert page.text("#toast").split() == ["Labelled", "pear", "Undo"] and page.text("#undo").endswith("Undo pear")
    page.press("1")
    page.told(2)
    page.ready().press("u")
    assert page.told(3)[2] == (second, None, "human:ada")
    page.ready().press("s")
    page.until(lambda: page.desk.lane.holds("ada") == third)
    page.ready().press("5")
    assert page.told(4)[3] == (third, "sweet_pepper", "human:ada")
    page.ready().press("9")  # there are five classes
    page.press("u")
    page.told(5)
    page.ready().press("u")
    assert page.told(6)[5] == (first, None, "human:ada")
    page.ready()
    assert not page.one("#undo").is_enabled() and page.text("#mine") == "0"
    assert page.log() == []  # no error, and nothing that the policy forbids


def test_two_reviewers_see_different_items(desk: Callable[..., Desk], browse: Open) -> None:
    served_desk = desk(count=3, keys=True)
    ada, ben = browse(served_desk), browse(served_desk)
    for page, key in zip((ada, ben), KEYS, strict=True):
        page.enter(key).ready()
    held = [served_desk.lane.holds(who) for who in ("ada", "ben")]
    assert None not in held and held[0] != held[1]
    shown = [page.js("""const c = document.createElement('canvas'), i = document.getElementById('picture');
        c.width = i.naturalWidth; c.height = i.naturalHeight; c.getContext('2d').drawImage(i, 0, 0);
        return c.toDataURL()""") for page in (ada, ben)]
    assert shown[0] != shown[1]
    ada.press("1")
    ada.told(1)
    ben.press("2")
    assert {word[2] for word in ben.told(2)} == {"human:ada", "human:ben"}


def test_what_others_hold_leaves_an_empty_lane_that_fills_by_itself(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=1))
    lane = page.desk.lane
    assert lane.next("ben")
    page.enter().until(lambda: page.all("#nothing"))
    assert page.text("#nothing-text").startswith("1 item is with other reviewers.")
    lane.release("ben")
    page.ready().press("1")
    page.told(1)
    page.until(lambda: page.text("#nothing-title") == "Nothing is waiting")
    page.one("#nothing-undo").click()  # the last answer can be taken back from here too
    page.told(2)
    page.ready()
    assert page.log() == []


def test_a_wrong_key_is_told_and_a_right_one_is_kept_for_the_tab(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=2, keys=True)).enter("ada-wrong")
    page.until(lambda: "not known" in page.text("#sign-in-error"))
    assert page.one("#secret").get_attribute("type") == "password"
    page.one("#secret").send_keys(next(iter(KEYS)) + "\n")
    page.ready()
    page.driver.refresh()
    page.ready()
    assert page.text("#reviewer") == "Signed in as ada"
    assert next(iter(KEYS)) not in page.driver.page_source + page.driver.current_url
    page.one("#sign-out").click()
    page.until(lambda: page.all("#secret"))
    assert page.js("return sessionStorage.length") == 0


def test_a_filter_shows_its_reason_alone(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=6)).enter().ready()
    page.one("#filter-button").click()
    rows = [row.text.replace("\n", " ") for row in page.all("#reasons label")]
    assert rows == ["Everything 6", "LLM unsure 3", "LLM failed 1", "Over budget 1", "Disagreement 1"]
    page.one("#reasons input[value=over_budget]").click()
    page.until(lambda: "budget" in page.text("#why"))
    page.ready().press("1")
    page.told(1)
    page.until(lambda: page.text("#nothing-title") == "None of these is waiting")
    page.one("#nothing-button").click()
    page.ready()
    assert page.text("#filter-now") == "Everything" and page.text("#waiting") == "5"


def test_faults_are_told_and_nothing_is_lost(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=3)).enter().ready()
    [first, *_] = page.desk.lane._waiting
    page.desk.store.locked = True
    page.press("2")
    page.until(lambda: page.all("#banner"))
    assert "stays with you" in page.text("#banner") and page.one("#banner").get_attribute("role") == "alert"
    assert page.desk.lane.holds("ada") == first and not page.desk.told.words
    page.desk.store.locked = False
    page.one("#banner-button").click()
    assert page.told(1) == [(first, "mushroom", "human:ada")]
    page.ready()
    assert not page.all("#banner")
    # The network goes: what was pressed is sent once it is back, once.
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.press("3")
    page.until(lambda: "No connection" in page.text("#banner"))
    page.press("4")
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    assert page.told(2)[1][1] == "orange"
    page.until(lambda: not page.all("#banner"))
    # Another reviewer took the item over, since the hold ran out.
    page.ready()
    held = page.desk.lane.holds("ada")
    page.desk.lane.release("ada")
    assert page.desk.lane.next("ben").key == held
    page.press("1")
    page.until(lambda: "another reviewer has it now" in page.text("#banner"))
    page.until(lambda: page.all("#nothing"))
    assert len(page.desk.told.words) == 2


def test_who_goes_away_gives_the_item_back(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=1, lease_s=3)).enter().ready()
    page.until(lambda: page.text("#nothing-title") == "Paused")
    page.until(lambda: page.desk.lane.next("ben"))
    page.desk.lane.release("ben")
    assert page.js("return document.activeElement.id") == "nothing-button"
    page.press("\n")
    page.ready().press("1")
    page.told(1)


def test_the_next_picture_is_there_before_it_is_wanted(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=3)).enter().ready()
    first, second, third = page.desk.lane._waiting

    def fetched() -> list[str]:
        return [line.rpartition("/")[2] for line in page.desk.requests if "/image/" in line]

    assert page.until(lambda: fetched() == [first, second])
    page.press("1")
    page.ready()
    assert page.until(lambda: fetched() == [first, second, third])  # and none twice


def test_many_classes_are_found_by_typing(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=3, task=MANY)).enter().ready()
    page.press("d")
    page.press("u")
    assert [choice.text.splitlines() for choice in page.all(".choice")] == [["1", "duck", "any kind of duck"]]
    page.press("\n")
    assert page.told(1)[0][1] == "duck"
    page.ready()
    page.press("/")
    page.press("u")  # in the box it is a letter
    assert [choice.text.splitlines()[1] for choice in page.all(".choice")] == ["urchin", "duck"]
    page.press("2")
    assert page.told(2)[1][1] == "duck"
    page.ready().press("u")  # and outside it undoes
    assert page.told(3)[2][1] is None


@pytest.mark.parametrize("height", [640, 740])
def test_on_a_phone_all_that_decides_is_on_one_screen(desk: Callable[..., Desk], browse: Open, height: int) -> None:
    page = browse(desk(count=3), width=360, height=height, phone=True).enter().ready()
    assert page.js("return document.documentElement.scrollWidth") == 360
    for control in [page.one("#picture"), *page.all(".choice"), page.one("#skip"), page.one("#undo")]:
        box = page.js("const b = arguments[0].getBoundingClientRect();"
                      "return [b.left, b.top, b.right, b.bottom, b.height]", control)
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 360 and box[3] <= height, control.get_attribute("id")
        assert box[4] >= 44  # what a finger hits
    page.all(".choice")[3].click()
    page.told(1)
    page.ready()
    page.one("#toast-undo").click()
    page.told(2)
    page.js("scrollTo(0, 10000)")
    page.one("summary").click()
    assert "a cap on a stalk" in page.text("#meanings")
    assert page.js("return document.documentElement.scrollWidth") == 360


def test_a_second_tap_too_many_labels_nothing(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=3)).enter().ready()
    page.js("const b = document.querySelector('.choice'); b.click(); b.click()")
    page.told(1)
    page.ready()
    assert len(page.desk.told.words) == 1 and page.text("#mine") == "1"


CONTRAST = """
const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
const behind = (node) => { for (; node; node = node.parentElement) {
  const ground = parse(getComputedStyle(node).backgroundColor); if (ground[3] === 1) return ground; }
  return parse(getComputedStyle(document.documentElement).backgroundColor); };
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
  if (node.closest('.hidden, :disabled, noscript')) continue;
  const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
  found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), walker.currentNode.data.trim()]);
}
return found.sort((a, b) => a[0] - b[0]);
"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read(desk: Callable[..., Desk], browse: Open, dark: bool) -> None:
    page = browse(desk(count=4), dark=dark).enter().ready()
    page.press("1")
    page.told(1)
    page.ready()
    page.one("#filter-button").click()
    found = page.js(CONTRAST)
    assert len(found) > 40 and found[0][0] >= 4.5, found[:5]
    page.press("\ue00c")
    page.desk.store.locked = True
    page.press("1")
    page.until(lambda: page.all("#banner"))
    assert page.js(CONTRAST)[0][0] >= 4.5


def test_a_screen_reader_has_a_name_for_everything_and_hears_what_happens(desk: Callable[..., Desk],
                                                                          browse: Open) -> None:
    page = browse(desk(count=3)).enter().ready()
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]
                and node["role"]["value"] in ("button", "radio", "checkbox", "textbox", "image", "link", "searchbox")]
    assert len(controls) > 12 and not [role for role, name in controls if not name.strip()], controls
    assert ("image", "The picture to label") in controls
    assert any(name.startswith("apple") and "dimple" in name for _, name in controls)  # its definition with it
    said = page.until(lambda: page.text("#announcer"))
    assert said.startswith("Next item: The LLM was not sure enough. Student: ")
    assert page.one("#announcer").get_attribute("aria-live") == "polite"
    page.press("4")
    page.told(1)
    assert page.until(lambda: "Labelled pear. Next item:" in page.text("#announcer"))
    page.ready().press("u")
    assert page.until(lambda: "Took back pear. Next item:" in page.text("#announcer"))
    assert page.js("return document.documentElement.lang") == "en"
    levels = page.js("return [...document.querySelectorAll('h1, h2, h3')].filter((h) => h.checkVisibility())"
                     ".map((h) => h.tagName)")
    assert levels[0] == "H1" and levels.count("H1") == 1 and "H3" not in levels


def test_the_tab_key_goes_through_all_in_the_order_of_the_eye_and_out_again(desk: Callable[..., Desk],
                                                                            browse: Open) -> None:
    page = browse(desk(count=3)).enter().ready()
    page.press("1")
    page.told(1)
    page.ready()
    page.js("document.querySelector('.to-content').focus()")
    seen, outlined = [], []
    for _ in range(30):
        place, line = page.js("const e = document.activeElement; return [e.id || e.dataset.label || e.className || "
                              "e.tagName, getComputedStyle(e).outlineStyle]")
        if place == "BODY" or place in seen:
            break
        seen.append(place)
        outlined.append(line != "none")
        page.press("\ue004")
    wanted = ["to-content", "filter-button", "help-button", "smooth", "pixels", "enlarge", "apple", "mushroom",
              "orange", "pear", "sweet_pepper", "undo", "skip", "sign-out"]
    assert [place for place in seen if place != "toast-undo"] == wanted and all(outlined)


def test_single_keys_can_be_switched_off(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=3)).enter().ready()
    page.press("?")
    page.until(lambda: page.all("#help"))
    page.press("2")  # nothing is answered behind a dialog
    page.one("#shortcuts").click()
    page.press("\ue00c")
    page.until(lambda: not page.all("#help"))
    page.press("2")
    page.press("s")
    page.one(".choice").click()
    assert [label for _, label, _ in page.told(1)] == ["apple"]


def test_a_picture_that_is_gone_cannot_be_answered_but_skipped(desk: Callable[..., Desk], browse: Open) -> None:
    page = browse(desk(count=2))
    first, second = page.desk.lane._waiting
    page.desk.pictures.paths[first].unlink()
    page.enter()
    page.until(lambda: "not kept any more" in page.text("#picture-error"))
    page.press("1")
    assert not page.one(".choice").is_enabled() and not page.desk.told.words
    page.until(lambda: page.one("#skip").is_enabled())
    time.sleep(0.3)
    page.press("s")
    page.ready().press("1")
    assert page.told(1)[0][0] == second
