"""The command eval: tables on stdout, talk on stderr, files where they were asked for."""

import json

import pytest
from test_cli import run  # noqa: F401
from test_evaluate import ROWS, filed

from rag_memtok.cli.tables import ranged
from rag_memtok.errors import DiskFailure
from rag_memtok.evaluation.metrics import Interval

QUICK = (
    "--chunk-tokens",
    48,
    "--steps",
    40,
    "--seconds-per-chunk",
    0,
    "--max-new-tokens",
    3,
    "--readers",
    "text,memory,none",
    "--k",
    2,
)


def test_the_table_the_file_and_the_pictures(run, model_folder, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    words = (
        "eval",
        filed(tmp_path, ROWS),
        "--model",
        model_folder,
        *QUICK,
        "--tokens-per-vector",
        "4,8",
        "--work",
        "w",
    )
    code, out, err = run(*words, "--out", "all.json", "--figures", "pictures")
    assert code == 0 and out.startswith(
        f"{model_folder}, template bare, recipe margin: 4 questions (1 that the documents do not "
        "answer)"
    )
    titles = [line for line in out.splitlines() if line and not line.startswith("|")]
    assert titles[1:3] == ["memories", "the gold chunk alone"] and titles[-1].startswith(
        "unrelated texts"
    )
    # alone, among, apart; sources; beside; before
    assert sum(line.startswith("| memory ") for line in out.splitlines()) == 6 + 2 + 2 + 2
    assert "4 questions about 3 chunks; 3 chunks to write" in err
    private = [tmp_path / "all.json", tmp_path / "w", *(tmp_path / "w").rglob("*")]
    assert len(private) > 4 and not any(path.stat().st_mode & 0o077 for path in private)
    everything = json.loads((tmp_path / "all.json").read_text())
    assert len(everything["cells"][0]["answers"]) == 4 and everything["rows"][0]["f1"].keys() == {
        "mean",
        "low",
        "high",
    }
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "quality-against-compression.png",
        "quality-against-k-apart.png",
        "quality-against-k.png",
    ]
    code, out, err = run(*words, "--json", "--out", "/dev/full")
    assert code == DiskFailure.exit_code and "No space" in err  # told, and nothing is lost
    assert {row["reader"] for row in json.loads(out.splitlines()[0])["rows"]} == {
        "text",
        "memory",
        "none",
        "nothing",
        "random",
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--readers", "text,telepathy"), "no reader 'telepathy'"),
        (("--k", "three"), "--k is 'three'"),
        (("--k", "1"), "--k is (1,); valid: 2 to 100"),
        (("--distractors", "none"), "--distractors is 'none'"),
    ],
)
def test_what_is_out_of_range_is_named(run, model_folder, tmp_path, words, told):  # noqa: F811
    code, out, err = run("eval", filed(tmp_path, ROWS), "--model", model_folder, *words)
    assert code == 2 and told in err


def test_an_interval_in_words():
    assert ranged(Interval(0.5, 0.25, 0.75)) == "50.0 [25.0, 75.0]"
    assert ranged(Interval(-0.01, -0.02, 0.0), "+") == "-1.0 [-2.0, +0.0]"
