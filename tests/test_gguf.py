"""GGUF files: converted once, read as any folder is, and refused where they are not whole.

The files are toys written here with the gguf package, as llama.cpp's converter writes them.
"""

import random
import struct
import sys

import gguf as library
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rag_memtok.config import Model
from rag_memtok.errors import InputRefused, ModelUnavailable, RagMemtokError
from rag_memtok.model import gguf, lm
from rag_memtok.model.gguf_header import read_header
from rag_memtok.model.tokenizer import RULES, build_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ċ Ċ", "1 2", "12 3", "Ġ t", "h e", "Ġt he", "' s"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}


def vocabulary():
    tokens = [*SPECIAL, *bytes_to_unicode().values()]
    return tokens + ["".join(merge.split(" ")) for merge in MERGES]


def values(pre="smollm", **changes):
    tokens = vocabulary()
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **changes,
    }


@pytest.fixture(scope="module")
def toy_llama():
    """A Llama whose weights are as a converted one's: rounded to bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()), tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, rms_norm_eps=1e-5, initializer_range=0.2, **SHAPE, **HEADS,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return model.eval()


def paired(weight, heads):
    """Rows of a head as llama.cpp orders them for its rotary embedding."""
    width = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, width, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, pre="smollm", kind=Kind.F32, **extra):
    """Writes `model` as llama.cpp's converter does."""
    one, config = library.GGUFWriter(path, extra.pop("architecture", "llama")), model.config
    one.add_context_length(config.max_position_embeddings)
    one.add_embedding_length(config.hidden_size)
    one.add_block_count(config.num_hidden_layers)
    one.add_feed_forward_length(config.intermediate_size)
    one.add_head_count(config.num_attention_heads)
    one.add_head_count_kv(config.num_key_value_heads)
    one.add_layer_norm_rms_eps(config.rms_norm_eps)
    one.add_rope_freq_base(10000.0)
    one.add_rope_dimension_count(16)
    one.add_vocab_size(config.vocab_size)
    one.add_file_type(3)
    own = values(pre, **extra)
    one.add_tokenizer_model(own["tokenizer.ggml.model"])
    one.add_tokenizer_pre(own["tokenizer.ggml.pre"])
    one.add_token_list(own["tokenizer.ggml.tokens"])
    one.add_token_merges(own["tokenizer.ggml.merges"])
    one.add_token_types(own["tokenizer.ggml.token_type"])
    one.add_bos_token_id(1)
    one.add_eos_token_id(2)
    one.add_chat_template(CHAT)
    if "split.count" in extra:
        one.add_uint16("split.count", extra["split.count"])
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, value in model.model.state_dict().items():
        data = value.numpy()
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            short = names[rest.removesuffix(".weight")]
            data = paired(data, heads[short]) if short in heads else data
            short = f"blk.{number}.{short}.weight"
        else:
            short = {
                "embed_tokens.weight": "token_embd.weight",
                "norm.weight": "output_norm.weight",
            }[name]
        if data.ndim == 2 and kind != Kind.F32:
            one.add_tensor(short, library.quantize(data, kind), raw_dtype=kind)
        else:
            one.add_tensor(short, np.ascontiguousarray(data))
    one.write_header_to_file()
    one.write_kv_data_to_file()
    one.write_tensors_to_file()
    one.close()
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rag-memtok" / "models"


def loaded(path):
    return lm.load(Model(id=str(path), device="cpu", threads=1))


# --- what it becomes


