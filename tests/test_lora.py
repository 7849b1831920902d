"""A LoRA beside the frozen LM.

It changes answers, never the LM that writes and judges; what it is not bound to is refused.
"""

import hashlib
import json
import os
from dataclasses import replace

import pytest
import torch
import toy
from random_adapter import trained
from safetensors.torch import load

from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory
from rag_memtok.errors import InputRefused, WrongModel
from rag_memtok.memory.batch import Task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.reconstruct import judge
from rag_memtok.model import lora, precision
from rag_memtok.model.adapter_manifest import LARGEST
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.precision import for_reading
from rag_memtok.model.prompts import bare
from rag_memtok.pipeline.adapters import describe


def logits(lm):
    with torch.no_grad():
        return lm.logits(lm.hidden(lm.embed(torch.arange(10, 30)[None])))


def test_a_new_one_answers_as_the_frozen_model_and_shares_its_tensors(any_lm):
    before = logits(any_lm)
    student = lora.add_lora(any_lm, 4, seed=0)
    assert torch.equal(logits(student), before)
    assert student.table is any_lm.table and not any(
        ".lora_" in name for name, _ in any_lm.model.named_parameters()
    )
    frozen = {name for name, one in student.model.named_parameters() if not one.requires_grad}
    assert not any("lora" in name for name in frozen) and len(lora.lora_weights(student)) > 0
    assert not any(
        "lm_head" in name or "wte" in name or "embed" in name for name in lora.lora_weights(student)
    )


def test_the_seed_decides_and_the_global_one_is_left_alone(toy_lm):
    state = torch.get_rng_state()
    first, again, other = (lora.lora_weights(lora.add_lora(toy_lm, 4, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())


def test_it_changes_answers_and_never_the_frozen_model(any_lm, tmp_path):
    before = logits(any_lm)
    weights = {name: value.clone() for name, value in any_lm.model.state_dict().items()}
    reader = lora.load_adapter(any_lm, trained(any_lm, tmp_path))
    assert not torch.allclose(logits(reader), before, atol=0.01)
    assert torch.equal(logits(any_lm), before)
    assert all(
        torch.equal(value, weights[name]) for name, value in any_lm.model.state_dict().items()
    )
    assert reader.table.data_ptr() == any_lm.table.data_ptr()
    assert reader.identity.weights_sha256 != any_lm.identity.weights_sha256


@pytest.mark.parametrize("kind", ["memory", "text"])
def test_switched_off_it_is_the_base_in_the_readers_arithmetic(any_lm, tmp_path, kind):
    reader = lora.load_adapter(any_lm, trained(any_lm, tmp_path / "adapter", kind=kind))
    on = logits(reader)
    with lora.switched_off(reader) as base:
        assert torch.equal(logits(base), logits(any_lm))
    assert torch.equal(logits(reader), on) and not torch.equal(on, logits(any_lm))
    assert not any(one.requires_grad for one in reader.model.parameters())
    with pytest.raises(KeyError), lora.switched_off(reader):
        raise KeyError
    assert torch.equal(logits(reader), on)


def test_verdicts_are_the_same_with_an_adapter_loaded(toy_lm, tmp_path):
    task = Task("a", tuple(range(20, 36)), 4)
    (written,) = memorize(toy_lm, bare(toy_lm), [task], Memorize(batch=1, seconds_per_chunk=0.0))
    memory = Memory(written.vectors)
    alone = judge(toy_lm, bare(toy_lm), memory, task.tokens, 0.05)
    reader = lora.load_adapter(toy_lm, trained(toy_lm, tmp_path))
    logits(reader)
    again = judge(toy_lm, bare(toy_lm), memory, task.tokens, 0.05)
    assert alone[1] == again[1] and alone[1].kind == "exact" and alone[0].pins == again[0].pins
    # so there was something to be kept apart
    assert judge(reader, bare(toy_lm), memory, task.tokens, 0.05)[1].corrections > 0


def test_it_is_laid_out_as_peft_does(toy_lm, tmp_path):
    from peft import PeftModel

    folder = trained(toy_lm, tmp_path)
    expected = logits(lora.load_adapter(toy_lm, folder))
    settings = json.loads((folder / lora.CONFIG).read_text())
    assert settings["base_model_name_or_path"] == "toy-llama" and settings["r"] == 4
    assert {one.dtype for one in load((folder / lora.WEIGHTS).read_bytes()).values()} == {
        torch.float16
    }
    model = toy.llama(len(toy.tokenizer()))
    with pytest.warns(FutureWarning):  # PEFT uses what transformers deprecates
        theirs = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        assert torch.allclose(
            theirs(torch.tensor([list(range(10, 30))])).logits, expected, atol=1e-5
        )


def test_one_for_other_weights_is_refused(toy_lm, tmp_path):
    folder = trained(toy_lm, tmp_path)
    with pytest.raises(WrongModel, match="the model's weights") as refused:
        lora.load_adapter(toy.lm_of(seed=1), folder)
    assert refused.value.exit_code == 15 and "--adapter none" in refused.value.remedy
    with pytest.raises(WrongModel, match="template"):
        lora.load_adapter(toy_lm, folder, "0" * 64)
    other = replace(toy_lm, identity=replace(toy_lm.identity, tokenizer_sha256="0" * 64))
    with pytest.raises(WrongModel, match="tokenizer"):
        lora.load_adapter(other, folder)
    lora.load_adapter(toy_lm, trained(toy_lm, tmp_path / "text", kind="text"), None)


@pytest.mark.parametrize("name", [lora.CONFIG, lora.WEIGHTS, lora.MANIFEST])
@pytest.mark.parametrize("damage", [b"", b"{}", b"\x80\x04junk", None])
def test_what_is_not_an_adapter_is_refused(toy_lm, tmp_path, name, damage):
    path = trained(toy_lm, tmp_path) / name
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(InputRefused):
        lora.load_adapter(toy_lm, tmp_path)


def edit_config(folder, *, signed, **changes):
    """Changes PEFT's configuration; `signed`: with a checksum that is right for it."""
    config, manifest = folder / lora.CONFIG, folder / lora.MANIFEST
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    if signed:
        digest = hashlib.sha256(config.read_bytes()).hexdigest()
        bond = json.loads(manifest.read_text()) | {"config_sha256": digest}
        manifest.write_text(json.dumps(bond))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": 1},
        {"lora_alpha": "x"},
        {"target_modules": ["nope"]},
        {"target_modules": "all-linear"},
        {"r": True},
    ],
    ids=str,
)
def test_a_configuration_that_was_changed_is_refused(toy_lm, tmp_path, change, signed):
    edit_config(trained(toy_lm, tmp_path), signed=signed, **change)
    with pytest.raises(InputRefused, match=lora.CONFIG) as refused:
        lora.load_adapter(toy_lm, tmp_path)
    assert signed or "its checksum" in str(refused.value)
    if not signed:
        with pytest.raises(InputRefused, match="its checksum"):
            lora.rank_of(tmp_path, lora.read_manifest(tmp_path))


