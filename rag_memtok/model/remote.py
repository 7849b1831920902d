"""A vLLM server that goes on after our prompts: input embeddings there, tokens back.

    POST /v1/completions   {"prompt_embeds": base64(torch.save(Tensor[S, d])), "max_tokens": ...}
                           no "prompt" beside them; greedy, our stop tokens, a salt of our own

The only home of torch.save, which is what vLLM reads; nothing of the kind is ever loaded here. A
server is believed after a fixed probe: the log-probabilities that it gives to the tokens it says
have to be those that our model gives them.
"""

import base64
import io
import itertools
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.errors import EngineUnavailable, StoreDamaged, UsageError, WrongModel
from rag_memtok.model.inject import Said, inject, never
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Frame, frame
from rag_memtok.model.wire import (
    Lost,
    Refused,
    Server,
    events_of,
    nonsense,
    reply_of,
    wait_after,
)

COMPLETIONS, MODELS = "/v1/completions", "/v1/models"
FLAG = "--enable-prompt-embeds"
SERVE = "rag-memtok export-reader DIR writes the model to serve, and says how"
PASSAGE = (
    "The mill at Brackwater was built in 1874 and burnt down in 1902. Its wheel, 6.2 metres wide, "
    "turned 9 times a minute; the miller, Ines Halloran, kept 14 geese."
)
QUESTION = "When did the mill burn down, and who was the miller?"
PROBED = 16  # tokens
TOLERANCE = 0.1  # nats, the mean over its tokens: benchmarks/vllm.md has what was measured


@dataclass(frozen=True, slots=True, eq=False)
class Remote:
    """A server that has the model of `lm`, which is ours to compare it with.

    `model` is what the server calls it, `context` the most positions that it takes. `salt` keeps
    what it caches of our prompts apart from other users'.
    """

    server: Server
    lm: LM
    model: str
    context: int
    salt: str

    def rows(
        self,
        frame: Frame,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        ended: Callable[[int], bool] = never,
    ) -> Iterator[tuple[int, int]]:
        """The greedy answers as they are made: (row, token), at most `limit` tokens each.

        They are one request. A server that was lost on the way is probed and asked again.

        Raises:
            EngineUnavailable, PermissionRefused, UsageError: see `wire` and `_understood`.
            WrongModel: what came back is another model.
        """
        told: list[list[int]] = [[] for _ in prompts]
        for tries in itertools.count(1):
            try:
                for row, token in self._rest(frame, prompts, limit, told, ended):
                    told[row].append(token)
                    yield row, token
                return
            except Lost as lost:
                wait_after(self.server, lost, tries)
                require_same(self)

    def _rest(
        self,
        frame: Frame,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        told: Sequence[Sequence[int]],
        ended: Callable[[int], bool],
    ) -> Iterator[tuple[int, int]]:
        """What comes after the tokens that were `told` before."""
        ends, before = self.lm.stops | {frame.end}, [tuple(row) for row in told]
        body = _body(self, prompts, limit, ends) | {"stream": True}
        places, over = [0] * len(prompts), set[int]()
        with _understood(self):
            for event in events_of(self.server, COMPLETIONS, body):
                for row, token in _streamed(self, event, len(prompts)):
                    if row in over or ended(row):
                        continue
                    if token in ends:
                        over.add(row)
                        continue
                    place = places[row]
                    if place >= limit or before[row][place : place + 1] not in ((), (token,)):
                        raise nonsense(self.server, "an answer that is not the one it began")
                    places[row] += 1
                    if place >= len(before[row]):
                        yield row, token
                if all(row in over or ended(row) for row in range(len(prompts))):
                    return

    def batch(
        self,
        frame: Frame,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        ended: Callable[[int], bool] = never,
    ) -> list[Said]:
        """The greedy answers to several prompts, whole, in one request: it runs to its end.

        Raises:
            EngineUnavailable, ...: see `rows`.
        """
        ends = self.lm.stops | {frame.end}
        return [
            Said(
                tuple(itertools.takewhile(lambda token: token not in ends, tokens)),
                math.fsum(nats) / len(nats),
            )
            for tokens, nats in _answers(self, prompts, limit, ends, require_same)
        ]


# --- the wire


def _body(
    remote: Remote, prompts: Sequence[Float[Tensor, "_ d"]], limit: int, ends: Set[int]
) -> dict[str, object]:
    """A greedy request; what the served folder may have as defaults is said, too."""
    return {
        "model": remote.model,
        "prompt_embeds": [_packed(prompt) for prompt in prompts],
        "max_tokens": limit,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(ends),
        "ignore_eos": not ends,
        "return_token_ids": True,
        "cache_salt": remote.salt,
    }


def _packed(prompt: Float[Tensor, "S d"]) -> str:
    """A prompt as vLLM reads it: a tensor of its own, since torch saves all that a view is of.

    Raises:
        StoreDamaged: it has what is no number. A server that computed with it answered other
            prompts with nonsense from then on (benchmarks/vllm.md).
    """
    own = prompt.detach().to("cpu", copy=True).contiguous()
    if not bool(torch.isfinite(own).all()):
        raise StoreDamaged("a memory holds what is no number", remedy="rag-memtok verify names it")
    file = io.BytesIO()
    torch.save(own, file)
    return base64.b64encode(file.getvalue()).decode()


def _answers(
    remote: Remote,
    prompts: Sequence[Float[Tensor, "_ d"]],
    limit: int,
    ends: Set[int],
    before_again: Callable[[Remote], None],
) -> list[tuple[list[int], list[float]]]:
    """The tokens of several answers, ends included, and the log-probability of each."""
    body = _body(remote, prompts, limit, ends) | {"logprobs": 0}
    for tries in itertools.count(1):
        try:
            with _understood(remote):
                reply = reply_of(remote.server, COMPLETIONS, body)
            return _read(remote, reply, len(prompts), limit)
        except Lost as lost:
            wait_after(remote.server, lost, tries)
            before_again(remote)
    raise AssertionError  # a count has no end


