"""The sample questions find their files. The shares the README quotes are printed by benchmarks/retrieval.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from retrieval import answerable, build, share_found  # noqa: E402


@pytest.mark.parametrize(("exclude", "library"), [(["library/"], False), ([], True)])
def test_nine_of_ten_questions_find_their_file_among_the_first_three(tmp_path, exclude, library):
    build(tmp_path / "store", exclude)
    assert share_found(tmp_path / "store", answerable(library), k=3, dense_weight=-1.0) >= 0.9
