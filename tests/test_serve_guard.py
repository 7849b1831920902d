"""Attacks on the server: from other pages, other names, without a token, with too much."""

import math
import os
import socket
import stat
import time
from contextlib import suppress

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from served import HANGS, served, settings
from small import written

from rag_memtok.errors import InputRefused, UsageError
from rag_memtok.pipeline import api
from rag_memtok.serve import app, guard, uploads

TOKEN = "a-token-of-the-tests"
EVIL = "<script>alert(1)</script>\n<img src=x onerror=alert(2)>\x1b[31m\u202ered\u0007"
FILES = {"evil.md": EVIL, "lamp.md": "The lamp is red."}
QUESTION = {"question": "What colour is the lamp?"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    root = str(folder / "docs")
    config = settings(folder / "store", toy.save(folder / "toy"), serve__roots=[root])
    api.ingest([written(folder / "docs", FILES)], config)
    return config


@pytest.fixture(scope="module")
def server(config):
    with served(config) as running:
        yield running


@pytest.fixture(scope="module")
def closed(config):
    """One that wants a token."""
    with served(config, token=TOKEN) as running:
        yield running


def still_answers(server):
    assert server.post("/ask", QUESTION).status == 200


# --- other names, other origins


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a@b:c"]
)
def test_a_name_that_was_rebound_is_refused(server, host):
    for reply in (server.get("/documents", Host=host), server.get("/", Host=host)):
        assert reply.status in (400, 403) and "lamp" not in reply.text


@pytest.mark.parametrize("host", ["localhost:8420", "127.0.0.1", "[::1]:80", "192.168.1.7:8420"])
def test_our_own_name_and_addresses_are_not(server, host):
    assert server.get("/health", Host=host).status == 200


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": "http://["},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_page_of_another_origin_is_refused(server, headers):
    for reply in (server.post("/ask", QUESTION, **headers), server.get("/documents", **headers)):
        assert reply.status == 403 and reply.error["code"] == "origin"
    assert server.upload("x.md", b"text", **headers).status == 403


def test_no_form_of_another_page_is_taken(server):
    """What a form, or a request that a browser does not ask about first, can send."""
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None, "")
    for kind in kinds:
        for path in ("/ask", "/verify", "/ingest", "/v1/chat/completions"):
            reply = server.send("POST", path, '{"question": "lamp"}', Content_Type=kind)
            assert reply.status == 415 and reply.error["remedy"]
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert server.post("/ask", QUESTION, **followed).status == 403
    assert server.get("/", **followed).status == 200


def test_cors_is_closed(server):
    asked = {"Origin": "http://evil.example", "Access_Control_Request_Method": "POST"}
    for headers in (asked, {}):
        reply = server.send("OPTIONS", "/ask", **headers)
        assert reply.status == (403 if headers else 405)
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_its_own_page_may_ask(server):
    origin = f"http://127.0.0.1:{server.port}"
    reply = server.post("/ask", QUESTION, Origin=origin, Sec_Fetch_Site="same-origin")
    assert reply.status == 200


# --- the token


def test_without_the_token_nothing_is_told(closed):
    described = closed.get("/openapi.json", Authorization=f"Bearer {TOKEN}").json
    tried = 0
    for path, methods in described["paths"].items():
        for method in methods:
            for given_ in (None, "Bearer ", "Bearer wrong", TOKEN, f"Basic {TOKEN}", "Bearer \xe9"):
                sent = {"Authorization": given_, "Content_Type": "application/json"}
                reply = closed.send(method.upper(), path.replace("{", "").replace("}", ""), **sent)
                if path == "/health":
                    assert reply.status == 200
                    continue
                tried += 1
                assert reply.status == 401 and reply.error["code"] == "token"
                assert "lamp" not in reply.text and TOKEN not in reply.text
    assert tried > 60
    assert closed.get("/openapi.json").status == 401
    assert closed.get("/documents", Authorization=f"Bearer {TOKEN}").status == 200
    assert closed.get("/documents", Authorization=f"bearer {TOKEN}").status == 200


def test_beyond_this_machine_a_token_is_required(config):
    for host in ("0.0.0.0", "192.168.1.7", "::", "a-name"):
        with pytest.raises(UsageError, match="no token") as told:
            app.rules_of(settings("s", "m", serve__host=host), "")
        assert "RAG_MEMTOK_SERVE_TOKEN" in told.value.remedy
        assert host in app.rules_of(settings("s", "m", serve__host=host), TOKEN).names
    with pytest.raises(UsageError, match="characters"):
        app.rules_of(settings("s", "m"), "guess")
    assert all(map(app.is_loopback, ("127.0.0.1", "::1", "localhost", "127.8.8.8")))


