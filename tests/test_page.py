"""The page in a real browser, before a real server of a store that `mini` wrote.

`make page` installs the browser's driver and runs these.
"""

import json
import shutil
from contextlib import contextmanager

import pytest
from served import served, settings
from small import written

from rag_memtok.pipeline import api

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: make page")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
pytestmark = [
    pytest.mark.page,
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} is missing: make page"),
]

STUCK = 600  # seconds after which a page is not slow but stuck
LAMP = "When was the lamp of the harbour repaired?"
HOSTILE = (
    "The vault opens with <b>tulip</b> & <script>document.title = 'taken'</script>"
    "<img src=x onerror=\"document.title='taken'\">"
    "\x1b[31m\x07 and \u202egnirts\u202c \U0001f511.\n"
)
DOCUMENTS = {
    "lamp.md": "# Lamp\n\nThe \U0001f5fc lamp of the harbour was repaired in March.\n\nIts keeper, "
    "Aldo Ruiz, wrote a letter.\n",
    "vault.txt": HOSTILE,
}
QUICK = {
    "documents__chunk_tokens": 160,
    "memorize__steps": 12,  # what is not learnt is pinned
    "ask__max_new_tokens": 8,
}
TOKEN = "a-token-of-enough-characters"
REPLIES = "the server responded with a status of 4"  # that the tests ask for
VIEWS = ("ask", "documents", "audit")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    config = settings(folder / "store", "mini", **QUICK)
    api.ingest([written(folder / "docs", DOCUMENTS)], config)
    return config


@pytest.fixture(scope="module")
def server(config):
    with served(config) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Page:
    """A browser on a server's page."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def open(self, view=""):
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/#{view}")
        return self.until("#held:not(:empty)")

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def until(self, css, words=""):
        """The first element that is seen, once there is one, and it has these words."""

        def seen(_):
            return next((x for x in self.all(css) if x.is_displayed() and words in x.text), None)

        waiting = WebDriverWait(self.driver, STUCK, 0.1, ignored_exceptions=[Exception])
        return waiting.until(seen, f"{css} {words}")

    def js(self, script, *given):
        return self.driver.execute_script(f"return {script}", *given)

    def cdp(self, command, **given):
        return self.driver.execute_cdp_cmd(command, given)

    def look(self, width=1100, scheme="light"):
        """As a device of that width and colours."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 700,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def keys(self, *keys):
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def focused(self):
        return self.js("document.activeElement.id || document.activeElement.textContent.trim()")

    def ask(self, question):
        field = self.until("#question")
        field.clear()
        field.send_keys(question, Keys.ENTER)
        return self.until("#answers article:first-child .answer:not(.waiting)")

    def requested(self):
        """The addresses that were asked since the last look."""
        logged = self.driver.get_log("performance")
        told = [json.loads(one["message"])["message"] for one in logged]
        return {
            one["params"]["request"]["url"]
            for one in told
            if one["method"] == "Network.requestWillBeSent"
        }

    def complaints(self):
        """What the console says, but for replies that the test asks for."""
        told = self.driver.get_log("browser")
        return [one for one in told if REPLIES not in one["message"]]


@contextmanager
def opened(driver, server, view=""):
    """The page; when it is left nothing was asked of others, and the console is silent."""
    page = Page(driver, server.url)
    page.driver.get("about:blank")
    page.requested(), page.complaints()
    page.look()
    page.open(view)
    yield page
    strangers = {
        url for url in page.requested() if not url.startswith((server.url, "about:", "chrome"))
    }
    assert strangers == set() and page.complaints() == []
    assert "taken" not in driver.title


@pytest.fixture
def page(chromium, server):
    with opened(chromium, server) as page:
        yield page