def _read(
    remote: Remote, reply: Mapping[str, Any], count: int, limit: int
) -> list[tuple[list[int], list[float]]]:
    try:
        choices = sorted(reply["choices"], key=lambda one: one["index"])
        found = [(one["token_ids"], one["logprobs"]["token_logprobs"]) for one in choices]
        whole = [one["index"] for one in choices] == list(range(count))
        whole &= all(0 < len(tokens) == len(nats) <= limit for tokens, nats in found)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise nonsense(remote.server, "no completion with its tokens and their weights")
    for tokens, nats in found:
        if not all(type(one) is float and math.isfinite(one) for one in nats):
            raise nonsense(remote.server, "log-probabilities that are none")
        _require_tokens(remote, tokens)
    return found


def _streamed(remote: Remote, event: Mapping[str, Any], count: int) -> list[tuple[int, int]]:
    """The tokens of an event, each with its row."""
    try:
        choices = event["choices"]
        pairs = [(one["index"], token) for one in choices for token in one["token_ids"] or ()]
        reasons = {one["finish_reason"] for one in choices} - {None, "stop", "length"}
    except (KeyError, TypeError):
        raise nonsense(remote.server, "an event without tokens") from None
    _require_tokens(remote, [token for _, token in pairs])
    if not {row for row, _ in pairs} <= set(range(count)):
        raise nonsense(remote.server, "an answer to what was not asked")
    if reasons:
        raise Lost(f"the answer was ended: {', '.join(map(str, reasons))}")
    return pairs


def _require_tokens(remote: Remote, tokens: Sequence[object]) -> None:
    words = len(remote.lm.table)
    if not all(type(token) is int and 0 <= token < words for token in tokens):
        raise nonsense(remote.server, "tokens that are not in the vocabulary")


@contextmanager
def _understood(remote: Remote) -> Iterator[None]:
    """Says of a refusal what it means, and what to do.

    Raises:
        EngineUnavailable: it takes no prompt embeddings, or refuses them for another reason.
        WrongModel: its model has another width, or it has no longer the one that was there.
        UsageError: the prompt is longer than what it takes.
    """
    try:
        yield
    except Refused as error:
        url, said = remote.server.url, str(error)
        if FLAG in said:
            raise EngineUnavailable(
                f"the server at {url} takes no prompt embeddings", remedy=f"start it with {FLAG}"
            ) from error
        if "hidden_size" in said or (error.status == 404 and remote.model in said):
            raise WrongModel(f"the server at {url} has another model: {said}", SERVE) from error
        if "context length" in said or "max_model_len" in said:
            raise UsageError(
                f"the prompt is too long for the server at {url}: {said}",
                remedy="a smaller --k, or start it with a larger --max-model-len",
            ) from error
        raise EngineUnavailable(
            f"the server at {url} refuses what it is asked: {said}",
            remedy="is it vLLM 0.11 or newer?",
        ) from error


# --- which model it has


def connected(server: Server, lm: LM) -> Remote:
    """The server as an engine, once it has answered the probe as `lm` does.

    Raises:
        WrongModel: it has another model.
        EngineUnavailable, PermissionRefused: see `wire` and `_understood`.
    """
    for tries in itertools.count(1):
        try:
            reply = reply_of(server, MODELS, None)
            break
        except Lost as lost:
            wait_after(server, lost, tries)
        except Refused as error:
            raise nonsense(server, f"{MODELS}: {error}") from error
    try:
        name, context = reply["data"][0]["id"], reply["data"][0]["max_model_len"]
    except (KeyError, TypeError, IndexError):
        name, context = None, None
    if not isinstance(name, str) or type(context) is not int:
        raise nonsense(server, f"{MODELS} names no model with its length")
    remote = Remote(server, lm, name, min(context, lm.context), secrets.token_urlsafe(32))
    require_same(remote)
    return remote


def require_same(remote: Remote) -> None:
    """Refuses a server whose answer to the probe our model would not have given.

    Its tokens are fed to our model: each has to get the log-probability that the server gave it.

    Raises:
        WrongModel: by how much they differ.

    Cost: one forward pass of ours over the probe and its answer.
    """
    lm, words = remote.lm, frame(remote.lm)
    prompt = inject(lm, words, [lm.encode(PASSAGE)], lm.encode(QUESTION))
    ((tokens, nats),) = _answers(remote, [prompt], PROBED, frozenset(), lambda _: None)
    away = distance(lm, prompt, tokens, nats)
    if len(tokens) < PROBED or not away <= TOLERANCE:
        raise WrongModel(
            f"the model {remote.model} of the server at {remote.server.url} is not the one here, "
            f"with its reader: their log-probabilities are {away:.2f} nats apart "
            f"(at most {TOLERANCE})",
            remedy=SERVE,
        )


@torch.inference_mode()
def distance(
    lm: LM, prompt: Float[Tensor, "S d"], tokens: Sequence[int], nats: Sequence[float]
) -> float:
    """How far the log-probabilities that `tokens` were given are from ours, in nats a token."""
    row = torch.cat([prompt, lm.embed(list(tokens[:-1]))])
    logits = lm.logits(lm.hidden(row[None])[0, len(prompt) - 1 :])  # [T, V]
    ours = logits.log_softmax(-1)[range(len(tokens)), list(tokens)]
    return float((ours - torch.tensor(nats, device=ours.device)).abs().mean())
