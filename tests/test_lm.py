"""The frozen LM: what it encodes, and what is refused at loading.

Also that a cached and padded decode is the same LM.
"""

import json
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rag_memtok import config
from rag_memtok.errors import (
    DeviceUnavailable,
    InputRefused,
    ModelUnavailable,
    OutOfMemory,
    UsageError,
)
from rag_memtok.model import lm, precision
from rag_memtok.model.device import keep_freed, side_by_side
from rag_memtok.model.folders import hash_files
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.lm import FAMILIES
from rag_memtok.model.precision import reference_profile
from rag_memtok.retrieval.embedder import load_embedder

CLOSE = 1e-4


# --- words


@given(text=st.text())
def test_any_text_comes_back(toy_lm, text):
    assert toy_lm.decode(toy_lm.encode(text)) == text


@given(before=st.text(max_size=5), name=st.sampled_from(toy.SPECIAL), after=st.text(max_size=5))
def test_a_control_word_in_a_text_is_text(toy_lm, before, name, after):
    text = before + name + after
    tokens = toy_lm.encode(text)
    assert not set(tokens) & set(range(len(toy.SPECIAL)))
    assert toy_lm.decode(tokens) == text


def test_a_control_word_in_our_own_words_is_a_control_word(toy_lm):
    assert toy_lm.encode_frame("<|begin_of_text|><|eot_id|>") == [1, 5]
    assert (toy_lm.bos, toy_lm.eos) == (1, 0)
    assert toy_lm.stop_tokens == {0}


def test_every_end_of_the_generation_settings_stops_an_answer():
    one = toy.lm_of()
    one.model.generation_config.eos_token_id = [0, 5]
    assert one.stop_tokens == {0, 5}


# --- running


def rows_of(one, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, one.width, generator=generator) * 0.1 for length in lengths]


def test_a_cached_decode_is_the_full_forward_pass(any_lm):
    (prompt,) = rows_of(any_lm, [17])
    tokens = [9, 30, 200, 41]
    run = KVDecoder(any_lm, [prompt])
    found = [run.logits[0]] + [run.feed([token])[0] for token in tokens]
    with torch.inference_mode():
        whole = any_lm.logits(any_lm.hidden(torch.cat([prompt, any_lm.embed(tokens)])[None]))[0]
        built_in = any_lm.model(
            inputs_embeds=torch.cat([prompt, any_lm.embed(tokens)])[None]
        ).logits[0]
    assert torch.allclose(torch.stack(found), whole[len(prompt) - 1 :], atol=CLOSE)
    assert torch.allclose(whole, built_in, atol=CLOSE)