def test_an_answer_is_marked_in_its_passage(page):
    answer = page.ask(LAMP)
    assert answer.find_element(By.CSS_SELECTOR, ".words").text == "March"
    assert "lamp.md, line 3" in answer.find_element(By.CSS_SELECTOR, ".grounds").text
    (mark,) = answer.find_elements(By.TAG_NAME, "mark")
    assert mark.text == "March"  # after a sign of two UTF-16 units
    passage = mark.find_element(By.XPATH, "ancestor::pre").get_attribute("textContent")
    assert passage == DOCUMENTS["lamp.md"]
    summary = mark.find_element(By.XPATH, "ancestor::details/summary").text
    assert "lamp.md" in summary and "lines 1-5" in summary and "relevance" in summary
    assert "positions" in answer.find_element(By.CSS_SELECTOR, ".saved").text
    spoken = page.driver.find_element(By.ID, "said")
    assert spoken.get_attribute("role") == "status"
    assert spoken.get_attribute("textContent").startswith("March")


def test_markup_and_controls_of_a_document_are_shown_as_they_are(page):
    answer = page.ask("What does the vault open with?")
    names = [one.text for one in answer.find_elements(By.CSS_SELECTOR, "summary b")]
    (passage,) = (
        pre.get_attribute("textContent")
        for pre in answer.find_elements(By.CSS_SELECTOR, ".sources pre")
        if "vault" in pre.get_attribute("textContent")
    )
    assert "vault.txt" in names
    unseen = {"\x1b": "U+001B", "\x07": "U+0007", "\u202e": "U+202E", "\u202c": "U+202C"}
    assert passage == HOSTILE.translate({ord(sign): words for sign, words in unseen.items()})
    assert page.js("document.querySelectorAll('main script, main img, pre b').length") == 0


def test_what_is_not_found_is_said_as_such(page):
    answer = page.ask("zzz")
    assert answer.find_elements(By.CSS_SELECTOR, ".refusal strong")[0].text.endswith(
        "Nothing was found"
    )
    assert not answer.find_elements(By.CSS_SELECTOR, ".sources, .words")


def test_an_answer_can_be_stopped(page):
    never = {"offline": False, "latency": 1e8, "downloadThroughput": -1, "uploadThroughput": -1}
    page.cdp("Network.emulateNetworkConditions", **never)
    try:
        page.until("#question").send_keys(LAMP, Keys.ENTER)
        assert page.until("#stop") and page.until(".answer.waiting", "Reading")
        page.keys(Keys.ESCAPE)
        page.until("#answers .answer:not(.waiting)", "Stopped.")
        assert not page.all("#stop")[0].is_displayed()
    finally:
        page.cdp("Network.emulateNetworkConditions", **never | {"latency": 0})
    assert "March" in page.ask(LAMP).text


def test_words_are_shown_as_they_come(chromium, tmp_path, model_folder):
    config = settings(tmp_path / "store", model_folder, ask__max_new_tokens=12)
    api.ingest([written(tmp_path / "docs", {"a.md": "The fan is quiet.\n"})], config)
    with served(config) as running, opened(chromium, running) as page:
        page.driver.execute_script(
            "window.pieces = [];"
            "new MutationObserver((seen) => pieces.push(...seen"
            "  .filter(({ target }) => target.matches('.waiting .words'))"
            "  .flatMap(({ addedNodes }) => [...addedNodes].map((one) => one.textContent))"
            ")).observe(document.getElementById('answers'), { childList: true, subtree: true });"
        )
        whole = page.ask("Is the fan quiet?").find_element(By.CSS_SELECTOR, ".words")
        pieces = page.js("window.pieces")
        assert len(pieces) > 1
        assert "".join(pieces).strip() == whole.get_attribute("textContent")


def test_documents_are_filtered_by_name_and_verdict(page):
    page.open("documents")
    rows = page.until("#files-held")
    assert "lamp.md" in rows.text and "vault.txt" in rows.text
    page.until("#named").send_keys("LAMP")
    page.until("#counted", "1 of 2 documents")
    assert "lamp.md" in rows.text and "vault.txt" not in rows.text
    page.until("#judged").send_keys("damaged")
    page.until("#counted", "0 of 2 documents")
    assert rows.text == ""


