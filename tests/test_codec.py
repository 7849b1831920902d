"""Laws of every codec."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory
from rag_memtok.errors import StoreDamaged, UsageError
from rag_memtok.memory.batch import Task
from rag_memtok.memory.codec import CODECS, codec_named
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.reconstruct import decode, judge
from rag_memtok.model.prompts import template_named

vectors = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(width=32, allow_nan=False),
)
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


@each_codec
@given(given_vectors=vectors)
def test_packing_twice_changes_nothing(codec, given_vectors):
    packed = codec.pack(given_vectors)
    back = codec.unpack(packed, given_vectors.shape)
    assert back.shape == given_vectors.shape and back.dtype == np.float32
    assert codec.pack(back) == packed


# How far a number of a memory may be off: as a share of itself, as one of the largest number of its
# row, and at all events.
TOLERANCES = {
    "float32": (0, 0, 0),
    "float16": (2**-11, 2**-24, 2**-24),
    "bfloat16": (2**-8, 0, 2**-24),
    "int8": (0, 0.5001 / 127, 2**-24),
    "int4": (0, 0.501 / 7, 2**-15),
}


@pytest.mark.parametrize("name", CODECS)
@given(
    given_vectors=arrays(
        np.float32, (3, 5), elements=st.floats(-4, 4, width=32, allow_subnormal=False)
    )
)
def test_it_keeps_numbers_of_a_memory_to_its_tolerance(name, given_vectors):
    of_itself, of_its_row, at_least = TOLERANCES[name]
    back = CODECS[name].unpack(CODECS[name].pack(given_vectors), given_vectors.shape)
    largest = np.abs(given_vectors).max(axis=1, keepdims=True)
    assert (
        np.abs(back - given_vectors)
        <= of_itself * np.abs(given_vectors) + of_its_row * largest + at_least
    ).all()


@each_codec
def test_numbers_out_of_range_go_to_its_largest(codec):
    extremes = np.array([[np.inf, -np.inf, 3e38, -3e38]], dtype=np.float32)
    back = codec.unpack(codec.pack(extremes), extremes.shape)
    assert (
        np.isfinite(back).all()
        and (np.sign(back) == np.sign(extremes)).all()
        and (np.abs(back) >= 65504).all()
    )


def test_bfloat16_rounds_as_torch_does():
    bits = (
        np.random.default_rng(0).integers(0, 1 << 32, (500, 64), dtype=np.uint64).astype(np.uint32)
    )
    ties = (np.arange(0x3F80_0000, 0x3F80_0000 + 64 * 0x8000, 0x8000, dtype=np.uint32)).reshape(
        1, 64
    )
    some = np.concatenate([bits, ties]).view(np.float32)
    some[~(np.abs(some) < 3e38)] = 1.0
    back = CODECS["bfloat16"].unpack(CODECS["bfloat16"].pack(some), some.shape)
    assert np.array_equal(back, torch.from_numpy(some).bfloat16().float().numpy())


def test_int8_is_a_scale_a_row_and_then_a_byte_a_number():
    packed = CODECS["int8"].pack(
        np.array([[1.0, -0.25, 0.0], [-254.0, 2.0, 3.0]], dtype=np.float32)
    )
    scales, numbers = np.frombuffer(packed, "<f4", 2), np.frombuffer(packed, np.int8, offset=8)
    assert (
        len(packed) == 14 and np.allclose(scales, [1 / 127, 2.0], rtol=2**-15) and scales[1] == 2.0
    )
    assert numbers.tolist() == [127, -32, 0, -127, 1, 2]


@given(
    rows=st.integers(1, 3),
    width=st.sampled_from([1, 31, 32, 33, 100]),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 9),
)
def test_int4_has_a_scale_for_32_numbers_and_then_half_a_byte_a_number(rows, width, scale, seed):
    some = (scale * np.random.default_rng(seed).normal(size=(rows, width))).astype(np.float32)
    packed = CODECS["int4"].pack(some)
    back = CODECS["int4"].unpack(packed, some.shape)
    step = min(2.0**15, max(np.abs(some).max() / 7, 2.0**-14))
    assert len(packed) == rows * -(-width // 32) * 18
    assert np.abs(back - np.clip(some, -7 * 2**15, 7 * 2**15)).max() <= 0.501 * step * 1.001


@pytest.mark.parametrize("name", ["bfloat16", "int8", "int4"])
def test_what_is_no_number_becomes_zero(name):
    back = CODECS[name].unpack(
        CODECS[name].pack(np.array([[np.nan, 1.0]], dtype=np.float32)), (1, 2)
    )
    assert back[0, 0] == 0 and abs(back[0, 1] - 1) < 2**-10


@pytest.fixture(scope="module")
def written(toy_lm):
    """Two memories of the toy LM.

    "full" has more tokens than its vectors hold in so few steps.
    """
    template = template_named("bare", toy_lm)
    text = tuple(toy_lm.encode("The keeper wrote, 7 March: ¿dónde?"))
    tasks = [Task("text", text, -(-len(text) // 4)), Task("full", tuple(range(10, 58)), 2)]
    return list(
        memorize(toy_lm, template, tasks, Memorize(steps=60, batch=2, seconds_per_chunk=0.0))
    )


@pytest.mark.parametrize("name", CODECS)
def test_a_stored_memory_is_judged_and_decodes_with_its_pins(toy_lm, written, name):
    template, codec = template_named("bare", toy_lm), codec_named(name)
    for memory in written:
        stored = codec.unpack(codec.pack(memory.vectors), memory.vectors.shape)
        judged, verdict = judge(toy_lm, template, Memory(stored), memory.task.tokens, 0.05)
        decoded = decode(toy_lm, template, judged, len(memory.task.tokens) + 1)
        assert verdict.proven and decoded.ended and decoded.tokens == memory.task.tokens
        assert (verdict.kind == "exact") == (verdict.corrections == 0)
        # the full one needs pins, whatever the codec
        assert memory.task.key != "full" or verdict.corrections > 0


def test_what_is_written_for_a_codec_is_exact_as_it_comes_back_from_it(toy_lm):
    template, codec = template_named("bare", toy_lm), CODECS["int4"]
    tasks = [
        Task(str(index), tuple(range(30 + 7 * index, 50 + 7 * index)), 4) for index in range(6)
    ]

    def exact(named: str) -> list[bool]:
        written = memorize(toy_lm, template, tasks, Memorize(seconds_per_chunk=0.0, codec=named))
        stored = [
            (one, codec.unpack(codec.pack(one.vectors), one.vectors.shape)) for one in written
        ]
        return [
            judge(toy_lm, template, Memory(vectors), one.task.tokens, 0.0)[1].kind == "exact"
            for one, vectors in stored
        ]

    assert sum(exact("float32")) <= 4, "four bits break nothing here: the test says nothing"
    assert all(exact("int4"))


def test_float32_keeps_every_bit():
    some = np.random.default_rng(0).standard_normal((4, 7), dtype=np.float32)
    assert np.array_equal(CODECS["float32"].unpack(CODECS["float32"].pack(some), some.shape), some)


@each_codec
@pytest.mark.parametrize(
    "change", [lambda packed: packed[:-1], lambda packed: packed + b"\0", lambda packed: b""]
)
def test_a_wrong_number_of_bytes_is_damage(codec, change):
    packed = codec.pack(np.ones((2, 3), dtype=np.float32))
    with pytest.raises(StoreDamaged, match=r"\(2, 3\)"):
        codec.unpack(change(packed), (2, 3))


def test_an_unknown_codec_is_refused_with_those_there_are():
    assert all(codec_named(name) is codec for name, codec in CODECS.items())
    with pytest.raises(UsageError, match="int3.*float32.*float16"):
        codec_named("int3")
