"""benchmarks/numerics.py on a toy: fp32 moves logits by rounding alone, bf16 by much more.

Pins make up for it.
"""

from dataclasses import replace

import pytest
import small
import torch

from benchmarks import numerics
from rag_memtok.model import precision
from rag_memtok.pipeline import api, resources
from rag_memtok.store.store import open_store


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("numerics")
    config = small.dials(folder / "store", model_folder, memorize__steps=40)
    api.ingest([small.written(folder / "docs")], config)
    with open_store(folder / "store", write=False) as store:
        model, template = resources.load_decoder(store.manifest, config)
    with precision.reference_profile(model) as exactly:
        cases = numerics.cases_of(folder / "store", exactly, template, 4)
        referred = [
            numerics.replace(
                case, logits=numerics.logits_of(exactly, template, [case], 0, cache=True)[0]
            )
            for case in cases
        ]
    return model, template, referred


def found(made, **changes):
    model, template, cases = made
    profile = numerics.replace(numerics.REFERENCE, **changes)
    return numerics.measure(
        precision.copy_in_dtype(model, numerics.DTYPES[profile.dtype]), template, cases, profile
    )


def test_the_reference_with_its_weights_elsewhere_in_memory_differs_by_rounding_at_most(made):
    same = found(made)
    assert same.logit < 1e-4 and same.lead < 1e-4 and same.flips == 0
    assert (
        same.exact_as_is == sum(case.kind == "exact" for case in made[2]) / len(made[2])
        and same.exact_at[0] == 1.0
    )


@pytest.mark.parametrize(
    "change", [{"batch": 4}, {"padding": 13}, {"cache": False}, {"attention": "sdpa"}]
)
def test_fp32_in_another_way_moves_a_logit_by_rounding_alone(made, change):
    moved = found(made, **change)
    assert 0 <= moved.logit < 1e-3 and moved.exact_at[numerics.TAUS.index(0.01)] == 1.0


def test_bf16_moves_leads_and_a_margin_over_the_largest_move_covers_it(made):
    moved = found(made, dtype="bf16", batch=4, padding=13)
    assert moved.lead > 1e-3
    assert all(
        share == 1.0
        for tau, share in zip(numerics.TAUS, moved.exact_at, strict=True)
        if tau > moved.lead
    )
    assert list(moved.exact_at) == sorted(moved.exact_at)


def test_what_was_measured_is_not_measured_again(made, tmp_path):
    model, template, cases = made
    wanted = [numerics.REFERENCE, numerics.replace(numerics.REFERENCE, batch=2)]
    first = list(numerics.measured(model, template, cases, wanted, tmp_path / "out.jsonl"))
    again = list(numerics.measured(model, template, cases, wanted, tmp_path / "out.jsonl"))
    assert first == again and len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    assert len(numerics.chart(first, numerics.pinned_at(cases)).lines) == 2
    with (tmp_path / "out.jsonl").open("a") as file:
        file.write('{"key": "')  # cut off by a kill
    more = [*wanted, numerics.replace(numerics.REFERENCE, batch=3)]
    assert (
        list(numerics.measured(model, template, cases, more, tmp_path / "out.jsonl"))[:2] == first
    )
    known = numerics.known_results(tmp_path / "out.jsonl", numerics.key_of(model, template, cases))
    assert list(known) == more


def test_a_run_with_other_instructions_has_the_first_ones_reference(made, tmp_path, monkeypatch):
    model, template, cases = made
    bare = [numerics.replace(case, logits=None) for case in cases]
    path, results = tmp_path / "out.safetensors", tmp_path / "out.jsonl"
    first = numerics.referred(model, template, bare, path)
    for one, case in zip(first, cases, strict=True):
        assert torch.allclose(one.logits, case.logits, atol=1e-3)
    monkeypatch.setattr(numerics, "logits_of", None)  # nothing is computed again
    again = numerics.referred(model, template, bare, path)
    assert all(torch.equal(one.logits, two.logits) for one, two in zip(first, again, strict=True))
    monkeypatch.undo()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert numerics.instructions().endswith("oneDNN AVX2")
    for name in ("one", "another"):
        wanted = [numerics.replace(numerics.REFERENCE, instructions=name)]
        list(numerics.measured(model, template, cases, wanted, results))
    known = numerics.known_results(results, numerics.key_of(model, template, cases))
    assert [one.instructions for one in known] == ["one", "another"]
    assert not numerics.known_results(results, "of other memories")


def test_other_memories_of_the_same_text_are_measured_anew(made, tmp_path):
    model, template, cases = made
    others = [
        numerics.replace(case, memory=replace(case.memory, vectors=case.memory.vectors + 1))
        for case in cases
    ]
    for some in (cases, others):
        list(numerics.measured(model, template, some, [numerics.REFERENCE], tmp_path / "out.jsonl"))
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    torch.set_num_threads(1)
