"""The pages of the repository: their links lead somewhere, and nothing comes from elsewhere."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.glob("*.md")),
    ROOT / "benchmarks/log.md",
    ROOT / "training/README.md",
    ROOT / "tests/faults/README.md",
    *sorted((ROOT / "rag_memtok").rglob("README.md")),
]
LOADING = {"script": "src", "link": "href", "img": "src", "source": "srcset", "iframe": "src"}
LARGEST = 100_000  # bytes of a picture


def text_of(page):
    """A page without what stands in its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`]*`", lambda code: re.sub(r"[\[\]()]", "", code[0]), text)


def links(page):
    text = text_of(page)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)


def anchors(page):
    """What its headings are called, on GitHub and in the built page alike."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_what_is_there(page):
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{link} is not there"
        assert page.parent != DOCS or target.is_relative_to(DOCS), f"{link} leaves the built pages"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_page_of_the_documentation_is_reached_and_every_picture_is_shown():
    named = {
        (page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)
    }
    for path in (*DOCS.glob("*.md"), *DOCS.glob("images/*")):
        assert path in named, f"nothing links to {path.name}"
    listed = set(re.findall(r'"([\w-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    assert listed == {path.name for path in DOCS.glob("*.md")}
    assert max(path.stat().st_size for path in DOCS.glob("images/*")) < LARGEST


def test_headings_tell_pages_apart():
    for page in DOCS.glob("*.md"):
        headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
        assert (
            len(set(headings)) == len(headings)
            and len(re.findall(r"^# ", text_of(page), re.M)) == 1
        )


class Loaded(HTMLParser):
    """What a page loads by itself, and the links it shows."""

    def __init__(self):
        super().__init__()
        self.loaded, self.linked = [], []

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        if told.get(LOADING.get(tag, "")):
            self.loaded.append(told[LOADING[tag]])
        if tag == "a" and told.get("href"):
            self.linked.append(told["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, built with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    build = [Path(sys.executable).parent / "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "docs"


def test_the_built_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in DOCS.glob("*.md")}
    for page in pages:
        found = Loaded()
        found.feed(page.read_text(encoding="utf-8"))
        foreign = [url for url in found.loaded + found.linked if re.match(r"[a-z]+:|//", url)]
        assert not foreign, f"{page.name}: {foreign}"
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not [
        url
        for text in styles
        for url in re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\"']+)", text)
    ]
