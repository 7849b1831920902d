"""The sample questions find their files.

The questions of an evaluation hold what benchmarks/questions.py promises.

The shares that docs/results.md quotes are printed by benchmarks/retrieval.py.
"""

import json
import lzma

import pytest
from tokenizers import Tokenizer

from benchmarks.questions import made, shares
from benchmarks.retrieval import DATA, answerable, build, share_found
from rag_memtok.model.lm import EMBEDDED


@pytest.mark.parametrize(("exclude", "library"), [(["library/"], False), ([], True)])
def test_nine_of_ten_questions_find_their_file_among_the_first_three(tmp_path, exclude, library):
    build(tmp_path / "store", DATA / "docs", exclude, EMBEDDED / "tokenizer.json")
    assert (
        share_found(tmp_path / "store", answerable(library=library), k=3, dense_weight=-1.0) >= 0.9
    )


def test_questions_are_about_the_one_chunk_with_their_answer(tmp_path):
    context = " ".join(
        f"House {number} of the long street was built in {1800 + number}." for number in range(40)
    )
    rows = [
        {
            "context": context,
            "question": f"When was {n} built?",
            "answers": [f"{1800 + n}."],
            "split": "dev",
        }
        for n in range(0, 40, 2)
    ]
    # in every chunk: left out
    rows += [{"context": context, "question": "Where?", "answers": ["street"], "split": "dev"}]
    rows += [{"context": context, "question": "Who?", "answers": ["unanswerable"], "split": "dev"}]
    rows += [{"context": context, "question": "Trained on?", "answers": ["1801"], "split": "train"}]
    for source in ("one", "two"):
        with lzma.open(tmp_path / f"{source}.jsonl.xz", "wt") as file:
            file.writelines(
                json.dumps({**row, "context": f"{source}. {row['context']}"}) + "\n" for row in rows
            )
    words = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    found = made(tmp_path, ["one", "two"], chunks=6, questions=12, tokens=64, words=words)
    assert len(found) == 12 and len({(row["source"], row["context"]) for row in found}) == 6
    assert [row["source"] for row in found] == ["one"] * 6 + ["two"] * 6
    for row in found:
        assert (
            row["context"] in f"{row['source']}. {context}"
            and len(words.encode(row["context"]).ids) <= 64
        )
        assert row["question"] not in ("Where?", "Trained on?")
        assert all(answer in row["context"] for answer in row["answers"]) and (
            row["answers"] or row["question"] == "Who?"
        )
    assert found == made(tmp_path, ["one", "two"], chunks=6, questions=12, tokens=64, words=words)


def test_what_one_source_lacks_the_others_make_up():
    assert shares([75, 500, 144, 500], 600) == [75, 190, 144, 191]
    assert shares([1, 2], 10) == [1, 2] and shares([9, 9], 5) == [2, 3]
