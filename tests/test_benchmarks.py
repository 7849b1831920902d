"""The arithmetic of benchmarks/, and every script on a toy.

The arithmetic: fair chunks, costs, intervals, rules. Every script is cut short and gone on with.
"""

import importlib
import itertools
import json
import mmap
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from hypothesis import given
from hypothesis import settings as quick
from hypothesis import strategies as st
from random_adapter import reading_vectors

from benchmarks import fidelity, measure, objective, planned, rivals, speed, write
from rag_memtok.config import Model
from rag_memtok.errors import UsageError
from rag_memtok.memory.batch import Task
from rag_memtok.memory.recipes import RECIPES
from rag_memtok.memory.step import start_row
from rag_memtok.model.lm import load

ROOT = Path(__file__).parent.parent

SCRIPTS = {
    "write": "--ways sastre2025-code --cells 2+3:1,4:2 --chunks 2 --published-chunks 1 "
    "--tuning-chunks 1 --budgets 2 --group 1 --steps 3",
    "objective": "--chunks 2 --seeds 1 --vectors 1,2 --longest 4 --steps 20",
    "rounding": "--chunks 2 --lengths 4 --tokens-per-vector 2 --batch 1 --steps 60",
    "capacity": "--vectors 2 --lengths 2,3 --batch 1 --steps 3",
    "planned": "--chunks 1 --tokens-per-vector 40 --batch 1 --steps 3",
}
TEXT = {"a": " ".join(toy.SENTENCES * 4), "b": measure.number_table(30)}


def tasks_of(lm, count, length, vectors):
    chunks = measure.samples(lm, TEXT, (length,), count)
    return [
        Task(f"{index} {chunk.key}", chunk.tokens, vectors) for index, chunk in enumerate(chunks)
    ]


# --- rivals


def test_six_settings_are_tried_and_more_where_the_best_stands_at_an_edge():
    six = rivals.settings_to_try({})
    assert len(six) == 6 and {rate for rate, _ in six} == {1.0, 3.0, 10.0}
    worst = dict.fromkeys(six, (0, -9, -9))
    assert rivals.settings_to_try(worst | {(3.0, 20): (1, 0, 0)}) == six
    assert rivals.settings_to_try(worst | {(1.0, 100): (1, 0, 0)}) == [*six, (0.3, 100)]
    higher = worst | {(10.0, 20): (1, 0, -5), (30.0, 20): (1, 0, -4)}
    assert rivals.settings_to_try(higher) == [*six, (30.0, 20), (100.0, 20)]
    assert rivals.settings_to_try(higher | {(100.0, 20): (0, -1, 0)}) == [
        *six, (30.0, 20), (100.0, 20),
    ]  # fmt: skip
    everywhere = {(rate, warmup): (0, 0, 0) for rate in rivals.LADDER for warmup in rivals.WARMUPS}
    settings = rivals.settings_to_try(everywhere | {(1000.0, 20): (1, 0, 0), (10.0, 20): (1, 0, 0)})
    assert settings[-1] == (30.0, 20)  # of equals the first: the ladder is climbed no further


def test_a_cold_cross_entropy_is_the_hinge_at_nothing(toy_lm):
    """As the temperature falls, its product with the loss is what a wrong token lacks."""
    hidden = torch.randn(6, toy_lm.width, generator=torch.Generator().manual_seed(1))
    targets, spent = torch.tensor([1, 2, 3, 4, 5, 6]), torch.zeros(6)
    losses, margins = rivals.tempered(1e-3)(toy_lm, hidden, targets, spent)
    assert torch.allclose(1e-3 * losses, (-margins).clamp(min=0), atol=5e-3)
    plain, same = rivals.cross_entropy(toy_lm, hidden, targets, spent)
    assert torch.allclose(rivals.tempered(1.0)(toy_lm, hidden, targets, spent)[0], plain)
    assert torch.allclose(margins, same)
    weighted = rivals.weighted_by_deficit(0.5)(toy_lm, hidden, targets, spent)[0]
    assert torch.allclose(weighted, plain * (0.5 - same).clamp(min=0))


