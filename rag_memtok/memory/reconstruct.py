"""Memory -> tokens -> Verdict: the one judge.

Nothing is called exact that this file has not decoded.

`judge` feeds the true tokens and pins where the argmax fails or its margin is too small; `decode`
feeds its own. At an unpinned position the context of both is the text so far, so that the second is
exact by induction if the first was right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count

import torch
from jaxtyping import Float
from torch import Tensor

from rag_memtok.datatypes import Memory, Pin, Record, Verdict, VerdictKind
from rag_memtok.errors import StoreDamaged
from rag_memtok.memory.codec import CODECS, codec_named
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.lm import LM
from rag_memtok.model.precision import reference_profile
from rag_memtok.model.prompts import Template

# logits: one pass moves a margin by less from what cached steps give (benchmarks/numerics.py)
ONE_PASS_ERROR = 2e-3
ROWS = 128  # positions whose logits are held at once
ASSISTED_SHARE = 0.05  # more correction pins than this share of the tokens: not called a memory


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded memory: its tokens, whether the end token came, and the smallest margin.

    That margin is of an argmax that was not pinned (logits; inf if none).

    `corrections` are the positions where a pin gave what the argmax did not.
    """

    tokens: tuple[int, ...]
    ended: bool
    margin: float
    corrections: tuple[int, ...] = ()


def build_prompt(lm: LM, template: Template, memory: Memory) -> Float[Tensor, "_ d"]:
    """The input embeddings after which the text begins."""
    vectors = torch.from_numpy(memory.vectors).to(lm.device, lm.table.dtype)
    return torch.cat([lm.embed(template.prefix), vectors, lm.embed(template.suffix)])


def require_decodable(lm: LM, template: Template, record: Record) -> None:
    """Refuses a record that `lm` cannot decode.

    Right checksums do not rule it out: whoever makes a store makes those, too.

    Raises:
        StoreDamaged: an unknown codec, a wrong width, a pin that is no token of the LM, more tokens
            than its context holds.
    """
    (rows, width), vocab = record.shape, len(lm.table)
    faults = {
        f"it is packed as {record.codec!a}; there are {', '.join(CODECS)}": record.codec
        not in CODECS,
        f"it has {rows} vectors of {width}; those of this model are of {lm.width}": rows < 1
        or width != lm.width,
        f"a pin is none of the {vocab} tokens": any(
            pin.position < 0 or not 0 <= pin.token < vocab for pin in record.pins
        ),
        f"{record.tokens} tokens do not fit into the context": not 0
        <= record.tokens
        <= lm.context - template.overhead - rows,
    }
    for fault, is_present in faults.items():
        if is_present:
            raise StoreDamaged(
                fault, remedy="rag-memtok rm the file that it is of, then ingest it again"
            )


def kind_of(corrections: int, tokens: int) -> VerdictKind:
    """Exact without correction pins, pinned up to 5 % of the tokens, assisted above."""
    if not corrections:
        return "exact"
    return "pinned" if corrections <= ASSISTED_SHARE * (tokens + 1) else "assisted"


def judge(
    lm: LM, template: Template, memory: Memory, tokens: Sequence[int], tau: float
) -> tuple[Memory, Verdict]:
    """Judges `memory`: decodes it with the true `tokens` fed.

    Returns it with the pins it needs, and the verdict.

    Args:
        memory: as read back from its packed bytes; pins it has are ignored.
        tau: logits; a right token that leads by this or less gets a safety pin.

    Cost: one pass in fp32; T + 1 cached steps more where it leaves a position open.
    """
    pins: list[Pin] = []
    smallest = float("inf")
    token_margins = margins_in_one_pass(lm, template, memory, tokens)
    if not all(is_decided(margin, 0.0, tau) for margin in token_margins):
        token_margins = margins(lm, template, memory, tokens)
    for position, (token, margin) in enumerate(
        zip([*tokens, template.end], token_margins, strict=True)
    ):
        if margin <= tau:
            pins.append(Pin(position, token, "correction" if margin <= 0 else "safety"))
        else:
            smallest = min(smallest, margin)
    corrections = sum(pin.kind == "correction" for pin in pins)
    verdict = Verdict(
        kind_of(corrections, len(tokens)),
        len(tokens),
        corrections,
        len(pins) - corrections,
        smallest,
    )
    return Memory(memory.vectors, tuple(pins)), verdict


def verdict_of(decoded: Decoded, pins: Sequence[Pin]) -> Verdict:
    """The verdict that a right decode gives of its memory here, whatever was stored of it.

    Of the pins used, those that were needed are corrections.

    On another machine than the writer's a token with a safety pin may not be the argmax any more.
    Then the pin did what it is for, and the memory, exact where it was written, is pinned there:
    lossless as before, and called no more than it is.
    """
    tokens, corrections = len(decoded.tokens), len(decoded.corrections)
    used = len({pin.position for pin in pins if pin.position <= tokens})
    return Verdict(
        kind_of(corrections, tokens), tokens, corrections, used - corrections, decoded.margin
    )