def test_a_file_is_converted_once_and_is_the_same_model(toy_llama, tmp_path, cache):
    file = write(tmp_path / "toy.gguf", toy_llama)
    model = loaded(file)
    tokens = torch.tensor([model.encode("The fan is loud, 12 times.")])
    with torch.inference_mode():
        expected = toy_llama(tokens).logits
        assert torch.equal(model.model(tokens).logits, expected)
    assert model.identity.revision == "toy (Q4_1, dequantised)" and model.is_tied
    assert model.eos == 2 and model.stop_tokens == {2} and model.tokenizer.chat_template == CHAT
    (folder,) = cache.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (tmp_path / "models").mkdir()
    file.rename(tmp_path / "models" / "other.gguf")  # the same bytes, in a folder by themselves
    again = loaded(tmp_path / "models")
    assert again.identity.weights_sha256 == model.identity.weights_sha256
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert gguf.cache_bytes() == sum(path.stat().st_size for path in before)
    assert gguf.drop_cache() > 0 and not cache.exists() and gguf.cache_bytes() == 0


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.F16])
def test_what_is_dequantised_is_what_the_library_says(toy_llama, tmp_path, kind):
    model = loaded(write(tmp_path / f"toy.{kind.name}.gguf", toy_llama, kind=kind))
    rows = toy_llama.model.embed_tokens.weight.detach().numpy()
    told = library.dequantize(library.quantize(rows, kind), kind)
    assert torch.equal(model.table, torch.from_numpy(told).to(torch.bfloat16).float())


def test_several_files_in_a_folder_are_named(toy_llama, tmp_path):
    for name in ("one", "two"):
        write(tmp_path / f"{name}.gguf", toy_llama)
    with pytest.raises(ModelUnavailable, match="2 GGUF files") as caught:
        loaded(tmp_path)
    assert "one.gguf" in caught.value.remedy


# --- the tokenizer

PIECES = {
    "gpt-2": (["Ċ", "Ċ", "1", "."], ["123", "4"]),
    "smollm": (["ĊĊ", "1", "."], ["1", "2", "3", "4"]),
    "llama-bpe": (["ĊĊ", "1", "."], ["123", "4"]),
    "qwen2": (["ĊĊ", "1", "."], ["1", "2", "3", "4"]),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_splits_as_the_model_was_trained(rule):
    tokenizer = build_tokenizer(values(rule))

    def pieces(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)

    assert (pieces("\n\n1."), pieces("1234")) == PIECES[rule]
    assert pieces(" the") == ["Ġthe"] and pieces("<|im_end|>") == ["<|im_end|>"]
    assert "<|im_end|>" not in tokenizer.convert_ids_to_tokens(
        tokenizer("<|im_end|>", split_special_tokens=True).input_ids
    )


def test_a_bos_is_put_before_a_text_only_where_the_file_says_so():
    assert build_tokenizer(values()).encode("x")[0] != 1
    assert build_tokenizer(values(**{"tokenizer.ggml.add_bos_token": True})).encode("x")[0] == 1


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tokenizer.ggml.pre": "viking"}, "'viking'"),
        ({"tokenizer.ggml.model": "llama"}, "'llama'"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.merges": ["ab"]}, "merge"),
    ],
)
def test_what_is_not_known_is_refused_by_its_name(changes, said):
    with pytest.raises(InputRefused, match=said):
        build_tokenizer(values(**changes))


# --- hostile files