@given(lengths=st.lists(st.integers(1, 18), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_a_row_of_a_padded_batch_is_the_row_alone(any_lm, lengths, seed):
    rows = rows_of(any_lm, lengths, seed)
    fed = [[(seed + 7 * row + step) % 300 for row in range(len(rows))] for step in range(3)]
    together = KVDecoder(any_lm, rows)
    batched = [together.logits] + [together.feed(tokens) for tokens in fed]
    for index, row in enumerate(rows):
        alone = KVDecoder(any_lm, [row])
        single = [alone.logits] + [alone.feed([tokens[index]]) for tokens in fed]
        for here, there in zip(batched, single, strict=True):
            assert torch.allclose(here[index], there[0], atol=CLOSE)


@pytest.mark.parametrize("lengths", [[4], [3, 9, 1], [5, 5]])
def test_what_is_shared_is_as_if_it_stood_before_every_row(any_lm, lengths):
    (shared,), rows = rows_of(any_lm, [6], seed=1), rows_of(any_lm, lengths)
    once, each = (
        KVDecoder(any_lm, rows, shared),
        KVDecoder(any_lm, [torch.cat([shared, row]) for row in rows]),
    )
    assert torch.allclose(once.logits, each.logits, atol=CLOSE)
    for tokens in ([9] * len(rows), list(range(len(rows)))):
        assert torch.allclose(once.feed(tokens), each.feed(tokens), atol=CLOSE)


def test_the_input_embeddings_of_tokens_are_those_the_model_uses(any_lm):
    tokens = [1, 70, 300, 8]
    with torch.inference_mode():
        expected = any_lm.model(input_ids=torch.tensor([tokens])).logits[0]
        assert torch.allclose(
            any_lm.logits(any_lm.hidden(any_lm.embed(tokens)[None]))[0], expected, atol=CLOSE
        )


def test_padding_to_the_right_never_reaches_what_is_left_of_it(any_lm):
    one, other = rows_of(any_lm, [5, 9])
    padded = torch.stack([torch.cat([one, one[:4]]), other])
    with torch.inference_mode():
        assert torch.allclose(any_lm.hidden(padded)[0, :5], any_lm.hidden(one[None])[0], atol=CLOSE)


# --- what it is


def test_it_is_frozen_and_its_hash_is_of_its_weights():
    one, same, other = toy.lm_of(seed=0), toy.lm_of(seed=0), toy.lm_of(seed=1)
    assert (
        not any(parameter.requires_grad for parameter in one.model.parameters())
        and not one.model.training
    )
    assert one.identity == same.identity
    assert one.identity.weights_sha256 != other.identity.weights_sha256
    with torch.no_grad():
        same.table[5, 5] += 1e-3
    assert (
        toy.wrap(same.model, same.tokenizer, "x").identity.weights_sha256
        != one.identity.weights_sha256
    )


def test_another_tokenizer_or_chat_template_is_another_identity():
    digests = {
        toy.lm_of(chat=chat).identity.tokenizer_sha256 for chat in (None, toy.CHAT, toy.CHAT + " ")
    }
    assert len(digests) == 3


def test_shape_and_size_are_the_models(any_lm):
    assert (any_lm.width, any_lm.context) == (toy.WIDTH, toy.CONTEXT)
    tied = any_lm.model.get_output_embeddings().weight is any_lm.table
    assert any_lm.is_tied == tied != any_lm.identity.id.endswith("untied")
    stored = sum(value.numel() for value in any_lm.model.state_dict().values())
    assert any_lm.parameters == stored - (any_lm.table.numel() if tied else 0)


# --- the reference profile


def test_the_reference_profile_ends_as_it_began(toy_lm):
    before = toy_lm.model.config._attn_implementation, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(KeyboardInterrupt), reference_profile(toy_lm) as exactly:
            assert exactly.model.config._attn_implementation == "eager"
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyboardInterrupt
        assert (toy_lm.model.config._attn_implementation, torch.get_float32_matmul_precision()) == (
            before[0],
            "medium",
        )
    finally:
        torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("kind", list(toy.MODELS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_another_dtype_is_judged_in_fp32_over_its_own_weights(kind, dtype):
    rounded = toy.lm_of(kind, dtype=dtype)
    widened = toy.MODELS[kind](len(rounded.tokenizer))
    widened.load_state_dict(
        {name: value.float() for name, value in rounded.model.state_dict().items()}
    )
    reference = toy.wrap(widened, rounded.tokenizer, "widened")
    (prompt,) = rows_of(reference, [6])
    with reference_profile(rounded) as exactly:
        assert exactly.table.dtype == torch.float32
        assert torch.allclose(
            KVDecoder(exactly, [prompt]).logits,
            KVDecoder(reference, [prompt]).logits,
            atol=CLOSE,
        )
    assert rounded.table.dtype == dtype


# --- loading


def test_a_folder_gives_the_model_that_was_saved(any_lm, tmp_path):
    any_lm.model.save_pretrained(tmp_path)
    any_lm.tokenizer.save_pretrained(tmp_path)
    loaded = lm.load(config.Model(id=str(tmp_path), device="cpu"))
    (prompt,) = rows_of(any_lm, [5])
    before, after = any_lm.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    assert torch.allclose(
        KVDecoder(loaded, [prompt]).logits, KVDecoder(any_lm, [prompt]).logits, atol=CLOSE
    )
    assert loaded.encode("café <|eot_id|>") == any_lm.encode("café <|eot_id|>")
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_identity_of_a_folder_is_of_its_content_not_of_its_name(tmp_path):
    one, same, other = (
        lm.load(config.Model(id=str(toy.save(tmp_path / str(i), seed=i // 2)))).identity
        for i in (0, 1, 2)
    )
    assert (one.weights_sha256, one.tokenizer_sha256) == (
        same.weights_sha256,
        same.tokenizer_sha256,
    )
    assert one.weights_sha256 != other.weights_sha256


def test_the_embedded_model_loads_without_a_name_and_in_the_dtype_asked_for():
    embedded = lm.load(config.Model(device="cpu", dtype="bfloat16"))
    assert (embedded.identity.id, embedded.identity.dtype, embedded.table.dtype) == (
        "mini",
        "bfloat16",
        torch.bfloat16,
    )


LLAMA_3 = {"rope_theta": 500000.0, "eos_token_id": [0, 5]}
LLAMA_3["rope_scaling"] = {
    "rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip


def hub(folder, name, kind, changes):
    """A hub cache that holds a toy under `name`, its files as the hub's of that class are."""
    snapshot = folder / f"models--{name.replace('/', '--')}" / "snapshots" / "c0ffee"
    edited(toy.save(snapshot, kind=kind), **changes)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("c0ffee")
    # the names of the first checkpoints: no prefix, and a buffer that is no weight
    if kind.startswith("gpt2"):
        weights = {
            key.removeprefix("transformer."): value
            for key, value in load_file(snapshot / "model.safetensors").items()
        }
        save_file(
            weights | {"h.0.attn.bias": torch.ones(1, 1, 8, 8)},
            snapshot / "model.safetensors",
            metadata={"format": "pt"},
        )
        (snapshot / "pytorch_model.bin").write_bytes(b"not looked at")


@pytest.mark.parametrize(
    "name, kind, changes",
    [
        ("openai-community/gpt2", "gpt2", {}),
        ("gpt2", "gpt2", {}),
        ("meta-llama/Llama-3.2-1B", "llama", LLAMA_3),
        ("meta-llama/Llama-3.2-3B-Instruct", "llama", LLAMA_3),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-untied", LLAMA_3),
    ],
)
def test_the_models_of_the_papers_first_table_are_taken_by_their_hub_ids(
    name, kind, changes, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub(tmp_path, name, kind, changes)
    loaded, built = lm.load(config.Model(id=name, device="cpu")), toy.lm_of(kind)
    assert (loaded.identity.id, loaded.is_tied) == (name, built.is_tied)
    before, after = built.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    (prompt,) = rows_of(loaded, [5])
    same = torch.allclose(
        KVDecoder(loaded, [prompt]).logits, KVDecoder(built, [prompt]).logits, atol=CLOSE
    )
    assert same == (not changes), "the rotary scaling of Llama 3 is not heeded"


def test_weights_of_four_bits_need_bitsandbytes(model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="bitsandbytes") as refused:
        lm.load(config.Model(id=str(model_folder), dtype="nf4", device="cpu"))
    assert "--dtype float16" in refused.value.remedy


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_of_four_bits_are_judged_as_the_numbers_they_stand_for(kind, tmp_path):
    pytest.importorskip("bitsandbytes")
    packed = lm.load(config.Model(id=str(toy.save(tmp_path, kind=kind)), dtype="nf4"))
    whole = lm.load(config.Model(id=str(tmp_path), dtype="float32", device=packed.device.type))
    assert packed.parameters == whole.parameters and packed.table.dtype == torch.float16
    with reference_profile(packed) as exactly:
        assert exactly.table.dtype == torch.float32
        wide, narrow = (model.state_dict() for model in (whole.model, exactly.model))
        assert wide.keys() == narrow.keys() and all(
            wide[key].shape == narrow[key].shape for key in wide
        )
        (prompt,) = rows_of(whole, [5])
        prompt = prompt.to(packed.device)
        close = KVDecoder(exactly, [prompt]).logits - KVDecoder(packed, [prompt]).logits
        assert close.abs().max() < 0.1 * KVDecoder(exactly, [prompt]).logits.std()


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(folder, pattern):
    for path in folder.glob(pattern):
        path.unlink()


def pickled(folder):
    without(folder, "*.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lacking(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, error, says",
    [
        (pickled, InputRefused, "pytorch_model.bin"),
        (
            lambda folder: edited(folder, auto_map={"AutoModelForCausalLM": "evil.Model"}),
            InputRefused,
            "code of its own",
        ),
        (lambda folder: edited(folder, model_type="mamba"), ModelUnavailable, "mamba"),
        (lambda folder: without(folder, "*.safetensors"), ModelUnavailable, "safetensors"),
        (lambda folder: without(folder, "config.json"), ModelUnavailable, "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), ModelUnavailable, "config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), ModelUnavailable, "config.json"),
        (
            lambda folder: (folder / "config.json").write_text("[" * 100_000),
            ModelUnavailable,
            "config.json",
        ),
        (lambda folder: edited(folder, hidden_size="x"), ModelUnavailable, "does not load"),
        (lambda folder: edited(folder, num_attention_heads=0), ModelUnavailable, "does not load"),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            ModelUnavailable,
            "does not load",
        ),
        (lambda folder: without(folder, "tokenizer*"), ModelUnavailable, "does not load"),
        (truncated, ModelUnavailable, "does not load"),
        (lacking, ModelUnavailable, "model.layers.1.mlp.up_proj.weight"),
    ],
    ids=[
        "pickle",
        "auto_map",
        "class",
        "no weights",
        "no config",
        "bad config",
        "config of a list",
        "deep config",
        "size of letters",
        "no heads",
        "empty tokenizer",
        "no tokenizer",
        "truncated",
        "lacking",
    ],
)
def test_a_folder_that_cannot_or_must_not_be_loaded(spoil, error, says, tmp_path):
    folder = toy.save(tmp_path / "model")
    spoil(folder)
    with pytest.raises(error, match=says) as refused:
        lm.load(config.Model(id=str(folder)))
    assert refused.value.remedy


ABSENT = [
    "/no/such/folder",
    "./no-such-folder",
    "~/no-such-folder",
    "a/b/c",
    "no-such-owner/no-such-model",
    "nothing",
]


@pytest.mark.parametrize("name", ABSENT)
def test_a_model_that_is_not_there(name):
    with pytest.raises(ModelUnavailable) as refused:
        lm.load(config.Model(id=name))
    assert name in str(refused.value) and "\n" not in str(refused.value) and refused.value.remedy


def test_a_device_that_is_not_there_is_refused_and_not_replaced(model_folder):
    absent = [
        name
        for name, there in (
            ("cuda", torch.cuda.is_available()),
            ("mps", torch.backends.mps.is_available()),
        )
        if not there
    ]
    for name in absent:
        with pytest.raises(DeviceUnavailable, match=name):
            lm.load(config.Model(id=str(model_folder), device=name))


def test_the_threads_asked_for_are_taken(model_folder, take_threads):
    take_threads(1)
    lm.load(config.Model(id=str(model_folder), threads=2))
    assert torch.get_num_threads() == 2


def test_the_families_are_tried():
    assert {toy.lm_of(kind).model.config.model_type for kind in toy.MODELS} == set(FAMILIES)


def test_lean_attention_is_eager_attention(any_lm):
    """The same hidden states and gradients up to rounding, for every model class.

    Heads are grouped or not.
    """
    draft, generator = (
        precision.copy_in_dtype(any_lm, torch.bfloat16),
        torch.Generator().manual_seed(0),
    )
    assert draft.model.config._attn_implementation == "lean"
    inputs, weights = (torch.randn(3, 20, any_lm.width, generator=generator) for _ in range(2))
    found = []
    for name in ("lean", "eager"):
        draft.model.set_attn_implementation(name)
        leaf = (inputs * 0.05).requires_grad_(True)
        hidden = draft.hidden(leaf).float()
        found.append((hidden.detach(), torch.autograd.grad((hidden * weights).sum(), leaf)[0]))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_a_draft_keeps_what_is_computed_in_fp32(toy_lm):
    """Rotary frequencies in bfloat16 would displace a token some hundred positions on."""
    own, drafts = (
        dict(one.model.named_buffers())
        for one in (toy_lm, precision.copy_in_dtype(toy_lm, torch.bfloat16))
    )
    assert own and all(
        torch.equal(drafts[name], value) and drafts[name].dtype == torch.float32
        for name, value in own.items()
    )


def test_freed_memory_is_kept_where_the_c_library_can():
    """On glibc it is asked for; elsewhere nothing happens."""
    assert keep_freed() == (sys.platform == "linux" and platform.libc_ver()[0] == "glibc")


def test_side_by_side_each_has_its_share_of_the_threads_and_answers_come_in_order(take_threads):
    take_threads(4)
    meet = threading.Barrier(2, timeout=60)  # in one thread it would wait for itself

    def share(item):
        meet.wait()
        return item, torch.get_num_threads()

    assert side_by_side(share, ["one", "other"]) == [("one", 2), ("other", 2)]
    assert torch.get_num_threads() == 4
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 4, "a later thread lost its threads"
    assert side_by_side(lambda item: (item, torch.get_num_threads()), ["one"]) == [("one", 4)]
    assert side_by_side(lambda item: torch.get_num_threads(), range(8)) == [1] * 8
    assert side_by_side(str, []) == []


def test_side_by_side_an_error_is_raised_when_all_that_began_have_ended(take_threads):
    take_threads(4)
    begun, ended, failed = threading.Barrier(2, timeout=60), [], threading.Event()

    def work(item):
        begun.wait()
        if item == "bad":
            failed.set()
            raise MemoryError(item)
        assert failed.wait(60)
        ended.append(item)

    with pytest.raises(MemoryError, match="bad"):
        side_by_side(work, ["bad", "good"])
    assert ended == ["good"] and torch.get_num_threads() == 4


COMPILING = """
import torch, toy
from rag_memtok.model import precision
from rag_memtok.errors import UsageError

lm = toy.lm_of("llama")
draft, quick = (precision.low_precision_copy(lm, wish) for wish in ("bfloat16", "compiled"))
for batch, length in ((1, 7), (4, 33)):
    seeded = torch.Generator().manual_seed(length)
    inputs = 0.05 * torch.randn(batch, length, lm.width, generator=seeded)
    expected = draft.hidden(inputs).float()
    assert (quick.hidden(inputs).float() - expected).norm() < 0.02 * expected.norm()
torch.compiler.reset()
torch._inductor.config.cpp.cxx = ("no-such-compiler",)
torch._inductor.config.force_disable_caches = True
try:
    precision.low_precision_copy(lm, "compiled")
except UsageError as error:
    print(error)
"""


@pytest.mark.slow
def test_compiled_layers_are_the_same_layers():
    """For more than one shape, and refused in a sentence where nothing can be compiled.

    In a process without the tests' checks of types.
    """
    run = subprocess.run(
        [sys.executable, "-c", COMPILING], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert run.returncode == 0 and "does not compile here" in run.stdout, (
        run.stdout + run.stderr[-2000:]
    )


def test_a_relative_path_is_the_same_model_from_any_folder(tmp_path, monkeypatch):
    toy.save(tmp_path / "here" / "model")
    monkeypatch.chdir(tmp_path / "here")
    written = lm.load(config.Model(id="model", device="cpu")).identity
    assert written.id == str(tmp_path / "here" / "model") and written.title == "model"
    monkeypatch.chdir(tmp_path)
    assert lm.load(config.Model(id=written.id, device="cpu", recorded=True)).identity == written


def test_what_only_a_store_says_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub(tmp_path, "owner/model", "llama", {})
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        here = lm.load(config.Model(id="owner/model", device="cpu", recorded=True))
        for load in (
            lambda: lm.load(config.Model(id="models/mine", recorded=True)),
            lambda: load_embedder("models/mine", recorded=True),
        ):
            with pytest.raises(ModelUnavailable, match="models/mine.*not on this machine") as told:
                load()
            assert "models/mine" in told.value.remedy
        assert here.identity.id == "owner/model" and not asked
        with pytest.raises(ModelUnavailable):
            lm.load(config.Model(id="models/mine"))
        server.shutdown()
    assert asked  # somebody named it


def test_weights_that_are_not_loaded_are_no_part_of_the_identity(tmp_path):
    folder, words = tmp_path / "model", toy.tokenizer()
    model = toy.llama(len(words))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    weights = folder / "model.safetensors"
    single = lm.load(config.Model(id=str(folder))).identity.weights_sha256
    assert single == hash_files([weights])
    (folder / "extra.safetensors").write_bytes(weights.read_bytes()[:100])
    assert lm.load(config.Model(id=str(folder))).identity.weights_sha256 == single
    weights.unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    found = lm.load(config.Model(id=str(folder))).identity.weights_sha256
    assert len(shards) > 1 and found == hash_files(shards)


def test_memory_that_runs_out_while_a_model_loads_is_called_so(tmp_path, monkeypatch):
    folder = toy.save(tmp_path)

    def greedy(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", greedy)
    with pytest.raises(OutOfMemory, match="does not fit into memory") as refused:
        lm.load(config.Model(id=str(folder)))
    assert refused.value.exit_code == 21