def test_confined_vectors_have_no_more_directions_than_said(toy_lm):
    task = Task("x", (1, 2, 3), 8)
    row = start_row(toy_lm, RECIPES["cramming2026"], task, 0)
    rivals.confined(toy_lm, 3, 0)(row)
    assert torch.linalg.matrix_rank(row.vectors, rtol=1e-4) == 3
    before = row.vectors.clone()
    rivals.confined(toy_lm, 0, 0)(row)
    assert torch.equal(row.vectors, before)


def test_a_text_grows_from_its_own_beginning_and_pays_for_every_step(toy_lm, monkeypatch):
    words = ["--cells", "6:3", "--chunks", "1", "--threads", "1", "--model", "unused"]
    sample = measure.samples(toy_lm, TEXT, (6,), 1)[0]
    arguments = write.parsed(words)
    way = rivals.Way(recipe=replace(RECIPES["margin"], steps=200), growth=2)
    bench = write.Bench(
        lm=toy_lm, arguments=arguments, chunks={}, tuning={}, rivals={"growing": way}
    )
    row = rivals.contender(bench.base, "growing", variant="tuned", cell=arguments.cells[0], way=way)
    seen, once = [], write.Bench._written

    def watched(self, row, tasks, starts):
        seen.append((len(tasks[0].tokens), row.way.recipe.steps, set(starts)))
        return once(self, row, tasks, starts)

    monkeypatch.setattr(write.Bench, "_written", watched)
    (written,) = bench.write(row, [(0, sample)])
    assert [length for length, _, _ in seen] == [2, 4, 6] and written.task.tokens == sample.tokens
    assert [bool(starts) for _, _, starts in seen] == [False, True, True]
    assert 200 == seen[0][1] > seen[1][1] > seen[2][1] >= 200 - written.steps
    assert written.wrong == 0
    short = replace(row, way=replace(way, recipe=replace(way.recipe, steps=1)))
    (cut,) = bench.write(short, [(0, sample)])
    assert cut.steps <= 2 and cut.wrong >= 4 and cut.task.tokens == sample.tokens


def test_in_a_race_the_best_of_the_first_cell_are_tuned_in_the_others(toy_lm, tmp_path):
    words = ["--cells", "3:1,6:1", "--chunks", "1", "--race", "1", "--model", "unused"]
    arguments, names = write.parsed(words), ("sastre2025", "kuratov2025", "cramming2026")
    samples = {cell: measure.samples(toy_lm, TEXT, cell.lengths, 1) for cell in arguments.cells}
    ledger, bench = measure.open_ledger(tmp_path / "x.jsonl", {}), write.Bench(
        lm=toy_lm, arguments=arguments, chunks=samples, tuning=samples,
        rivals={name: rivals.Way(recipe=RECIPES[name]) for name in names},
    )  # fmt: skip
    first, second = arguments.cells
    assert write.to_tune(bench, ledger) == [(name, first) for name in names]
    for name in names:
        for rate, warmup in itertools.product((1.0, 3.0, 10.0), (20, 100)):
            right = (name == "cramming2026") + (rate == 3.0)
            key = write.tuning_key(write.trial(bench, name, first, (rate, warmup)))
            ledger.add(key, {"exact": right, "wrong": 0, "steps": 9})
    ahead = [("sastre2025", second), ("cramming2026", second)]
    assert write.to_tune(bench, ledger) == [*((name, first) for name in names), *ahead]


def test_a_texts_seconds_are_its_steps_by_the_clock(toy_lm, tmp_path):
    words = ["--cells", "3:1", "--chunks", "2", "--steps", "5", "--model", "unused", "--ways", ""]
    arguments = write.parsed([*words, "--tuning-chunks", "0"])
    samples = {cell: measure.samples(toy_lm, TEXT, cell.lengths, 2) for cell in arguments.cells}
    bench = write.Bench(lm=toy_lm, arguments=arguments, chunks=samples, tuning={}, rivals={})
    ledger, rows = measure.open_ledger(tmp_path / "x.jsonl", {}), write.first_rows(bench)
    units = write.measured_units(bench, rows)
    assert measure.work_through(units, ledger, float("inf"))
    (before,) = write.gathered(bench, ledger, rows)
    assert all(np.isnan(chunk["seconds"]) for chunk in before.chunks.values())
    assert write.main_line(before, {})[6] == "-"
    assert measure.work_through(write.clock_units(bench, rows), ledger, float("inf"))
    (after,) = write.gathered(bench, ledger, rows)
    step = np.median([ledger.results[f"clock/{rows[0].key}/{turn}"]["step"] for turn in range(3)])
    assert [one["seconds"] for one in after.chunks.values()] == [
        step * one["steps"] for one in after.chunks.values()
    ]


