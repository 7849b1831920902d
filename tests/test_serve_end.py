"""The end of a server, by real signals: what runs is finished, or cut short by a second one."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import toy
from served import HANGS, Served, served, settings, until
from small import written

from rag_memtok.pipeline import api

QUESTION = "Who was the keeper of the lamp?"
PROGRAM = "from rag_memtok.cli.app import main; main()"
# Every step of a job says so on standard output, and goes on at a line of standard input, or once
# that is closed.
STEPPING = """
import sys
from rag_memtok.serve.jobs import Jobs
tell = Jobs._tell

def step(jobs, progress):
    print("step", flush=True)
    sys.stdin.readline()
    tell(jobs, progress)

Jobs._tell = step
"""
ENDED = "ended: every question is answered, no job was cut short"
IMPATIENT = "from rag_memtok.serve import app; app.GRACE = 1\n"
TEXT = b"The fan is loud.\n\nThe soup is hot.\n"


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ready")
    config = settings(folder / "store", toy.save(folder / "toy"))
    api.ingest([written(folder / "docs")], config)
    return config


@pytest.fixture
def config(ready, tmp_path):
    shutil.copytree(ready.store, tmp_path / "store")
    return settings(tmp_path / "store", ready.model.id)


class Running(Served):
    """A server that is a process of its own."""

    def step(self):
        assert self.server.stdout.readline() == "step\n"

    def go(self):
        self.server.stdin.write("\n")
        self.server.stdin.flush()

    def signalled(self, sent):
        """The line that it says to a signal, after what the ingest has said before."""
        self.server.send_signal(sent)
        return next(line for line in self.server.stderr if "ending: " in line or "ends at" in line)

    def ends(self):
        """Its exit code and what it says at last, once nothing holds it any more."""
        self.server.stdin.close()
        code, told = self.server.wait(HANGS), self.server.stderr.read()
        assert "Traceback" not in told and "interrupted" not in told
        return code, told


@contextmanager
def running(config, before=""):
    words = ["serve", "--store", config.store, "--port", "0", "--max-new-tokens", "200"]
    small = {"MODEL_THREADS": 1, "MODEL_DEVICE": "cpu"}
    small |= {"MEMORIZE_SECONDS_PER_CHUNK": 0, "SERVE_RATE": 0}
    environment = {f"RAG_MEMTOK_{name}": str(value) for name, value in small.items()}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", before + PROGRAM, *words],
        stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ | environment, text=True,
    ) as process:  # fmt: skip
        try:
            line = process.stderr.readline()
            server = Running(int(line.rpartition(":")[2].partition("/")[0]), process)
            server.get("/health")  # it has its handlers
            yield server
        finally:
            process.kill()


def midway(server):
    """An ingest that is held at its second step, and an audit that waits for it."""
    job = server.upload("fan.md", TEXT).json
    server.step()
    server.go()
    server.step()
    return job, server.post("/verify", {}).json


def test_a_signal_lets_an_ingest_finish(config):
    with running(config, STEPPING) as server:
        job, waiting = midway(server)
        watching = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANGS)
        watching.request("GET", f"/jobs/{job['id']}/events")
        events = watching.getresponse()
        told = server.signalled(signal.SIGTERM)
        assert told.startswith("ending: the ingest to be finished, ") and " of " in told
        assert "a second signal ends the job at its next step, with nothing lost" in told
        assert server.get("/health").json["status"] == "ending"
        for refused in (
            server.post("/ask", {"question": QUESTION}),
            server.post("/verify", {}),
            server.upload("soup.md", b"The soup is hot."),
        ):
            assert refused.status == 429 and refused.error["message"] == "the server ends"
        assert server.get(f"/jobs/{waiting['id']}").json["state"] == "stopped"
        assert server.get(f"/jobs/{job['id']}").json["state"] == "running"
        server.server.stdin.close()
        last = json.loads(events.read().decode().strip().rpartition("data: ")[2])
        assert last["state"] == "done" and last["ingested"]["files"] == 1
        watching.close()
        code, told = server.ends()
        assert code == 0
        assert told == f"{ENDED}; a job that waited was not begun\n"
    with pytest.raises(ConnectionError):
        server.get("/health")
    audit = api.verify(config)
    assert audit.ok and "fan.md" in {one.document.path for one in api.documents(config)}
    assert not (api.store_folder(config) / "uploads" / "soup.md").exists()


@pytest.mark.slow
def test_a_second_signal_ends_the_ingest_at_its_next_step(config):
    with running(config, STEPPING) as server:
        midway(server)
        server.signalled(signal.SIGTERM)
        assert server.signalled(signal.SIGINT) == "the ingest ends at its next step\n"
        code, told = server.ends()
        assert code == 130
        assert (
            told.startswith("ended: every question is answered; the ingest was cut short, ")
            and " of " in told
        )
        assert "what it did is kept, and the same upload or ingest goes on" in told
        assert told.endswith("; a job that waited was not begun\n")
    assert api.verify(config).ok
    done = api.ingest([api.store_folder(config) / "uploads"], config)
    assert done.files == 1 and api.verify(config).ok


@pytest.mark.slow
def test_a_second_signal_ends_an_audit(config):
    with running(config, STEPPING) as server:
        server.post("/verify", {})
        server.step()
        told = server.signalled(signal.SIGTERM)
        assert "the audit to be finished, which just began" in told
        assert server.signalled(signal.SIGTERM) == "the audit ends at its next step\n"
        code, told = server.ends()
        assert code == 143 and "is to be asked for again" in told


def test_what_was_asked_is_answered(config):
    with running(config) as server:
        said = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANGS)
        body = json.dumps({"question": QUESTION, "stream": True})
        said.request("POST", "/ask", body, {"Content-Type": "application/json"})
        reply = said.getresponse()
        first = reply.readline()
        server.server.send_signal(signal.SIGINT)
        rest = reply.read().decode()
        assert first == b"event: text\n" and "event: answer" in rest
        said.close()
        code, told = server.ends()
        assert code == 0 and told.endswith(f"{ENDED}\n")


def half_sent(server, config):
    """A connection on which half of an upload is sent, and the folder where it arrives."""
    slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANGS)
    slow.putrequest("POST", "/ingest")
    slow.putheader("X-Rag-Memtok-Name", "fan.md")
    slow.putheader("Content-Length", "14")
    slow.endheaders(b"The fan")
    arriving = api.store_folder(config) / "uploads.new"
    until(lambda: arriving.exists() and list(arriving.iterdir()))
    return slow, arriving


def test_what_a_kill_left_of_an_upload_goes_when_a_server_starts(config):
    with running(config) as server:
        slow, arriving = half_sent(server, config)
        server.server.kill()
        server.server.wait(HANGS)
        slow.close()
    assert len(list(arriving.iterdir())) == 1
    with served(config):
        assert not list(arriving.iterdir())


def test_what_another_server_is_being_sent_stays(config):
    with served(config) as server:
        slow, arriving = half_sent(server, config)
        with served(config):
            assert len(list(arriving.iterdir())) == 1
            slow.send(b" rattle")
            assert slow.getresponse().status == 202
        slow.close()
    assert (arriving.with_name("uploads") / "fan.md").read_text() == "The fan rattle"


@pytest.mark.slow
def test_a_client_that_never_sends_the_rest_does_not_keep_it(config):
    with running(config, IMPATIENT) as server:
        slow, arriving = half_sent(server, config)
        server.server.send_signal(signal.SIGTERM)
        server.server.stdin.close()
        assert server.server.wait(HANGS) == 0
        told = server.server.stderr.read()
        assert told.endswith(f"{ENDED}\n"), told
        slow.close()
    assert not list(arriving.iterdir())