def margins(lm: LM, template: Template, memory: Memory, tokens: Sequence[int]) -> tuple[float, ...]:
    """The margin of each of `tokens`, and of the end token after them, in logits.

    Each is taken with the tokens before it fed, in the reference profile.

    Cost: T + 1 cached steps at batch 1 in fp32.
    """
    token_margins = []
    with reference_profile(lm) as exactly:
        decoder = KVDecoder(exactly, [build_prompt(exactly, template, memory)])
        for token in tokens:
            token_margins.append(token_margin(decoder.logits[0], token))
            decoder.feed([token])
        token_margins.append(token_margin(decoder.logits[0], template.end))
    return tuple(token_margins)


def margins_in_one_pass(
    lm: LM, template: Template, memory: Memory, tokens: Sequence[int]
) -> tuple[float, ...]:
    """`margins` in one pass over the whole text, within ONE_PASS_ERROR of them.

    Cost: one forward pass in fp32 over prompt and text.
    """
    token_margins: list[float] = []
    targets = torch.tensor([*tokens, template.end], device=lm.device)
    with reference_profile(lm) as exactly, torch.inference_mode():
        start = build_prompt(exactly, template, memory)
        text = exactly.embed(list(tokens))
        hidden = exactly.hidden(torch.cat([start, text])[None])[0, len(start) - 1 :]  # [T + 1, d]
        for states, target_ids in zip(hidden.split(ROWS), targets.split(ROWS), strict=True):
            logits = exactly.logits(states)  # [ROWS, V]
            target_logits = logits.gather(1, target_ids[:, None])
            rival_logits = logits.scatter(1, target_ids[:, None], float("-inf")).amax(1)
            token_margins += (
                (target_logits[:, 0] - rival_logits)
                .nan_to_num(float("-inf"), float("inf"))
                .tolist()
            )
    return tuple(token_margins)


def is_decided(margin: float, *bounds: float) -> bool:
    """Whether one pass decides on which side of each of `bounds` a margin lies."""
    return all(abs(margin - bound) > ONE_PASS_ERROR for bound in bounds)


def decode_drafted(
    lm: LM, template: Template, memory: Memory, draft: Sequence[int], tau: float
) -> Decoded | None:
    """The result of `decode` where one pass shows that it is `draft`; else None.

    Nothing of the draft is believed. At an unpinned position its token has to be the argmax after
    the tokens before it, which were shown to be decoded; at a pinned one the pin counts. A margin
    too near to 0, or the least too near to `tau` (logits), leaves it open, and so does any
    difference.
    Source: speculative decoding, Leviathan et al. 2023, arXiv:2211.17192.

    Cost: one forward pass in fp32 over prompt and draft.
    """
    pins = {pin.position: pin.token for pin in memory.pins}
    expected = [*draft, template.end]
    if template.end in draft or any(
        expected[position] != token for position, token in pins.items() if position < len(expected)
    ):
        return None
    token_margins = margins_in_one_pass(lm, template, memory, draft)
    free = [margin for position, margin in enumerate(token_margins) if position not in pins]
    smallest = min(free, default=float("inf"))
    if smallest <= 0 or not all(is_decided(margin, 0.0) for margin in token_margins):
        return None
    if not is_decided(smallest, tau):
        return None
    corrections = tuple(
        place for place, margin in enumerate(token_margins) if place in pins and margin <= 0
    )
    return Decoded(tuple(draft), True, smallest, corrections)


@torch.inference_mode()
def decodes_to(
    lm: LM, template: Template, memories: Sequence[Memory], drafts: Sequence[Sequence[int]]
) -> list[bool]:
    """Whether each memory decodes to its draft in the LM's own arithmetic, by one pass over all.

    As in `decode_drafted` nothing of a draft is believed, but no verdict hangs on it: in bfloat16
    a right token that leads by little may not be the argmax. False is no proof of a difference.

    Cost: one forward pass over as many rows of the longest prompt and draft.
    """
    if not memories:
        return []
    starts = [build_prompt(lm, template, memory) for memory in memories]
    rows = [
        torch.cat([start, lm.embed(list(draft))])
        for start, draft in zip(starts, drafts, strict=True)
    ]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [B, S, d]
    return [
        _is_argmax(lm, states[len(start) - 1 : len(row)], [*draft, template.end], memory)
        for states, start, row, draft, memory in zip(
            lm.hidden(padded), starts, rows, drafts, memories, strict=True
        )
    ]


def _is_argmax(
    lm: LM, states: Float[Tensor, "T d"], expected: Sequence[int], memory: Memory
) -> bool:
    """Whether each of `expected` is what comes after a state, or pinned there."""
    pins = {pin.position: pin.token for pin in memory.pins}
    if expected[-1] in expected[:-1]:  # the end token: a decode would have ended there
        return False
    said = (lm.raw_logits(part).argmax(-1).tolist() for part in states.split(ROWS))
    return all(
        pins.get(position, token) == wanted
        for position, (token, wanted) in enumerate(
            zip(chain.from_iterable(said), expected, strict=True)
        )
    )