@pytest.mark.parametrize("text", ["32", "a:1", "32:"])
def test_what_is_no_cell_is_refused(text):
    with pytest.raises(UsageError, match="no list of cells"):
        rivals.cells(text)


# --- chunks


def test_chunks_are_the_same_every_time_and_others_for_another_seed(toy_lm):
    drawn = [measure.samples(toy_lm, TEXT, (4, 8), 10, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert measure.number_table(30) == measure.number_table(30) != measure.number_table(30, seed=1)
    assert measure.number_table(2).splitlines()[1] == "N85,277,5.2,980.71,4601,404934"


@given(
    count=st.integers(1, 20),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
)
@quick(max_examples=10)
def test_the_first_few_chunks_are_of_every_length_and_kind_in_turn(toy_lm, count, lengths):
    chunks = measure.samples(toy_lm, TEXT, lengths, count)
    assert len(chunks) == count
    assert [len(chunk.tokens) for chunk in chunks] == [
        lengths[index % len(lengths)] for index in range(count)
    ]
    cells = len(lengths) * len(TEXT)
    assert len({(chunk.kind, len(chunk.tokens)) for chunk in chunks[:cells]}) == min(count, cells)


def test_held_out_chunks_share_no_token_with_the_measured_ones(toy_lm):
    numbered = list(range(400))
    edge = round(measure.HELD_OUT * len(numbered))
    lm = replace(toy_lm, tokenizer=lambda text, **options: {"input_ids": numbered})
    tuning = measure.samples(lm, {"x": ""}, (9,), 30, held_out=True)
    measured = measure.samples(lm, {"x": ""}, (9,), 30)
    assert (
        max(max(chunk.tokens) for chunk in tuning)
        < edge
        <= min(min(chunk.tokens) for chunk in measured)
    )
    assert len(measured) == len(set(measured)), "a long text has room for 30 different chunks"


def test_a_text_too_short_for_its_chunks_is_refused(toy_lm):
    with pytest.raises(UsageError, match="no stretch of 900"):
        measure.samples(toy_lm, TEXT, (900,), 1)


def test_every_kind_of_the_sample_documents_has_room_for_the_longest_chunks(toy_lm):
    texts = measure.texts_of(None)
    assert texts.keys() == {"prose", "numbers", "code", "spanish"}
    for held_out in (False, True):
        assert len(measure.samples(toy_lm, texts, (128,), 8, held_out=held_out)) == 8


# --- costs


def test_the_speed_of_a_step_is_measured_for_every_draft_and_batch(capsys):
    speed.main(
        "--shape toy --drafts bfloat16,float32 --batches 1,2 --length 12 --rounds 1 --steps 1 "
        "--threads 1".split()
    )
    rows = [
        line.split("|")[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"^\| (bf|fl)", line)
    ]
    assert [(row[0].strip(), int(row[1])) for row in rows] == [
        (draft, size) for draft in ("bfloat16", "float32") for size in (1, 2)
    ]
    assert all(float(row[2]) > 0 and abs(float(row[2]) * float(row[3]) - 1000) < 20 for row in rows)


def test_a_draft_computes_in_its_own_dtype_whatever_the_model_has(toy_lm):
    shaped = speed.of_shape(toy_lm, "toy")
    for model in (toy_lm, shaped):
        for draft in ("float32", "bfloat16"):
            assert speed.computing(model, draft).table.dtype == speed.DTYPES[draft]
    assert (
        speed.computing(toy_lm, "float32") is toy_lm
        and speed.computing(shaped, "bfloat16") is shaped
    )


def test_the_cost_of_a_step_is_the_one_that_the_profiler_counts():
    """Dense products forward and backward, of a model whose attention is written out.

    Norms and the like are not counted by either.
    """
    from torch.utils.flop_counter import FlopCounterMode

    lm = toy.lm_of("llama-untied")
    lm.model.set_attn_implementation("eager")
    inputs = torch.randn(1, 12, lm.width, requires_grad=True)
    with FlopCounterMode(display=False) as counted:
        hidden = lm.hidden(inputs)[0, 3:]
        lm.logits(hidden).square().sum().backward()
    assert measure.step_flops(lm, 12, 9) == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_the_parameters_in_layers_are_all_but_the_tables(any_lm):
    base = any_lm.model.base_model
    layers = base.layers if hasattr(base, "layers") else base.h
    norm = base.norm if hasattr(base, "norm") else base.ln_f
    expected = sum(parameter.numel() for part in (layers, norm) for parameter in part.parameters())
    assert measure.layer_parameters(any_lm) == expected


def test_the_hinge_saves_a_pass_over_the_vocabulary(toy_lm):
    saved = measure.step_flops(toy_lm, 20, 9) - measure.step_flops(
        toy_lm, 20, 9, vocabulary_passes=1
    )
    assert saved == 2.0 * toy_lm.table.numel() * 9


def test_the_code_length_is_that_of_the_model(toy_lm):
    tokens = [70, 71, 72]
    with torch.no_grad():
        logits = toy_lm.model(torch.tensor([[toy_lm.bos, *tokens]])).logits[0].log_softmax(-1)
    expected = -sum(
        float(logits[place, token]) for place, token in enumerate([*tokens, toy_lm.eos])
    ) / np.log(2)
    assert measure.code_length(toy_lm, tokens) == pytest.approx(expected, rel=1e-5)
    last = -float(logits[len(tokens), toy_lm.eos]) / np.log(2)
    without = measure.code_length(toy_lm, tokens, end=False)
    assert last > 1 and without == pytest.approx(expected - last, rel=1e-5)


def test_memory_and_speed_are_measured_at_all(toy_lm):
    measure.forget_peak(toy_lm.device)
    before = measure.peak_bytes(toy_lm.device)
    # of the heap it could be what was freed there and kept
    held = np.frombuffer(mmap.mmap(-1, 64_000_000), dtype=np.uint8)
    held[:] = 1
    assert measure.peak_bytes(toy_lm.device) - before > 0.8 * held.nbytes
    assert measure.matmul_rate(toy_lm.device, torch.float32, seconds=0.0) > 1e6


# --- intervals


def test_an_interval_holds_the_mean_and_covers_it_nearly_every_time():
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(60):
        values = generator.normal(size=40)
        found = measure.bootstrap(
            len(values), lambda drawn, values=values: float(values[drawn].mean())
        )
        assert found.low < found.value < found.high and found.value == values.mean()
        inside += found.low <= 0 <= found.high
    assert 51 <= inside <= 60


def test_an_interval_without_a_value_is_a_dash():
    assert measure.bootstrap(3, lambda drawn: float("nan")).text() == "-"
    assert measure.bootstrap(3, lambda drawn: 0.25).text(0, factor=100.0) == "25 (25 to 25)"
    assert (
        write.ratio(1.0, 0.0) == float("inf")
        and np.isnan(write.ratio(0.0, 0.0))
        and write.ratio(1.0, 2.0) == 0.5
    )


def test_gains_are_ratios_of_rates_over_the_same_chunks():
    def row(exact, seconds):
        chunks = {
            index: {"exact": one, "seconds": seconds, "tokens": 8}
            for index, one in enumerate(exact)
        }
        return write.Measured(
            name="x", variant="ours", cell=rivals.Cell((8,), 1), chunks=chunks, peak=1
        )

    assert write.gain_over(row([1, 1], 1.0), row([1, 0], 5.0), [0, 1]) == 10.0
    assert write.gain_over(row([1, 1], 1.0), row([1, 0], 5.0), [0, 0]) == 5.0
    assert write.gain_over(row([1, 1], 1.0), row([0, 0], 5.0), [0, 1]) == 10.0  # given one
    line = write.gain_line(row([1, 1], 1.0), row([1, 1], 5.0), [0, 1], 0)
    assert line[-4:] == ["100 %", "100 %", "0 (0 to 0)", "5.0 (5.0 to 5.0)"]
    line = write.gain_line(row([1, 1], 1.0), row([0, 0], 5.0), [0, 1], 0)
    assert line[-2:] == ["100 (100 to 100)", "at least 10.0 (10.0 to 10.0)"]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.0),
        ([(1, 0.4)], 0.0),
        ([(4, 1.0)], 4.0),
        ([(4, 1.0), (16, 0.0)], 8.0),
        ([(2, 1.0), (4, 0.75), (8, 0.25)], 32**0.5),
    ],
)
def test_the_capacity_is_where_a_half_is_crossed(points, expected):
    assert objective.crossing(points) == pytest.approx(expected)


