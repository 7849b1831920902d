"""Texts in other encodings than UTF-8: what is believed, what is assumed, what comes back."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.config import Documents
from rag_memtok.documents.encodings import (
    Encoding,
    Unreadable,
    canonical_name,
    detect_encoding,
    encoding_in,
    with_encoding,
)
from rag_memtok.documents.scan import read, restores_exactly, scan
from rag_memtok.errors import UsageError
from rag_memtok.pipeline import api
from rag_memtok.store.store import open_store

CASES = Path(__file__).parent / "cases" / "encodings"
RIGHT = {
    "bom8.txt": ("utf-8", False, "The code is 4417."),
    "hours.txt": ("cp1252", True, "hours – the library’s reading room"),
    "late_accent.txt": ("utf-8", False, "At the end: café Zoë opens at nine."),
    "latin1.md": ("cp1252", True, "Das Frühstück kostet 7 Euro."),
    "latin1_meta.html": ("cp1252", False, "Das Roggenbrot kostet fünf Euro."),
    "one_bad_byte.txt": ("cp1252", True, "The temperature was 21 °C yesterday."),
    "utf16_bom.txt": ("utf-16-le", False, "The boiler was serviced in March."),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_samples(name):
    encoding, assumed, words = RIGHT[name]
    (source,) = scan([CASES / name], Documents()).files
    assert (source.encoding, source.assumed) == (encoding, assumed)
    (document,) = read(source, Documents()).documents
    assert words in document.text and encoding_in(document.extractor) == encoding
    if restores_exactly(document.extractor):
        assert document.text.encode(encoding) == (CASES / name).read_bytes()


def test_every_sample_has_its_right_value():
    assert {path.name for path in CASES.iterdir()} == set(RIGHT)


# --- what the file or the user says

PAGE = '<html><head><meta charset="{}"></head><body>{}</body></html>'


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("\ufeffdie Tür".encode("utf-16-be"), "utf-16-be"),
        ("\ufeffdie Tür".encode("utf-32-le"), "utf-32-le"),
        ("\ufeffdie Tür".encode("utf-32-be"), "utf-32-be"),
        (PAGE.format("windows-1251", "Ключ").encode("cp1251"), "cp1251"),
        (PAGE.format("Shift_JIS", "地下室の鍵").encode("cp932"), "cp932"),
        (PAGE.format("x-sjis", "地下室の鍵").encode("cp932"), "cp932"),
        (PAGE.format("iso-2022-jp", "地下室の鍵").encode("iso2022_jp"), "iso2022_jp"),
        (PAGE.format("gb2312", "地下室的钥匙").encode("gb18030"), "gb18030"),
        (PAGE.format("utf-16", "all of it ASCII").encode(), "utf-8"),
        (PAGE.format("no-such", "fünf").encode(), "utf-8"),
        (PAGE.format("latin-1", "it is UTF-8 all the same: fünf").encode(), "utf-8"),
        (
            b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r"><p>'
            + "Ключ".encode("koi8-r"),
            "koi8-r",
        ),
        ('<?xml version="1.0" encoding="ISO-8859-2"?><a>łąka</a>'.encode("latin2"), "iso8859-2"),
    ],
)
def test_what_a_file_says_of_itself_is_believed(data, name):
    assert detect_encoding(data, markup=True) == Encoding(name)


def test_only_a_page_declares_as_html_does():
    data = '# How to write <meta charset="koi8-r">\n\nüber Umlaute'.encode("cp1252")
    assert detect_encoding(data, markup=False) == Encoding("cp1252", assumed=True)
    assert detect_encoding(data, markup=True) == Encoding("koi8-r")


def test_the_user_is_believed_before_a_declaration_but_not_before_a_mark():
    data = PAGE.format("koi8-r", "ключ").encode("cp1251")
    assert detect_encoding(data, "cp1251", markup=True) == Encoding("cp1251")
    assert detect_encoding("\ufeffa".encode("utf-16-le"), "cp1251") == Encoding("utf-16-le")
    with pytest.raises(Unreadable, match="not cp932 at byte"):
        detect_encoding("über".encode("cp1252") + b"\xfc", "cp932")
    with pytest.raises(Unreadable, match="not UTF-8 at byte 0"):
        detect_encoding("über".encode("cp1252"), "utf-8")


@pytest.mark.parametrize("name", ["latin99", "rot13", "base64", "utf-7", "unicode_escape", "a\0"])
def test_what_is_no_encoding_of_texts_is_refused(tmp_path, name):
    (tmp_path / "a.txt").write_text("text")
    assert canonical_name(name) == ""
    with pytest.raises(UsageError, match=r"documents\.encoding is .*; valid: the name"):
        scan([tmp_path], Documents(encoding=name))


# --- what is assumed

SENTENCES = {
    "cp1252": "Der Schlüssel hängt hinter der Tür – „größer“ als früher, für 5 €.",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy. Klíč od sklepa visí za dveřmi.",
    "iso8859-2": "Zażółć gęślą jaźń. Klucz do piwnicy wisi za drzwiami.",
    "cp1251": "Ключ от подвала висит за дверью. Плата составляет пять рублей.",
    "koi8-r": "Ключ от подвала висит за дверью. Плата составляет пять рублей.",
    "cp932": "地下室の鍵はドアの後ろに掛かっています。料金は五ユーロです。",
    "euc_jp": "地下室の鍵はドアの後ろに掛かっています。料金は五ユーロです。",
    "iso2022_jp": "地下室の鍵はドアの後ろに掛かっています。",
    "gb18030": "地下室的钥匙挂在门后。费用是五欧元。",
    "big5": "地下室的鑰匙掛在門後。費用是五歐元。",
    "cp949": "지하실 열쇠는 문 뒤에 걸려 있습니다. 요금은 5유로입니다.",
    "cp1253": "Το κλειδί του υπογείου κρέμεται πίσω από την πόρτα.",
    "cp850": "Der Schlüssel hängt hinter der Tür. Die Gebühr beträgt fünf Euro.",
    "mac-roman": "La clé de la cave est accrochée derrière la porte. Le café coûte cher.",
    "utf-16-le": "The boiler was serviced in March.",
    "utf-16-be": "The boiler was serviced in March.",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_the_likeliest_encoding_is_that_of_the_text(name):
    data = SENTENCES[name].encode(name)
    found = detect_encoding(data)
    assert found.assumed and data.decode(found.name) == SENTENCES[name]


@pytest.mark.parametrize(
    "text", ["It’s the only one.", "The fee is 5 €.", "30 m², 21 °C, ½ of it", "“Quoted” … done"]
)
def test_a_single_sign_of_windows_is_read_as_such(text):
    assert detect_encoding(text.encode("cp1252")) == Encoding("cp1252", assumed=True)


@given(st.binary(max_size=60), st.booleans())
def test_whatever_is_accepted_gives_the_same_bytes_again(data, markup):
    try:
        found = detect_encoding(data, markup=markup)
    except Unreadable as error:
        assert str(error)
        return
    assert data.decode(found.name).encode(found.name) == data


@given(st.sampled_from(["", "utf-8", "cp1252", "utf-16-le", "iso8859-1"]))
def test_the_encoding_is_in_the_extractors_name(name):
    assert encoding_in(with_encoding("text/1", name)) == (name or "utf-8")
    assert with_encoding("text/1", "utf-8") == "text/1"  # as it always was


# --- there and back


def stored(folder: Path) -> dict[str, str]:
    with open_store(folder, write=False) as store:
        return {one.path: one.extractor for one in store.documents()}


def test_restore_gives_the_very_bytes_and_the_assumption_is_told(tmp_path, model_folder):
    docs = tmp_path / "docs"
    shutil.copytree(CASES, docs)
    config = small.dials(tmp_path / "store", model_folder)
    done = api.ingest([docs], config)
    assert not done.skipped
    assert {one.path: one.encoding for one in done.assumed} == {
        name: encoding for name, (encoding, assumed, _) in RIGHT.items() if assumed
    }
    found = api.restore(tmp_path / "back", config)
    assert not found.failed and len(found.written) == len(RIGHT)
    for name in RIGHT:
        if name.endswith(".html"):
            assert "fünf Euro" in (tmp_path / "back" / f"{name}.txt").read_text()
        else:
            assert (tmp_path / "back" / name).read_bytes() == (docs / name).read_bytes()
    audit = api.verify(config, folder=docs)
    assert audit.ok


def test_the_same_bytes_are_read_again_in_the_encoding_that_is_asked_for(tmp_path, model_folder):
    docs = small.written(tmp_path / "docs", {"plain.txt": "ASCII alone"})
    (docs / "a.txt").write_bytes(b"The door is gr\xfcn.")
    config = small.dials(tmp_path / "store", model_folder)
    asked = replace(config, documents=replace(config.documents, encoding="cp1251"))
    api.ingest([docs], config)
    assert stored(tmp_path / "store")["a.txt"] == "text/1 cp1252"
    done = api.ingest([docs], asked)
    assert (done.files, done.assumed) == (2, ())
    assert stored(tmp_path / "store") == dict.fromkeys(["a.txt", "plain.txt"], "text/1 cp1251")
    again = api.ingest([docs], config)  # what was asked for stays
    assert (again.files, again.unchanged) == (0, 2)
    audit = api.verify(config, folder=docs)
    assert audit.ok