@pytest.mark.parametrize(
    "extra, said",
    [
        ({"architecture": "rwkv"}, "'rwkv'"),
        ({"split.count": 3}, "3 parts"),
        ({"tokenizer.ggml.pre": "viking"}, "'viking'"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(toy_llama, tmp_path, cache, extra, said):
    pre = extra.pop("tokenizer.ggml.pre", "smollm")
    with pytest.raises(InputRefused, match=said) as caught:
        loaded(write(tmp_path / "toy.gguf", toy_llama, pre=pre, **extra))
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())  # nothing is left half made


def mutants(data, count, seed, first=0, last=None):
    """`data` with a few bytes changed, cut off, or a number made enormous."""
    drawn = random.Random(seed)
    for _ in range(count):
        bytes_ = bytearray(data)
        place = drawn.randrange(first, last or len(data))
        match drawn.randrange(4):
            case 0:
                bytes_ = bytes_[:place]
            case 1:
                bytes_[place : place + 8] = struct.pack("<Q", drawn.choice([2**63, 2**40, 2**32]))
            case 2:
                bytes_[place] ^= 1 << drawn.randrange(8)
            case 3:
                bytes_[place : place + 4] = drawn.randbytes(4)
        yield bytes(bytes_)


def header_size(data):
    return data.index(b"token_embd.weight")


def test_a_header_that_lies_is_refused_before_a_library_sees_it(toy_llama, tmp_path):
    data = write(tmp_path / "toy.gguf", toy_llama).read_bytes()
    refused = 0
    for number, mutant in enumerate(mutants(data, 300, 1, last=header_size(data) + 2000)):
        (file := tmp_path / f"{number}.gguf").write_bytes(mutant)
        try:
            read_header(file)
        except InputRefused as error:
            refused += 1
            assert "\n" not in str(error) and error.remedy
        file.unlink()
    assert refused > 100
    for data in (b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), b"PK" * 400):
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(InputRefused):
            read_header(tmp_path / "bad.gguf")


# each is a child that imports torch, 1.3 s: `slow` has two shares of the eight that were run once
SHARES = [pytest.param(60, seed, marks=pytest.mark.slow) for seed in range(2, 4)]


@pytest.mark.parametrize(
    ("count", "seed"), [pytest.param(2, 1), pytest.param(4, 1, marks=pytest.mark.slow), *SHARES]
)
def test_a_mutated_file_is_refused_in_a_line_or_is_another_model(
    toy_llama, tmp_path, cache, count, seed
):
    data = write(tmp_path / "toy.gguf", toy_llama).read_bytes()
    within, beyond = header_size(data) + 2000, max(1, count // 24)
    some = [
        *mutants(data, count, seed, last=within),
        *mutants(data, beyond, seed + 100, first=within),
    ]
    for number, mutant in enumerate(some):
        (file := tmp_path / f"{number}.gguf").write_bytes(mutant)
        try:
            folder = gguf.convert(file)
        except RagMemtokError as error:
            assert isinstance(error, InputRefused) and "\n" not in str(error) and error.remedy
        else:
            assert (folder / "model.safetensors").exists()
        file.unlink()
    assert all("." not in folder.name for folder in cache.iterdir())


@pytest.mark.slow
def test_a_template_without_end_is_ended(toy_llama, tmp_path, monkeypatch):
    inner = "{% for i in range(99999) %}" * 4
    monkeypatch.setitem(globals(), "CHAT", inner + "x" + "{% endfor %}" * 4)
    monkeypatch.setattr(gguf, "SECONDS", 12)
    with pytest.raises(InputRefused, match="its conversion"):
        loaded(write(tmp_path / "toy.gguf", toy_llama))


# --- the packaged model


@pytest.fixture
def package(tmp_path, monkeypatch, toy_llama):
    """A package of that name with another file, which must not be imported."""
    folder = tmp_path / "site" / gguf.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.delitem(sys.modules, gguf.PACKAGE)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return write(folder / gguf.FILE, toy_llama)


def test_the_name_means_one_file_and_another_can_be_given_by_its_path(package):
    assert gguf.is_installed() and lm.default_id() == "smollm2"
    with pytest.raises(InputRefused, match="not the file that smollm2 means") as caught:
        loaded("smollm2")
    assert str(package) in caught.value.remedy
    assert loaded(package).identity.revision == "SmolLM2-135M-Instruct (Q4_1, dequantised)"
    assert gguf.PACKAGE not in sys.modules


def test_without_the_package_it_is_said_how_to_get_it():
    assert not gguf.is_installed() and lm.default_id() == "mini"
    with pytest.raises(ModelUnavailable, match="not installed") as caught:
        loaded("smollm2")
    assert gguf.INSTALL in caught.value.remedy


# --- the cache


def test_a_removal_that_was_cut_short_leaves_nothing_that_is_loaded(toy_llama, tmp_path, cache):
    file = write(tmp_path / "one.gguf", toy_llama)
    first = loaded(file)
    (folder,) = cache.iterdir()
    (folder / "converted.json").unlink()  # as far as a kill let it come
    (folder / "model.safetensors").unlink()
    assert loaded(file).identity == first.identity
    assert (folder / "converted.json").is_file()


def test_what_stays_of_the_cache_is_told(cache, command_line):
    code, _, err = command_line("config", "--drop-cache")
    assert code == 0 and "no converted models" in err and "removed" not in err
    cache.mkdir(parents=True)
    (cache / "stray").write_bytes(b"1234")  # no folder of ours
    code, _, err = command_line("config", "--drop-cache")
    assert code == 20 and "4 bytes of converted models stay" in err and str(cache) in err