# --- objectives


def test_every_variant_measures_the_same_margins_and_pulls_at_what_is_wrong(toy_lm):
    hidden = torch.randn(
        20, toy_lm.width, generator=torch.Generator().manual_seed(0)
    ).requires_grad_(True)
    targets = torch.arange(50, 70)
    targets[:5] = toy_lm.logits(hidden).argmax(1)[:5]
    _, expected = RECIPES["cross-entropy"].objective(toy_lm, hidden, targets, torch.zeros(20))
    for name, variant in objective.variants().items():
        for spent in (0.0, 1.0):
            losses, margins = variant.recipe.objective(
                toy_lm, hidden, targets, torch.full((20,), spent)
            )
            assert torch.allclose(margins, expected, atol=1e-4), name
            assert (
                losses.shape == (20,) and (losses >= 0).all() and (losses[margins <= 0] > 0).all()
            ), name
            (gradient,) = torch.autograd.grad(losses.sum(), hidden)
            assert (
                torch.isfinite(gradient).all() and (gradient[margins <= 0].norm(dim=1) > 0).all()
            ), name


# --- planning


CHUNKS = st.lists(
    st.builds(
        lambda length, bits: planned.Sized((7,) * length, bits * length),
        st.integers(1, 128),
        st.floats(1, 12),
    ),
    min_size=1,
)


