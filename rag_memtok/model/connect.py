"""A vLLM server, asked which models it has, and believed once it has answered as ours does."""

import itertools
import secrets
import shlex
from dataclasses import dataclass, replace

from rag_memtok.errors import EngineUnavailable, WrongModel
from rag_memtok.model.inject import inject
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import qa_prompt
from rag_memtok.model.remote import (
    FLAG,
    PASSAGE,
    PROBE_TOKENS,
    QUESTION,
    SERVE,
    RemoteEngine,
    complete,
    require_same,
)
from rag_memtok.model.wire import Lost, Refused, Server, bad_reply, request_json, wait_after

MODELS = "/v1/models"
TOGETHER = 8  # prompts that a server with an adapter has to live through
RANKS = (8, 16, 32, 64, 128, 256, 512)  # what vLLM takes for the greatest rank of an adapter


def connect(server: Server, lm: LM) -> RemoteEngine:
    """The server as an engine, once it has answered the probe as `lm` does.

    It is asked for the first of its models: the one that it was started on.

    Raises:
        WrongModel: it has another model.
        EngineUnavailable, PermissionRefused: see `wire` and `_explain_refusals`.
    """
    (name, *_), context = _served_models(server)
    remote = _engine(server, lm, name, context)
    require_same(remote)
    return remote


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter that a server has beside its base model, and its `folder` and rank here."""

    sha256: str
    folder: str
    rank: int

    @property
    def name(self) -> str:
        """The name it is served by: its hash, since servers cache by name."""
        return f"adapter-{self.sha256[:12]}"


def connect_adapter(server: Server, lm: LM, adapter: ServedAdapter) -> RemoteEngine:
    """The server's base model with `adapter` on, as an engine.

    Before that TOGETHER prompts of two lengths are sent at once: some versions of vLLM end where
    two are computed in one step (benchmarks/vllm.md), for all who use the server. Of two alone the
    one may be under way when the other comes. Then it has to answer as `lm` does.

    Raises:
        WrongModel: it has no adapter of that name, or another base.
        EngineUnavailable: it did not live through these prompts, or see `connect`.
    """
    names, context = _served_models(server)
    if adapter.name not in names:
        rank = next(rank for rank in RANKS if rank >= adapter.rank)
        raise WrongModel(
            f"the server at {server.url} has no adapter {adapter.name}, it has {', '.join(names)}",
            remedy=f"start it on the base model with {FLAG} --enable-lora --max-lora-rank {rank} "
            f"--lora-modules {shlex.quote(f'{adapter.name}={adapter.folder}')}",
        )
    remote = _engine(server, lm, adapter.name, context)
    _require_survival(remote)
    require_same(remote)
    return remote


def _require_survival(remote: RemoteEngine) -> None:
    lm, frame = remote.lm, qa_prompt(remote.lm)
    prompts = [
        inject(lm, frame, [lm.encode(PASSAGE)] * (1 + number % 2), lm.encode(QUESTION))
        for number in range(TOGETHER)
    ]
    once = replace(remote, server=replace(remote.server, pauses=()))
    try:
        complete(once, prompts, PROBE_TOKENS, frozenset(), lambda _: None)
    except EngineUnavailable as error:
        raise EngineUnavailable(
            f"{TOGETHER} prompts at once with the adapter {remote.model}: {error}",
            remedy=f"start it on the reader merged into the model, without --enable-lora: {SERVE}",
        ) from error


def _served_models(server: Server) -> tuple[list[str], int]:
    """The names that a server has, its base model first, and the most positions that it takes."""
    for tries in itertools.count(1):
        try:
            reply = request_json(server, MODELS, None)
            break
        except Lost as lost:
            wait_after(server, lost, tries)
        except Refused as error:
            raise bad_reply(server, f"{MODELS}: {error}") from error
    try:
        names, context = [card["id"] for card in reply["data"]], reply["data"][0]["max_model_len"]
    except (KeyError, TypeError, IndexError):
        names, context = [], None
    if not all(isinstance(name, str) for name in names) or type(context) is not int:
        raise bad_reply(server, f"{MODELS} names no model with its length")
    return names, context


def _engine(server: Server, lm: LM, name: str, context: int) -> RemoteEngine:
    """The server as an engine, not yet believed."""
    return RemoteEngine(
        server=server,
        lm=lm,
        model=name,
        context=min(context, lm.context),
        salt=secrets.token_urlsafe(32),
    )
