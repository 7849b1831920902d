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
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.errors import EngineUnavailable, StoreDamaged, UsageError, WrongModel
from rag_memtok.model.copying import Copied
from rag_memtok.model.inject import Generation, inject, never
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import QAPrompt, qa_prompt
from rag_memtok.model.wire import (
    Lost,
    Refused,
    Server,
    bad_reply,
    request_json,
    stream_events,
    wait_after,
)

COMPLETIONS = "/v1/completions"
FLAG = "--enable-prompt-embeds"
SERVE = "rag-memtok export-reader DIR writes the model to serve, and says how"
PASSAGE = (
    "The mill at Brackwater was built in 1874 and burnt down in 1902. Its wheel, 6.2 metres wide, "
    "turned 9 times a minute; the miller, Ines Halloran, kept 14 geese."
)
QUESTION = "When did the mill burn down, and who was the miller?"
PROBE_TOKENS = 16  # tokens
TOLERANCE = 0.1  # nats, the mean over its tokens: benchmarks/vllm.md has what was measured


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RemoteEngine:
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
        frame: QAPrompt,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        ended: Callable[[int], bool] = never,
        copied: Sequence[Copied | None] = (),
    ) -> Iterator[tuple[int, int]]:
        """The greedy answers as they are made: (row, token), at most `limit` tokens each.

        They are one request. A server that was lost on the way is probed and asked again. Nothing
        keeps it to a text that answers are `copied` from.

        Raises:
            EngineUnavailable, PermissionRefused, UsageError: see `wire` and `_explain_refusals`.
            WrongModel: what came back is another model.
        """
        generated: list[list[int]] = [[] for _ in prompts]
        for tries in itertools.count(1):
            try:
                for row, token in self._stream_rest(frame, prompts, limit, generated, ended):
                    generated[row].append(token)
                    yield row, token
                return
            except Lost as lost:
                wait_after(self.server, lost, tries)
                require_same(self)

    def _stream_rest(
        self,
        frame: QAPrompt,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        generated: Sequence[Sequence[int]],
        ended: Callable[[int], bool],
    ) -> Iterator[tuple[int, int]]:
        """The tokens after those that were `generated` before: (row, token)."""
        ends, before = self.lm.stop_tokens | {frame.end}, [tuple(row) for row in generated]
        body = _body(self, prompts, limit, ends) | {"stream": True}
        places, over = [0] * len(prompts), set[int]()
        with _explain_refusals(self):
            for event in stream_events(self.server, COMPLETIONS, body):
                for row, token in _parse_event(self, event, len(prompts)):
                    if row in over or ended(row):
                        continue
                    if token in ends:
                        over.add(row)
                        continue
                    place = places[row]
                    if place >= limit or before[row][place : place + 1] not in ((), (token,)):
                        raise bad_reply(self.server, "an answer that is not the one it began")
                    places[row] += 1
                    if place >= len(before[row]):
                        yield row, token
                if all(row in over or ended(row) for row in range(len(prompts))):
                    return

    def batch(
        self,
        frame: QAPrompt,
        prompts: Sequence[Float[Tensor, "_ d"]],
        limit: int,
        ended: Callable[[int], bool] = never,
        copied: Sequence[Copied | None] = (),
    ) -> list[Generation]:
        """The greedy answers to several prompts, whole, in one request: it runs to its end.

        Raises:
            EngineUnavailable, ...: see `rows`.
        """
        ends = self.lm.stop_tokens | {frame.end}
        return [
            Generation(
                tuple(itertools.takewhile(lambda token: token not in ends, tokens)),
                math.fsum(logprobs) / len(logprobs),
            )
            for tokens, logprobs in complete(self, prompts, limit, ends, require_same)
        ]


# --- the wire


