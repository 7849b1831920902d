"""The model to serve: a plain folder that answers as the base does with its adapter on."""

import json
import random
import shlex

import pytest
import random_adapter
import torch
import toy
from small import dials, written
from transformers import AutoTokenizer

from rag_memtok.model import lora, plain
from rag_memtok.model.engine import LocalEngine
from rag_memtok.model.inject import inject
from rag_memtok.model.lm import load
from rag_memtok.model.prompts import qa_prompt
from rag_memtok.packages import sha256_of
from rag_memtok.pipeline import api

QUESTION = "Who is the keeper of the lamp?"


def prompts(lm, count=4):
    draw = torch.Generator().manual_seed(count)
    words = [torch.randint(6, 390, (3 + 4 * row,), generator=draw).tolist() for row in range(count)]
    return [inject(lm, qa_prompt(lm), [one], lm.encode(QUESTION)) for one in words]


def numbers():
    """Texts full of what tokenizers split by rules of their own."""
    draw = random.Random(0)
    yield from ("", " ", "1", "12", "123", "1234567", " 7", "7 ", "3.14159", "1,024.50", "-5e-3")
    yield from ("2026-11-29T07:33:04Z", "0x1F", "IPv6 fe80::1", "\n\n1. 2024\n2) 12", "\t42\r\n")
    yield from (
        "x1y22z333",
        "1st 22nd 333rd",
        "٣٤٥ ४२ ²³ ½ Ⅻ",
        "１２３",
        "don't 'll 12's",
        "<|im_end|>9",
    )
    for _ in range(300):
        signs = draw.choices("0123456789 .,:-/%€$()abcXYZéñ\n\t", k=draw.randint(1, 40))
        yield "".join(signs)


def same_tokens(lm, folder):
    """Whether transformers' own way of loading the folder gives our tokens, for every text."""
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in numbers():
        plainly = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert plainly == lm.encode(text), repr(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == lm.encode_frame(text)
    told = [{"role": "user", "content": "When?"}]
    render = [one.apply_chat_template(told, tokenize=False) for one in (theirs, lm.tokenizer)]
    assert render[0] == render[1]


@pytest.mark.parametrize("kind", list(toy.MODELS))
def test_merged_and_unmerged_answer_the_same(kind, tmp_path):
    """On every class of model, tied or not; and the frozen model is as it was."""
    lm = load(dials(tmp_path, toy.save(tmp_path / "model", kind=kind)).model)
    adapter = random_adapter.trained(lm, tmp_path / "adapter")
    reader = lora.load_adapter(lm, adapter)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    bond = lora.read_manifest(adapter)
    made = plain.write_merged(
        tmp_path / "merged", reader, lm, manifest=bond, dtype="float32", card=tmp_path / "none"
    )
    merged = load(dials(tmp_path, tmp_path / "merged").model)
    words, rows = qa_prompt(lm), prompts(lm)
    ours, theirs, bare = (LocalEngine(one).batch(words, rows, 12) for one in (reader, merged, lm))
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    assert [one.mean_logprob for one in theirs] == pytest.approx(
        [one.mean_logprob for one in ours], 1e-3
    )
    assert [one.tokens for one in ours] != [one.tokens for one in bare]
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert made.tokenizer_sha256 == merged.identity.tokenizer_sha256
    assert (
        made.frame_sha256 == qa_prompt(merged).digest == words.digest
        and merged.stop_tokens == lm.stop_tokens
    )
    same_tokens(lm, tmp_path / "merged")


def test_rounded_it_is_half_as_large_and_says_so(toy_lm, tmp_path):
    adapter = random_adapter.trained(toy_lm, tmp_path / "adapter")
    reader, sizes = lora.load_adapter(toy_lm, adapter), []
    for dtype in ("float32", "bfloat16"):
        folder = tmp_path / dtype
        made = plain.write_merged(
            folder,
            reader,
            toy_lm,
            manifest=lora.read_manifest(adapter),
            dtype=dtype,
            card=adapter / "no",
        )
        sizes.append((folder / plain.WEIGHTS).stat().st_size)
        assert made.dtype == json.loads((folder / "config.json").read_text())["dtype"] == dtype
        assert made.weights_sha256 == sha256_of(folder / plain.WEIGHTS)
    assert 1.8 < sizes[0] / sizes[1] <= 2


@pytest.fixture
def store(tmp_path, model_folder):
    """A store with an adapter of its own."""
    config = dials(tmp_path / "store", model_folder)
    api.ingest([written(tmp_path / "docs")], config)
    folder = tmp_path / "store" / "adapter"
    random_adapter.trained(load(config.model), folder, kind="text")
    (folder / "README.md").write_text("# A card\n")
    return tmp_path / "store"


def test_a_store_s_own_reader_is_exported_and_the_line_that_serves_it(
    store, model_folder, command_line, tmp_path
):
    to = tmp_path / "served"
    code, out, err = command_line("export-reader", to, "--store", store)
    made = json.loads((to / plain.MADE_OF).read_text())
    assert code == 0 and out.count("\n") == 1 and made["kind"] == "text"
    assert out.startswith(f"vllm serve {to} --served-model-name {made['name']} --dtype float32")
    assert "--enable-prompt-embeds" in out and str(store / "adapter") in err
    lm = load(dials(store, model_folder).model)
    bond = lora.read_manifest(store / "adapter")
    assert (made["base_sha256"], made["adapter_sha256"]) == (
        lm.identity.weights_sha256,
        bond.adapter_sha256,
    )
    card = (to / plain.CARD).read_text()
    assert all(made[key] in card for key in made if key.endswith("sha256"))
    assert (to / plain.READER_CARD).read_text() == "# A card\n"
    code, out, err = command_line("export-reader", to, "--store", store)
    assert code == 2 and "there is something in" in err
    assert not list(tmp_path.glob("*.new"))


def test_another_content_has_another_name(store, model_folder, command_line, tmp_path):
    names = set()
    for seed in (0, 1):
        lm = load(dials(store, model_folder).model)
        random_adapter.trained(lm, store / "adapter", seed, "text")
        code, out, _ = command_line(
            "export-reader", tmp_path / str(seed), "--store", store, "--json"
        )
        assert code == 0
        names.add(json.loads(out)["made"]["name"])
    assert len(names) == 2


def test_without_an_adapter_there_is_nothing_to_export(store, command_line, tmp_path):
    words = ("export-reader", tmp_path / "served", "--store", store, "--adapter", "none")
    code, _, err = command_line(*words)
    assert code == 2 and "no adapter to merge" in err and not (tmp_path / "served").exists()


def test_a_reader_is_exported_into_the_folder_one_stands_in(
    store, command_line, tmp_path, monkeypatch
):
    to = tmp_path / "an empty folder"
    to.mkdir()
    monkeypatch.chdir(to)
    code, out, _ = command_line("export-reader", ".", "--store", store)
    assert code == 0 and (to / plain.MADE_OF).is_file() and (to / plain.WEIGHTS).is_file()
    assert shlex.split(out)[2] == str(to) and not list(tmp_path.glob("*.new"))