def test_one_of_before_its_configuration_had_a_checksum_is_read(toy_lm, tmp_path):
    manifest = trained(toy_lm, tmp_path) / lora.MANIFEST
    expected = logits(lora.load_adapter(toy_lm, tmp_path))
    bond = json.loads(manifest.read_text())
    assert len(bond.pop("config_sha256")) == 64
    manifest.write_text(json.dumps(bond))
    assert torch.equal(logits(lora.load_adapter(toy_lm, tmp_path)), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"dev": None},
        {"dev": {"after": "x"}},
        {"dev": {"after": 10**400}},
        {"trained_on": [1]},
        {"steps": "\x1b[2J"},
        {"steps": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_of_other_types_is_damaged(toy_lm, tmp_path, change):
    manifest = trained(toy_lm, tmp_path) / lora.MANIFEST
    assert describe(tmp_path).startswith("1 steps, F1 ")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    assert describe(tmp_path) == "damaged"


@pytest.mark.parametrize("name", [lora.CONFIG, lora.MANIFEST])
@pytest.mark.parametrize(
    "content", ["[" * 200_000, " " * (LARGEST + 1), None], ids=["deep", "large", "FIFO"]
)
def test_a_file_that_is_none_of_ours_is_refused_without_being_waited_for(
    toy_lm, tmp_path, name, content
):
    path = trained(toy_lm, tmp_path) / name
    if content is None:
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(InputRefused, match=name):
        lora.load_adapter(toy_lm, tmp_path)
    assert (describe(tmp_path) == "damaged") == (name == lora.MANIFEST)


def test_weights_of_another_shape_are_refused(toy_lm, tmp_path):
    folder, wide = trained(toy_lm, tmp_path), trained(toy.lm_of("llama-untied"), tmp_path / "other")
    edit_config(folder, signed=True, r=8, lora_alpha=16)
    with pytest.raises(InputRefused, match="rank"):
        lora.load_adapter(toy_lm, folder)
    os.replace(wide / lora.WEIGHTS, folder / lora.WEIGHTS)
    with pytest.raises(InputRefused):
        lora.load_adapter(toy_lm, folder)


def test_text_is_read_in_bfloat16_only_where_nothing_but_the_arithmetic_changes(
    toy_lm, tmp_path, monkeypatch
):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    assert for_reading(toy_lm) is toy_lm  # its weights are no numbers of that type
    rounded = toy.lm_of(dtype=torch.bfloat16)
    assert for_reading(rounded) is rounded
    wide = toy.wrap(rounded.model.float(), rounded.tokenizer, "toy")
    quick = for_reading(wide)
    assert quick.table.dtype == torch.bfloat16 and quick.identity == wide.identity
    trained(wide, tmp_path / "text", kind="text")
    slow, fast = (lora.load_adapter(one, tmp_path / "text") for one in (wide, quick))
    assert torch.allclose(logits(slow), logits(fast), atol=0.15)
    assert {one.dtype for one in lora.lora_weights(fast).values()} == {torch.bfloat16}
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert for_reading(wide) is wide


def test_rows_of_several_lengths_are_read_as_each_alone(toy_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    wide = toy.wrap(toy.lm_of(dtype=torch.bfloat16).model.float(), toy_lm.tokenizer, "toy")
    reader = lora.load_adapter(for_reading(wide), trained(wide, tmp_path / "text", kind="text"))
    rows = [reader.embed(list(range(10, 10 + size))) for size in (3, 20, 9)]
    together = KVDecoder(reader, rows).logits
    for row, found in zip(rows, together, strict=True):
        assert torch.allclose(KVDecoder(reader, [row]).logits[0], found, atol=0.15)