def test_a_memory_is_a_strip_of_margins_and_pins(page, server):
    page.open("documents")
    page.until("#files-held summary", "lamp.md").click()
    page.until(".memories a", "lines 1-5").click()
    page.until("#one-memory .strip")
    id = page.js("location.hash.split('/')[1]")
    told = server.get(f"/chunks/{id}").json
    assert len(page.all(".strip i")) == len(page.all(".tokens > span")) == len(told["tokens"])
    for pin in ("correction", "safety"):
        assert len(page.all(f".strip .{pin}")) == sum(x["pin"] == pin for x in told["tokens"])
    wrong = next(at for at, one in enumerate(told["tokens"]) if one["pin"] == "correction")
    page.all(".strip i")[wrong].click()
    said = page.until(".told", f"{wrong + 1} of")
    assert told["tokens"][wrong]["text"].strip() in said.text and "would be wrong" in said.text
    slider = page.until("#token-at")
    slider.send_keys(Keys.HOME)
    page.until(".told", f"1 of {len(told['tokens'])}: {told['tokens'][0]['text']}")
    assert f"margin {told['tokens'][0]['margin']:.2f}" in slider.get_attribute("aria-valuetext")
    page.until("#one-memory details summary").click()
    page.until("#one-memory tbody tr")
    assert len(page.all("#one-memory tbody tr")) == len(told["tokens"])


def test_the_audit_tells_its_verdict(page):
    page.open("audit")
    page.until("#audit-form button").click()
    assert "come back exactly" in page.until(".sentence.fine").text
    assert "2 of 2" in page.until("#audited .facts").text
    page.open("audit")  # the last one is still there
    page.until(".sentence.fine")


def test_an_audit_names_what_it_finds(chromium, tmp_path, model_folder):
    config = settings(tmp_path / "store", model_folder)
    api.ingest([written(tmp_path / "docs", {"a.md": "The fan is quiet.\n"})], config)
    database = tmp_path / "store" / "store.db"
    content = bytearray(database.read_bytes())
    at = content.index(b"The fan is quiet")
    content[at : at + 3] = b"the"
    database.write_bytes(content)
    with served(config) as running, opened(chromium, running, "audit") as page:
        page.until("#quick").click()
        page.until("#audit-form button").click()
        assert page.until(".sentence.bad").text.startswith("✗")
        assert page.until("#audited tbody tr").text


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_cut_off_or_faint(page, width, scheme, view):
    page.look(width, scheme)
    page.open(view)
    if view == "ask":
        page.ask(LAMP)
    assert page.js("document.documentElement.scrollWidth") <= width
    faint = page.driver.execute_script(CONTRAST)
    assert faint == []
    assert page.js("getComputedStyle(document.body).backgroundColor") == (
        "rgb(251, 250, 248)" if scheme == "light" else "rgb(20, 24, 27)"
    )


CONTRAST = """
const light = (rgb) => rgb.map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const [r, g, b, a = 1] = numbers(getComputedStyle(one).backgroundColor);
    if (a === 1) return [r, g, b];
  }
};
const ratio = (one) => {
  const colour = numbers(getComputedStyle(one).color).slice(0, 3);
  const [low, high] = [light(colour), light(behind(one))].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
return [...document.querySelectorAll("body *")]
  .filter((one) => one.checkVisibility())
  .filter((one) => [...one.childNodes].some((x) => x.nodeType === 3 && x.data.trim()))
  .filter((one) => ratio(one) < 4.5)
  .map((one) => one.outerHTML.slice(0, 90));
"""


