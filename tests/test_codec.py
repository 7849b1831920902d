"""Laws of every codec."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rag_memtok.codec import CODECS, codec_named
from rag_memtok.errors import StoreDamaged, UsageError

vectors = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(width=32, allow_nan=False))
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


@each_codec
@given(given_vectors=vectors)
def test_packing_twice_changes_nothing(codec, given_vectors):
    packed = codec.pack(given_vectors)
    back = codec.unpack(packed, given_vectors.shape)
    assert back.shape == given_vectors.shape and back.dtype == np.float32
    assert codec.pack(back) == packed


@each_codec
@given(given_vectors=arrays(np.float32, (3, 5), elements=st.floats(-4, 4, width=32)))
def test_it_keeps_numbers_of_a_memory_to_a_thousandth(codec, given_vectors):
    back = codec.unpack(codec.pack(given_vectors), given_vectors.shape)
    assert np.allclose(back, given_vectors, rtol=1e-3, atol=1e-6)


@each_codec
def test_numbers_out_of_range_go_to_its_largest(codec):
    extremes = np.array([[np.inf, -np.inf, 3e38, -3e38]], dtype=np.float32)
    back = codec.unpack(codec.pack(extremes), extremes.shape)
    assert np.isfinite(back).all() and (np.sign(back) == np.sign(extremes)).all() and (np.abs(back) >= 65504).all()


def test_float32_keeps_every_bit():
    some = np.random.default_rng(0).standard_normal((4, 7), dtype=np.float32)
    assert np.array_equal(CODECS["float32"].unpack(CODECS["float32"].pack(some), some.shape), some)


@each_codec
@pytest.mark.parametrize("change", [lambda packed: packed[:-1], lambda packed: packed + b"\0", lambda packed: b""])
def test_a_wrong_number_of_bytes_is_damage(codec, change):
    packed = codec.pack(np.ones((2, 3), dtype=np.float32))
    with pytest.raises(StoreDamaged, match=r"\(2, 3\)"):
        codec.unpack(change(packed), (2, 3))


def test_an_unknown_codec_is_refused_with_those_there_are():
    assert all(codec_named(name) is codec for name, codec in CODECS.items())
    with pytest.raises(UsageError, match="int3.*float32.*float16"):
        codec_named("int3")
