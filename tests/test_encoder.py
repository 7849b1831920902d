"""Readable vectors: what they are at first, what reaches them, and the file of their encoder."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import toy

from rag_memtok.errors import InputRefused, UsageError, WrongModel
from rag_memtok.memory import encoder as encoders
from rag_memtok.memory.encoder import (
    TOLERANCE,
    distance,
    encode,
    encode_readable,
    load_encoder,
    new_encoder,
    pack,
    set_parameters,
    unpack_readable,
)
from rag_memtok.model.lm import LM

TEXT = "The lamp of the harbour was repaired in March, and its keeper wrote a letter."
OTHER = "La empanada lleva cebolla, huevo y aceitunas."


@pytest.fixture(params=["llama", "qwen3", "gpt2"])
def lm(request):
    return toy.lm_of(request.param)


def made(lm, longest=4, planned=False):
    """An encoder whose weights are no longer those of the start."""
    encoder = new_encoder(lm, 1, 4, longest, seed=1)
    if planned:
        costs = torch.rand(len(lm.table), generator=torch.Generator().manual_seed(3)) ** 2
        encoder = replace(encoder, costs=(20 * costs).half())
    draw = torch.Generator().manual_seed(2)
    values = {
        name: torch.randn(one.shape, generator=draw) * 0.05
        for name, one in encoder.parameters.items()
    }
    set_parameters(encoder, values)
    return encoder


def alone(encoder, tokens, window):
    with torch.no_grad():
        return encode(encoder, [tokens], encoder.plan([tokens], window))[0]


@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_before_training_a_vector_is_the_scaled_sum_of_its_tokens(lm, window):
    tokens = lm.encode(TEXT)
    vectors = alone(new_encoder(lm, 1, 4, 4, seed=0), tokens, window)
    assert len(vectors) == math.ceil(len(tokens) / window)
    for place, vector in enumerate(vectors):
        own = lm.embed(tokens[place * window : (place + 1) * window])
        torch.testing.assert_close(vector, own.sum(0) / math.sqrt(len(own)))


def test_a_token_that_is_alone_is_itself(lm):
    tokens = lm.encode(TEXT)
    vectors = alone(made(lm), tokens, 1)
    torch.testing.assert_close(vectors, lm.embed(tokens).float())


def test_an_encoder_of_format_1_projects_a_token_that_is_alone_too(lm, tmp_path):
    before, tokens = replace(made(lm), projects_alone=True), lm.encode(TEXT)
    (tmp_path / "encoder").write_bytes(pack(before))
    loaded = load_encoder(lm, tmp_path / "encoder")
    assert loaded.projects_alone
    with torch.no_grad():
        states = before.lm.hidden(lm.embed([lm.eos if lm.bos is None else lm.bos, *tokens])[None])
        wanted = lm.embed(tokens) + states[0, 1:] @ before.projection[0]
    torch.testing.assert_close(alone(loaded, tokens, 1), wanted, rtol=1e-2, atol=1e-2)


def test_a_vector_holds_what_is_projected_from_each_place_of_its_window(lm):
    encoder, tokens = made(lm, planned=True), lm.encode(TEXT)
    windows, start = encoder.plan([tokens], 3)[0], 0
    assert len(windows) == math.ceil(len(tokens) / 3) and set(windows) >= {1, 4}
    with torch.no_grad():
        vectors = alone(encoder, tokens, 3)
        first = lm.eos if lm.bos is None else lm.bos
        states = encoder.lm.hidden(lm.embed([first, *tokens])[None])[0, 1:]
        for vector, size in zip(vectors, windows, strict=True):
            wanted = lm.embed(tokens[start : start + size]).sum(0) / math.sqrt(size)
            for place in range(size) if size > 1 else ():
                wanted = wanted + states[start + place] @ encoder.projection[place]
            torch.testing.assert_close(vector, wanted, rtol=1e-4, atol=1e-5)
            start += size


def test_what_stands_beside_or_behind_a_text_does_not_reach_its_vectors(lm):
    encoder, long, short = made(lm), lm.encode(TEXT), lm.encode(OTHER)
    with torch.no_grad():
        together = encode(encoder, [short, long], encoder.plan([short, long], 4))
    torch.testing.assert_close(together[0], alone(encoder, short, 4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1], alone(encoder, long, 4), rtol=1e-4, atol=1e-5)
    first = alone(encoder, long[:8], 4)
    torch.testing.assert_close(first, together[1][:2], rtol=1e-4, atol=1e-5)


def test_one_other_token_moves_its_own_vector_far_and_none_before_it(lm):
    encoder, tokens = made(lm), lm.encode(TEXT)
    changed = [*tokens]
    changed[9] = tokens[9] + 1 if tokens[9] + 1 < len(lm.table) else tokens[9] - 1
    one, other = alone(encoder, tokens, 4), alone(encoder, changed, 4)
    apart = (one - other).norm(dim=1) / one.norm(dim=1)
    assert float(apart[:2].max()) < 1e-4 and float(apart[2]) > 0.05


def test_every_part_of_it_is_reached_by_a_gradient(lm):
    encoder = made(lm)
    tokens = lm.encode(TEXT)
    encode(encoder, [tokens], encoder.plan([tokens], 4))[0].square().sum().backward()
    assert all(float(one.grad.norm()) > 0 for one in encoder.parameters.values())
    assert lm.table.grad is None


@pytest.mark.parametrize("planned", [False, True])
def test_its_file_gives_it_back(lm, planned, tmp_path):
    encoder = made(lm, planned=planned)
    (tmp_path / "e").write_bytes(pack(encoder))
    again = load_encoder(lm, tmp_path / "e")
    assert not again.projects_alone
    assert again.max_window == 4 and len(again.digest) == 64
    wanted = alone(encoder, lm.encode(TEXT), 4)
    torch.testing.assert_close(alone(again, lm.encode(TEXT), 4), wanted, rtol=1e-2, atol=1e-3)
    assert pack(again) == (tmp_path / "e").read_bytes()
    assert again.plan([lm.encode(TEXT)], 3) == encoder.plan([lm.encode(TEXT)], 3)
    assert not any(one.requires_grad for one in again.parameters.values())


def test_an_encoder_of_another_model_is_refused(tmp_path):
    (tmp_path / "e").write_bytes(pack(made(toy.lm_of("llama"))))
    with pytest.raises(WrongModel, match="of another model"):
        load_encoder(toy.lm_of("qwen3"), tmp_path / "e")


def test_what_is_no_encoder_is_refused(tmp_path):
    lm = toy.lm_of("llama")
    whole = pack(made(lm))
    short = pack(replace(made(lm), costs=torch.ones(len(lm.table) - 1)))
    for content in (
        b"",
        b"{}",
        short,
        whole[:-7],
        whole.replace(encoders.DESCRIBED.encode(), b"x" * 18),
    ):
        (tmp_path / "e").write_bytes(content)
        with pytest.raises(InputRefused, match="is no encoder"):
            load_encoder(lm, tmp_path / "e")
    with pytest.raises(InputRefused, match="is no encoder"):
        load_encoder(lm, tmp_path / "nothing")


@pytest.mark.parametrize("planned", [False, True])
def test_what_is_stored_is_compared_with_what_the_text_gives(lm, planned, tmp_path):
    (tmp_path / "e").write_bytes(pack(made(lm, planned=planned)))
    encoder, tokens = load_encoder(lm, tmp_path / "e"), lm.encode(TEXT)
    stored = encode_readable(encoder, tokens, 4)
    assert (stored.encoder, stored.window) == (encoder.digest, 4)
    assert unpack_readable(stored).shape == stored.shape == (math.ceil(len(tokens) / 4), lm.width)
    assert distance(encoder, tokens, stored) < TOLERANCE / 5
    for place in range(len(tokens)):
        changed = [*tokens]
        changed[place] = tokens[place] % 300 + 20
        assert distance(encoder, changed, stored) > 10 * TOLERANCE, place
    assert distance(encoder, tokens[:-4], stored) == math.inf
    swapped = [*tokens[4:8], *tokens[:4], *tokens[8:]]
    assert distance(encoder, swapped, stored) > TOLERANCE
    broken = replace(stored, packed=b"\xff" * len(stored.packed))
    assert distance(encoder, tokens, broken) == math.inf


def test_the_model_in_another_dtype_has_the_same_vectors_and_stays_as_it_is(tmp_path):
    lm = toy.lm_of("llama")
    (tmp_path / "e").write_bytes(pack(made(lm)))
    stored = encode_readable(load_encoder(lm, tmp_path / "e"), lm.encode(TEXT), 4)
    half = LM(copy.deepcopy(lm.model).bfloat16(), lm.tokenizer, lm.identity)
    other = load_encoder(half, tmp_path / "e")
    assert other.lm.table.dtype == torch.float32 and half.table.dtype == torch.bfloat16
    # the toy's weights are rounded then, which a model of bfloat16 tensors spares
    assert distance(other, lm.encode(TEXT), stored) < 0.05


def test_a_window_the_encoder_was_not_made_for_is_refused(lm, tmp_path):
    with pytest.raises(UsageError, match="--readable is 5; valid: 1 to 4"):
        encode_readable(made(lm), lm.encode(TEXT), 5)