def test_a_store_of_somebody_else_is_not_served_unless_trusted(config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody-else"))
    with pytest.raises(InputRefused, match="not made here"), served(config):
        pass
    with served(config, trusted=True) as server:
        still_answers(server)


# --- too much


def test_a_body_without_end_is_not_read(server):
    head = "POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for length in (guard.BODY + 1, 10**30):
        with socket.create_connection(("127.0.0.1", server.port), timeout=HANGS) as raw:
            raw.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            told = raw.recv(100)  # before a byte of it was sent
            assert told.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400")), told
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANGS) as raw:
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        sent = 0
        with suppress(ConnectionError):  # it is closed at some time, with or without a last word
            while sent < 100 * guard.BODY:
                raw.sendall(part)
                sent += 0x10000
        assert sent < 100 * guard.BODY
    still_answers(server)


def test_who_is_refused_while_sending_can_read_why(closed):
    """A connection closed over what is on its way is reset, and the reply lost."""
    for size in (5_000_000, guard.REST - guard.BODY):
        reply = closed.upload("big.md", b"x" * size)
        assert reply.status == 401 and reply.error["code"] == "token"


def test_who_hangs_up_within_an_upload_makes_no_error(tmp_path, config):
    head = "POST /ingest HTTP/1.1\r\nHost: localhost\r\nX-Rag-Memtok-Name: fan.md\r\n"
    with served(settings(tmp_path / "store", config.model.id)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=HANGS) as raw:
            raw.sendall(f"{head}Content-Length: 100\r\n\r\nThe fan".encode())
        counted = []
        end = time.monotonic() + HANGS
        while not counted:
            assert time.monotonic() < end, "it was never noticed"
            lines = server.get("/metrics").text.splitlines()
            counted = [one for one in lines if 'route="/ingest"' in one]
        (one,) = counted
        assert f'status="{app.HUNG_UP}"' in one
        assert not list((tmp_path / "store" / "uploads.new").iterdir())


def test_an_upload_has_a_bound_and_leaves_nothing(tmp_path, config):
    small = settings(tmp_path / "store", config.model.id, serve__max_upload=1000)
    with served(small) as server:
        reply = server.upload("big.md", b"x" * 1001)
        assert reply.status == 400 and "1000 bytes" in reply.error["message"]
        assert server.get("/jobs").json["jobs"] == []
    assert [one.name for one in (tmp_path / "store").rglob("*") if one.is_file()] == []


def test_so_many_requests_a_second(tmp_path, config):
    slow = settings(tmp_path / "store", config.model.id, serve__rate=0.01)
    with served(slow) as server:
        assert server.get("/health").status == 200
        refused = server.get("/health")
        assert refused.status == 429 and refused.error["code"] == "rate"
        wait = int(refused.headers["retry-after"])
        assert 1 < wait <= 100 and f"ask again in {wait} s" in refused.error["remedy"]
    rate = guard.Rate(1e-9)
    assert not rate.wait("a") and rate.wait("a") and not rate.wait("b")
    for number in range(2 * guard.ADDRESSES):
        rate.wait(str(number))
    assert len(rate.left) == guard.ADDRESSES


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0, 50.0])
def test_who_waits_as_long_as_told_is_let_in(rate):
    limit = guard.Rate(rate)
    while not (wait := limit.wait("a")):
        pass
    left, since = limit.left["a"]
    limit.left["a"] = left, since - math.ceil(wait)
    assert not limit.wait("a")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"question": ' + b"9" * 5000 + b"}",
        b'{"question": "\\ud800"}',
        b'{"question": "x", "k": 1e999}',
        b'{"question": "x", "k": NaN}',
        b'{"question": ["x"]}',
        b"null",
        b'{"question": "x", "trust": true}',
    ],
)
def test_what_is_no_request_is_told_so_and_ends_nothing(server, body):
    for path in ("/ask", "/search", "/verify", "/ingest", "/v1/chat/completions"):
        reply = server.send("POST", path, body, Content_Type="application/json")
        assert reply.status == 400, reply.text
        assert reply.error["type"] == "invalid_request_error"
    still_answers(server)


def test_what_is_no_http_ends_nothing(server):
    for bytes_ in (b"\x16\x03\x01", b"GET\r\n\r\n", b"A" * 100_000, b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=HANGS) as raw:
            try:
                raw.sendall(bytes_)
                raw.shutdown(socket.SHUT_WR)
                raw.recv(1000)
            except ConnectionError:
                pass
    still_answers(server)