@given(chunks=CHUNKS, ratio=st.integers(2, 16))
def test_all_rules_give_out_the_same_total_as_nearly_as_they_can(chunks, ratio):
    total = sum(planned.RULES[0].vectors(chunk, ratio) for chunk in chunks)
    for rule in planned.RULES:
        smallest = sum(rule.vectors(chunk, 1e9) for chunk in chunks)
        c = planned.fitted(rule, chunks, total)
        given_out = [rule.vectors(chunk, c) for chunk in chunks]
        assert sum(given_out) <= max(total, smallest)
        assert all(
            1 <= some <= len(chunk.tokens) for some, chunk in zip(given_out, chunks, strict=True)
        )
        if sum(given_out) < total:
            assert (
                sum(rule.vectors(chunk, 0.999 * c) for chunk in chunks) > total or smallest > total
            )


# --- whole scripts


def test_a_ledger_drops_half_a_line_and_refuses_another_run(tmp_path):
    path = tmp_path / "new" / "x.jsonl"
    ledger = measure.open_ledger(path, {"steps": (1, 2)})
    ledger.add("one", {"margin": float("inf")})
    with path.open("a") as file:
        file.write('["two", {"mar')
    again = measure.open_ledger(path, {"steps": (1, 2)})
    assert again.results == {"about": {"steps": [1, 2]}, "one": {"margin": None}}
    again.add("two", {"margin": 1.0})
    assert measure.open_ledger(path, {"steps": (1, 2)}).results["two"] == {"margin": 1.0}
    with pytest.raises(UsageError, match="other settings"):
        measure.open_ledger(path, {"steps": 3})


