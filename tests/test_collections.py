"""Several stores under one root, by name; and settings that are not a store's.

Such settings are refused, never mixed.
"""

import pytest
from small import content_of, dials, proven, written

from rag_memtok.config import Config
from rag_memtok.errors import NoStore, UsageError
from rag_memtok.pipeline import api
from rag_memtok.settings import updated

ONE, TWO = {"a.txt": "The lamp is red."}, {"b.txt": "The fan is loud."}


@pytest.fixture(scope="module")
def root(tmp_path_factory, model_folder):
    """A root with two collections, to be read."""
    folder = tmp_path_factory.mktemp("collections")
    for name, documents, keep in (("one", ONE, True), ("two", TWO, False)):
        config = dials(folder / "root", model_folder, collection=name, memorize__keep_text=keep)
        api.ingest([written(folder / name, documents)], config)
    return folder / "root"


def test_each_collection_is_a_store_of_its_own(root, model_folder):
    for name, path in (("one", "a.txt"), ("two", "b.txt")):
        config = dials(root, model_folder, collection=name)
        assert [one.document.path for one in api.documents(config)] == [path]
        assert proven(config).documents == 1
    assert (
        api.ask("What is the lamp?", dials(root, model_folder, collection="one")).sources[0].path
        == "a.txt"
    )
    assert [
        (one.name, one.summary.documents, one.model)
        for one in api.collections(dials(root, model_folder))
    ] == [
        ("one", 1, str(model_folder)),
        ("two", 1, str(model_folder)),
    ]


def test_a_root_is_no_store_and_a_store_no_root(root, model_folder, tmp_path):
    for refused in (
        api.status,
        api.documents,
        lambda config: api.ingest([written(tmp_path / "docs", ONE)], config),
    ):
        with pytest.raises(UsageError, match="holds collections: one, two") as error:
            refused(dials(root, model_folder))
        assert "--collection" in error.value.remedy
        with pytest.raises(UsageError, match="is a store itself"):
            refused(dials(root / "one", model_folder, collection="three"))
    with pytest.raises(UsageError, match="is a store itself"):
        api.collections(dials(root / "one", model_folder))
    assert sorted(path.name for path in root.iterdir()) == ["one", "two"]


def test_a_collection_that_is_not_there(root, model_folder, tmp_path):
    with pytest.raises(NoStore):
        api.status(dials(root, model_folder, collection="three"))
    assert api.collections(dials(tmp_path / "nowhere", model_folder)) == ()


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "/tmp", "a.old", "-a", "a b", "é", "x" * 65, "a\n"]
)
def test_a_name_is_checked(name):
    with pytest.raises(UsageError, match="collection is .*; valid: "):
        updated(Config(), {"collection": name})


def test_what_is_beside_a_collection_is_none(root, model_folder, tmp_path):
    (root / "two.old").mkdir()
    (root / "notes").mkdir()
    try:
        assert [one.name for one in api.collections(dials(root, model_folder))] == ["one", "two"]
    finally:
        (root / "two.old").rmdir()
        (root / "notes").rmdir()


def test_the_stores_among_the_documents_are_not_read(model_folder, tmp_path):
    documents = written(tmp_path / "docs", ONE)
    first = dials(documents / "root", model_folder, collection="one")
    api.ingest([documents], first)
    (documents / "root" / "one" / "note.txt").write_text("Not a document.")
    done = api.ingest([documents], updated(first, {"collection": "two"}))
    assert (
        done.files == 1
        and content_of(documents / "root" / "one")[0].keys()
        == content_of(documents / "root" / "two")[0].keys()
    )


# --- settings


@pytest.mark.parametrize(
    "change",
    [
        {"documents.chunk_tokens": 12},
        {"memorize.codec": "float32"},
        {"memorize.tokens_per_vector": 2},
    ],
)
def test_a_setting_that_is_not_the_stores_is_refused_before_a_model_is_loaded(
    root, model_folder, tmp_path, change
):
    config = updated(dials(root, "/no/such/model", collection="one"), change)
    before = content_of(root / "one")
    for refused in (api.ingest, api.estimate):
        with pytest.raises(UsageError, match="is .*; this store was made with"):
            refused([written(tmp_path / "docs", TWO)], config)
    assert content_of(root / "one") == before


def test_what_is_left_open_is_taken_from_the_store(model_folder, tmp_path):
    made = dials(
        tmp_path / "store", model_folder, memorize__codec="float32", documents__chunk_tokens=6
    )
    api.ingest(
        [written(tmp_path / "docs", {"a.txt": "The lamp of the harbour was repaired in March."})],
        made,
    )
    left_open = updated(
        made,
        {
            "memorize.codec": "",
            "documents.chunk_tokens": 0,
            "memorize.tokens_per_vector": 0,
            "model.id": "",
        },
    )
    written(tmp_path / "docs", {"b.txt": "Its keeper, Aldo Ruiz, wrote a letter about the fan."})
    api.ingest([tmp_path / "docs"], left_open)
    chunks = api.chunks(left_open)
    assert {one.place.path for one in chunks} == {"a.txt", "b.txt"} and max(
        one.verdict.tokens for one in chunks
    ) <= 6
    assert {codec for _, _, codec, *_ in content_of(tmp_path / "store")[0].values()} == {"float32"}