# --- files


@pytest.mark.parametrize(
    "name",
    [
        "../evil.md",
        "..%2F..%2Fevil.md",
        "/etc/cron.d/evil.md",
        "a/../../evil.md",
        "a//b.md",
        ".gitignore",
        "a/.ssh/keys.md",
        "a%00.md",
        "a%0A.md",
        "a%5C..%5Cb.md",
        "C:evil.md",
        "%ff.md",
        "%E2%80%AEevil.md",
        "",
        "a" * 300 + ".md",
        "/".join("a" * 30) + ".md",
        "evil.exe",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(server, config, name):
    reply = server.upload(name, b"text")
    assert reply.status == 400 and reply.error["remedy"]
    assert not list(app.store_folder(config).glob("uploads*/*"))


@given(st.lists(st.text(max_size=8), max_size=6).map("/".join))
def test_no_name_leads_out_of_its_folder(name):
    from urllib.parse import quote

    try:
        parts = uploads.parse_name(quote(name, errors="surrogatepass"))
    except UsageError:
        return
    path = os.path.normpath(os.path.join("/uploads", *parts))
    assert path.startswith("/uploads/") and "\0" not in path and len(parts) == path.count("/") - 1


def test_an_upload_is_its_owners_alone(tmp_path, config):
    with served(settings(tmp_path / "store", config.model.id)) as server:
        job = server.upload("a/b/fan.md", b"The fan is loud.").json
        assert server.ended(job["id"])["state"] == "done"
        under = server.upload("a/b/fan.md/c.md", b"The fan is loud.")
        assert under.status == 400 and "folder" in under.error["message"]
        over = server.upload("a", b"no suffix: a text")
        assert over.status == 400
    folder = tmp_path / "store" / "uploads"
    modes = {stat.S_IMODE(one.stat().st_mode): one.is_dir() for one in [folder, *folder.rglob("*")]}
    assert modes == {0o700: True, 0o600: False}
    assert not list((tmp_path / "store" / "uploads.new").iterdir())


def test_a_link_in_the_uploads_leads_nowhere(tmp_path, config):
    (tmp_path / "outside").mkdir()
    with served(settings(tmp_path / "store", config.model.id)) as server:
        server.ended(server.upload("fan.md", b"The fan is loud.").json["id"])
        (tmp_path / "store" / "uploads" / "out").symlink_to(tmp_path / "outside")
        assert server.upload("out/evil.md", b"text").status == 400
    assert not list((tmp_path / "outside").iterdir())


def test_only_paths_under_a_root_are_taken_in(server, config, tmp_path):
    (root,) = config.serve.roots
    (tmp_path / "secret.md").write_text("The code is 1234.")
    link = os.path.join(root, "link.md")
    os.symlink(tmp_path / "secret.md", link)
    tried = [
        str(tmp_path / "secret.md"),
        "/etc",
        "/",
        "docs",
        f"{root}/../store",
        f"{root}x",
        link,
        config.store,
        "\0",
        "-",
        "",
    ]
    for path in tried:
        reply = server.post("/ingest", {"paths": [root, path]})
        assert reply.status == 400 and "not under a folder" in reply.error["message"]
    os.unlink(link)
    assert server.ended(server.post("/ingest", {"paths": [root]}).json["id"])["state"] == "done"


# --- stored text is text


def test_stored_text_is_never_a_page(server):
    headers = {"Accept": "text/html"}
    listed = server.get("/chunks?path=evil.md", **headers)
    ids = [one["chunk_id"] for one in listed.json["chunks"]]
    shown = [server.get(f"/chunks/{id}", **headers) for id in ids]
    assert "".join(one.json["text"] for one in shown) == EVIL
    assert any("<script>" in one.text for one in shown)
    found = server.post("/search", {"question": "script alert"})
    assert found.json["found"][0]["text"] in EVIL
    for reply in (listed, *shown, found):
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_every_reply_has_the_policy(server):
    replies = [server.get(path) for path in ("/", "/static/none.js", "/nothing", "/documents")]
    replies += [server.post("/ask", {}), server.get("/", Host="evil.example")]
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "server" not in reply.headers


def test_an_error_has_no_control_characters_of_the_clients(server):
    reply = server.post("/ask", {"question": "lamp", "within": "\x1b[31m\u202e<b>"})
    assert reply.status == 400 and reply.error["message"]
    assert "\x1b" not in reply.error["message"] and "\u202e" not in reply.error["message"]