def _body(
    remote: RemoteEngine, prompts: Sequence[Float[Tensor, "_ d"]], limit: int, ends: Set[int]
) -> dict[str, object]:
    """A greedy request; what the served folder may have as defaults is said, too."""
    return {
        "model": remote.model,
        "prompt_embeds": [_serialize(prompt) for prompt in prompts],
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


def _serialize(prompt: Float[Tensor, "S d"]) -> str:
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


def complete(
    remote: RemoteEngine,
    prompts: Sequence[Float[Tensor, "_ d"]],
    limit: int,
    ends: Set[int],
    before_again: Callable[[RemoteEngine], None],
) -> list[tuple[list[int], list[float]]]:
    """The tokens of several answers, ends included, and the log-probability of each."""
    body = _body(remote, prompts, limit, ends) | {"logprobs": 0}
    for tries in itertools.count(1):
        try:
            with _explain_refusals(remote):
                reply = request_json(remote.server, COMPLETIONS, body)
            return _parse_reply(remote, reply, len(prompts), limit)
        except Lost as lost:
            wait_after(remote.server, lost, tries)
            before_again(remote)
    raise AssertionError  # a count has no end


def _parse_reply(
    remote: RemoteEngine, reply: Mapping[str, Any], count: int, limit: int
) -> list[tuple[list[int], list[float]]]:
    try:
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        answers = [
            (choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices
        ]
        is_complete = [choice["index"] for choice in choices] == list(range(count))
        is_complete &= all(
            0 < len(tokens) == len(logprobs) <= limit for tokens, logprobs in answers
        )
    except (KeyError, TypeError):
        is_complete = False
    if not is_complete:
        raise bad_reply(remote.server, "no completion with its tokens and their weights")
    for tokens, logprobs in answers:
        if not all(type(choice) is float and math.isfinite(choice) for choice in logprobs):
            raise bad_reply(remote.server, "log-probabilities that are none")
        _require_tokens(remote, tokens)
    return answers


def _parse_event(
    remote: RemoteEngine, event: Mapping[str, Any], count: int
) -> list[tuple[int, int]]:
    """The tokens of an event, each with its row."""
    try:
        choices = event["choices"]
        pairs = [
            (choice["index"], token) for choice in choices for token in choice["token_ids"] or ()
        ]
        reasons = {choice["finish_reason"] for choice in choices} - {None, "stop", "length"}
    except (KeyError, TypeError):
        raise bad_reply(remote.server, "an event without tokens") from None
    _require_tokens(remote, [token for _, token in pairs])
    if not {row for row, _ in pairs} <= set(range(count)):
        raise bad_reply(remote.server, "an answer to what was not asked")
    if reasons:
        raise Lost(f"the answer was ended: {', '.join(map(str, reasons))}")
    return pairs


def _require_tokens(remote: RemoteEngine, tokens: Sequence[object]) -> None:
    vocab = len(remote.lm.table)
    if not all(type(token) is int and 0 <= token < vocab for token in tokens):
        raise bad_reply(remote.server, "tokens that are not in the vocabulary")


@contextmanager
def _explain_refusals(remote: RemoteEngine) -> Iterator[None]:
    """Says of a refusal what it means, and what to do.

    Raises:
        EngineUnavailable: it takes no prompt embeddings, or refuses them for another reason.
        WrongModel: its model has another width, or it has no longer the one that was there.
        UsageError: the prompt is longer than what it takes.
    """
    try:
        yield
    except Refused as error:
        url, reason = remote.server.url, str(error)
        if FLAG in reason:
            raise EngineUnavailable(
                f"the server at {url} takes no prompt embeddings", remedy=f"start it with {FLAG}"
            ) from error
        if "hidden_size" in reason or (error.status == 404 and remote.model in reason):
            raise WrongModel(f"the server at {url} has another model: {reason}", SERVE) from error
        if "context length" in reason or "max_model_len" in reason:
            raise UsageError(
                f"the prompt is too long for the server at {url}: {reason}",
                remedy="a smaller --k, or start it with a larger --max-model-len",
            ) from error
        raise EngineUnavailable(
            f"the server at {url} refuses what it is asked: {reason}",
            remedy="is it vLLM 0.11 or newer?",
        ) from error


# --- which model it has


def require_same(remote: RemoteEngine) -> None:
    """Refuses a server whose answer to the probe our model would not have given.

    Its tokens are fed to our model: each has to get the log-probability that the server gave it.

    Raises:
        WrongModel: by how much they differ.

    Cost: one forward pass of ours over the probe and its answer.
    """
    lm = remote.lm
    prompt = inject(lm, qa_prompt(lm), [lm.encode(PASSAGE)], lm.encode(QUESTION))
    ((tokens, logprobs),) = complete(remote, [prompt], PROBE_TOKENS, frozenset(), lambda _: None)
    difference = distance(lm, prompt, tokens, logprobs)
    if len(tokens) < PROBE_TOKENS or not difference <= TOLERANCE:
        raise WrongModel(
            f"the model {remote.model} of the server at {remote.server.url} is not the one here, "
            f"with its reader: their log-probabilities are {difference:.2f} nats apart "
            f"(at most {TOLERANCE})",
            remedy=SERVE,
        )


@torch.inference_mode()
def distance(
    lm: LM, prompt: Float[Tensor, "S d"], tokens: Sequence[int], logprobs: Sequence[float]
) -> float:
    """Mean distance of the server's log-probabilities of `tokens` from ours, in nats a token."""
    row = torch.cat([prompt, lm.embed(list(tokens[:-1]))])
    logits = lm.logits(lm.hidden(row[None])[0, len(prompt) - 1 :])  # [T, V]
    ours = logits.log_softmax(-1)[range(len(tokens)), list(tokens)]
    return float((ours - torch.tensor(logprobs, device=ours.device)).abs().mean())