def test_the_time_left_is_that_of_work_of_the_same_kind():
    units = [
        measure.Unit(key, group, dict)
        for key, group in (("1", "slow"), ("2", "fast"), ("3", "new"))
    ]
    assert measure.time_left(units, {"slow": [10.0, 20.0], "fast": [1.0, 1.0]}) == 15 + 1 + 8


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one == "write")) for one in SCRIPTS]
)
def test_a_script_goes_on_where_it_was_stopped_and_reports(
    name, model_folder, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(measure, "DRAWS", 40)
    monkeypatch.setattr(write, "CLOCKED", 3)
    (tmp_path / "texts").mkdir()
    for kind, text in TEXT.items():
        (tmp_path / "texts" / f"{kind}.txt").write_text(text, encoding="utf-8")
    script = importlib.import_module(f"benchmarks.{name}")
    out = tmp_path / name
    words = [
        *SCRIPTS[name].split(),
        "--model",
        str(model_folder),
        "--threads",
        "1",
        "--out",
        str(out),
        "--texts",
        str(tmp_path / "texts"),
    ]
    ledger = tmp_path / (
        f"{name}-{model_folder.name}.jsonl" if name == "objective" else f"{name}.jsonl"
    )

    def lines():
        return ledger.read_text(encoding="utf-8").splitlines()

    script.main([*words, "--seconds", "0"])
    assert len(lines()) == 1 and "--seconds is over" in capsys.readouterr().err
    script.main(words)
    first, kept = capsys.readouterr().out, lines()
    assert re.search(r"^\|-+\|-+:", first, re.MULTILINE) and len(kept) > 2
    assert list(tmp_path.glob(f"{name}*.png")) and json.loads(
        out.with_suffix(".json").read_text(encoding="utf-8")
    )

    ledger.write_text("\n".join(kept[:-1]) + "\n" + kept[-1][:9], encoding="utf-8")
    script.main(words)
    assert lines()[:-1] == kept[:-1]
    assert json.loads(lines()[-1])[0] == json.loads(kept[-1])[0]
    assert without_times(capsys.readouterr().out) == without_times(first)
    if name in ("capacity", "planned"):  # the texts are all that they measure
        for kind, text in TEXT.items():
            (tmp_path / "texts" / f"{kind}.txt").write_text(text[::-1], encoding="utf-8")
        with pytest.raises(UsageError, match="other settings"):
            script.main(words)


# what the clock decides, or what else this process has done
MEASURED = {
    "time, at most", "s / text", "**exact / minute**", "% of matmul rate", "peak MiB",
    "times its rate",
}  # fmt: skip


def without_times(text):
    """The lines of a report; of its tables the cells, without the columns of MEASURED."""
    told, head = [], None
    for line in text.splitlines():
        cells = [cell.strip(" -:") for cell in line.strip("|").split("|")]
        head = (head or cells) if line.startswith("|") else None
        told.append(
            [cell for name, cell in zip(head, cells, strict=True) if name not in MEASURED]
            if head
            else line
        )
    return told


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_how_to_run_it_and_what_it_costs(name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").parsed(["--help"])
    said = capsys.readouterr().out
    assert (
        ended.value.code == 0
        and "How to run" in said
        and "Cost on two cores" in said
        and "--seconds" in said
    )


def test_what_recites_is_told_apart_from_what_is_read(tmp_path, model_folder, capsys):
    """The memory alone gives its chunk back; with other vectors before it, or without it, less."""
    adapter = reading_vectors(load(Model(id=str(model_folder))), tmp_path / "reader")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(TEXT["a"], encoding="utf-8")
    fidelity.main(
        f"--model {model_folder} --adapter {adapter} --texts {texts} --chunks 3 --length 6 "
        "--tokens-per-vector 2 --windows 2 --threads 1".split()
    )
    rows = [
        line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "%" not in line
    ]
    found = {
        (name.strip(), how.split()[0]): (float(share), whole.strip())
        for name, how, share, whole in (row for row in rows if len(row) == 4 and "of" in row[3])
    }
    assert found["E", "recited"] == (100.0, "3 of 3") and len(found) == 9
    for name in ("another chunk's E", "R", "nothing"):
        assert found[name, "recited"][0] < 100 and found[name, "recited"][1] != "3 of 3"