def test_all_of_it_by_keyboard(page):
    page.js("document.body.focus()")
    page.keys(Keys.TAB)
    assert page.focused() == "Skip to the content"
    seen = []
    while page.focused() != "question":
        page.keys(Keys.TAB)
        seen.append(page.focused())
        ring = page.js("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none" and len(seen) < 9, seen
    assert seen == ["rag-memtok", "Ask", "Documents", "Audit", "question"]
    page.keys(LAMP, Keys.ENTER)
    page.until("#answers .answer:not(.waiting) mark")
    while page.focused() != "Its memory, token by token":
        page.keys(Keys.TAB)
    page.keys(Keys.ENTER)
    page.until("#one-memory .strip")
    assert page.focused() == "memory-title"
    while page.focused() != "token-at":
        page.keys(Keys.TAB)
    page.keys(Keys.ARROW_RIGHT)
    page.until(".told", "2 of")


def test_everything_has_a_name_and_a_landmark(page):
    for view in VIEWS:
        page.open(view)
        nameless = page.js(
            "[...document.querySelectorAll('input, select, textarea, button')]"
            ".filter((one) => one.checkVisibility() && !(one.labels?.length || one.textContent))"
            ".map((one) => one.outerHTML)"
        )
        assert nameless == []
        assert len([one for one in page.all("h1") if one.is_displayed()]) == 1
        assert page.js("document.querySelector('[aria-current]').hash") == f"#{view}"
    assert [len(page.all(name)) for name in ("header", "nav", "main")] == [1, 1, 1]


def test_an_empty_store_says_what_to_do_and_takes_a_file(chromium, tmp_path, model_folder):
    config = settings(tmp_path / "store", model_folder)
    file = tmp_path / "lámpara & <b>.md"
    file.write_text("The lamp was repaired in March.\n", encoding="utf-8")
    strange = tmp_path / "strange.xyz"
    strange.write_text("?")
    with served(config) as running, opened(chromium, running) as page:
        page.until("#nothing-yet", "Give this store some documents")
        assert not page.all("#question-form")[0].is_displayed()
        page.until("#files").send_keys(f"{file}\n{strange}")
        taken = page.until("#jobs article", "Taken in: 1 document")
        assert taken.find_element(By.TAG_NAME, "h2").text == file.name
        refused = page.until("#jobs .error", "strange.xyz").text
        assert "is of no kind that is read" in refused and "ingest --help" in refused
        page.until("#held", "1 document")
        taken.find_element(By.LINK_TEXT, "Ask").click()
        page.until("#question-form")
        page.open("documents")
        page.until("#files-held", file.name)
        page.until("#files").send_keys(str(file))
        page.until("#jobs article", "Already there")


def test_a_file_can_be_dropped(chromium, tmp_path, model_folder):
    config = settings(tmp_path / "store", model_folder)
    with served(config) as running, opened(chromium, running) as page:
        page.driver.execute_script(
            "const files = new DataTransfer();"
            "files.items.add(new File(['The fan is quiet.'], 'fan.txt'));"
            "document.querySelector('.drop').dispatchEvent("
            "  new DragEvent('drop', { dataTransfer: files, bubbles: true }));"
        )
        page.until("#jobs article", "Taken in: 1 document")
        page.until("#files-held", "fan.txt")


def test_a_server_with_a_token_asks_for_it(chromium, config):
    with served(config, token=TOKEN) as running:
        page = Page(chromium, running.url)
        page.driver.get(running.url)
        page.until("#token-field").send_keys("another", Keys.ENTER)
        page.until("#token-why", "is not it")
        page.until("#token-field").send_keys(TOKEN, Keys.ENTER)
        page.until("#held", "2 documents")
        assert "March" in page.ask(LAMP).text
        assert page.js("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
        page.open()  # the tab remembers
        assert not page.all("#token")[0].is_displayed()
        page.js("sessionStorage.clear()")


@pytest.mark.parametrize("pasted", [f"{TOKEN}\u200b", f"\u201c{TOKEN}\u201d"])
def test_what_is_no_token_is_told_and_not_kept(chromium, config, pasted):
    with served(config, token=TOKEN) as running:
        page = Page(chromium, running.url)
        page.driver.get(running.url)
        page.until("#token-field").send_keys(pasted, Keys.ENTER)
        page.until("#token-why", "is no token")
        assert page.js("sessionStorage.length") == 0
        page.until("#token-field").clear()
        page.until("#token-field").send_keys(TOKEN, Keys.ENTER)
        page.until("#held", "2 documents")
        page.js("sessionStorage.clear()")


def test_a_server_that_is_gone_is_an_error_with_what_to_do(chromium, config):
    with served(config) as running, opened(chromium, running) as page:
        page.until("#question")
    page.until("#question").send_keys(LAMP, Keys.ENTER)
    error = page.until("#answers .error", "does not answer").text
    assert "rag-memtok serve" in error