def token_margin(logits: Float[Tensor, " V"], token: int) -> float:
    """The margin of `token` over the best other token, in logits; 0 or less: not the argmax.

    NaN counts as -inf.
    """
    values, token_ids = logits.topk(2)
    rival = values[1] if int(token_ids[0]) == token else values[0]
    difference = float(logits[token] - rival)
    return difference if difference == difference else float("-inf")


def decode(lm: LM, template: Template, memory: Memory, limit: int) -> Decoded:
    """Decodes `memory` greedily from its vectors and pins alone.

    This is in the reference profile, until the end token or `limit` tokens.

    Cost: T + 1 cached steps at batch 1 in fp32.
    """
    pins = {pin.position: pin.token for pin in memory.pins}
    tokens: list[int] = []
    corrections: list[int] = []
    smallest = float("inf")
    with reference_profile(lm) as exactly:
        decoder = KVDecoder(exactly, [build_prompt(exactly, template, memory)])
        for position in count():
            token = pins.get(position)
            if token is None:
                values, token_ids = decoder.logits[0].topk(2)
                token, smallest = int(token_ids[0]), min(smallest, float(values[0] - values[1]))
            elif token_margin(decoder.logits[0], token) <= 0:
                corrections.append(position)
            if token == template.end or position >= limit:
                return Decoded(tuple(tokens), token == template.end, smallest, tuple(corrections))
            tokens.append(token)
            decoder.feed([token])
    raise AssertionError("unreachable: the loop returns")


def decode_batch(
    lm: LM, template: Template, memories: Sequence[Memory], limit: int
) -> list[tuple[int, ...]]:
    """Decodes several memories at once: the fast path.

    The caller checks its result against the hash of the tokens.

    Cost: as many cached steps as the longest text has tokens, each over all rows.
    """
    return [decoded.tokens for decoded in decode_together(lm, template, memories, limit)]


def decode_checked(
    lm: LM,
    template: Template,
    memories: Sequence[Memory],
    lengths: Sequence[int],
    is_right: Callable[[int, Decoded], bool],
) -> list[Decoded]:
    """Decodes several memories at once.

    One that does not come out `is_right` (its index, what came out) is decoded alone, as the judge
    does.

    Args:
        lengths: how many tokens each should have.

    Cost: that of `decode_together`, and of `decode` for each that needs it.
    """
    decoded = decode_together(lm, template, memories, max(lengths, default=0))
    return [
        result
        if is_right(index, result)
        else decode(lm, template, memories[index], lengths[index] + 1)
        for index, result in enumerate(decoded)
    ]


def decode_together(
    lm: LM, template: Template, memories: Sequence[Memory], limit: int
) -> list[Decoded]:
    """`decode` for several memories at once, in the LM's own arithmetic.

    Margins are of each row's own unpinned positions.

    Cost: as many cached steps as the longest text has tokens, each over all rows.
    """
    if not memories:
        return []
    pins = [{pin.position: pin.token for pin in memory.pins} for memory in memories]
    decoder = KVDecoder(lm, [build_prompt(lm, template, memory) for memory in memories])
    texts: list[list[int]] = [[] for _ in memories]
    corrections: list[list[int]] = [[] for _ in memories]
    smallest = [float("inf")] * len(memories)
    open_rows = set(range(len(memories)))
    for position in range(limit + 1):
        values, token_ids = decoder.logits.topk(2)
        row_margins, chosen = (values[:, 0] - values[:, 1]).tolist(), token_ids[:, 0].tolist()
        for row in open_rows:
            if position in pins[row]:
                chosen[row] = pins[row][position]
                if token_margin(decoder.logits[row], chosen[row]) <= 0:
                    corrections[row].append(position)
            else:
                smallest[row] = min(smallest[row], row_margins[row])
        open_rows -= {row for row in open_rows if chosen[row] == template.end}
        if not open_rows or position == limit:
            break
        for row in open_rows:
            texts[row].append(chosen[row])
        decoder.feed(chosen)
    return [
        Decoded(tuple(text), row not in open_rows, smallest[row], tuple(corrections[row]))
        for row, text in enumerate(texts)
    ]


def memory_of(record: Record) -> Memory:
    """The memory as it was judged: read back from its packed bytes."""
    return Memory(codec_named(record.codec).unpack(record.packed, record.shape), record.pins)


def memory_for(lm: LM, template: Template, record: Record) -> Memory:
    """`memory_of`, for a record of a store that may be somebody else's.

    Raises:
        StoreDamaged: it is nothing that `lm` can decode.
    """
    require_decodable(lm, template, record)
    return memory_of(record)
