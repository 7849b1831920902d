"""Where a dial's value comes from, and what is refused."""

import json
import math
from dataclasses import is_dataclass
from typing import Literal, get_args, get_origin

import pytest

from rag_memtok import config
from rag_memtok.cli import options
from rag_memtok.config import Config
from rag_memtok.errors import UsageError
from rag_memtok.pipeline.manifest import complete_config
from rag_memtok.settings import FILE_NAME, ONLY_WITH, PREFIX, asked, dials, here, load, updated


def value_of(settings, dial):
    for name in dial.split("."):
        settings = getattr(settings, name)
    return settings


def variable(dial):
    return PREFIX + dial.replace(".", "_").upper()


def written(value):
    return json.dumps(value)  # which is TOML too, for these values


def put_file(folder, dial, value):
    section, _, name = dial.rpartition(".")
    (folder / FILE_NAME).write_text(
        (f"[{section}]\n" if section else "") + f"{name} = {written(value)}\n"
    )


# Three valid values of a dial, for a flag, a variable and the file: each another than that of the
# next weaker source, the file's than the default.
THREE = {
    str: ("one", "two", "three"),
    int: (5, 6, 7),
    float: (0.5, 0.25, 0.125),
    tuple: (["a"], ["b"], ["c", "d"]),
}


def three_of(dial):
    kind = dials()[dial]
    if kind is bool:
        default = value_of(Config(), dial)
        return not default, default, not default
    if get_origin(kind) is Literal:
        return (get_args(kind) * 3)[1:4]
    return THREE[get_origin(kind) or kind]


@pytest.mark.parametrize("dial", dials())
def test_flags_win_over_variables_those_over_the_file_that_over_the_default(dial, tmp_path):
    flag, variable_value, filed = three_of(dial)
    default = value_of(Config(), dial)
    kind = type(default)
    text = ":".join(variable_value) if isinstance(variable_value, list) else str(variable_value)
    put_file(tmp_path, dial, filed)
    environment = {variable(dial): text}
    assert value_of(load({}, {}, tmp_path / "elsewhere"), dial) == default
    assert value_of(load({}, {}, tmp_path), dial) == kind(filed)
    assert value_of(load({}, environment, tmp_path), dial) == kind(variable_value)
    assert value_of(load({dial: flag}, environment, tmp_path), dial) == kind(flag)


@pytest.mark.parametrize("dial", [dial for dial, kind in dials().items() if kind is bool])
@pytest.mark.parametrize(
    "text, meant",
    [("true", True), ("1", True), ("True", True), ("false", False), ("0", False), ("FALSE", False)],
)
def test_a_variable_says_yes_or_no_as_a_word_or_a_digit(dial, text, meant, tmp_path):
    assert value_of(load({}, {variable(dial): text}, tmp_path), dial) is meant


@pytest.mark.parametrize("dial", dials())
def test_every_dial_has_a_type(dial, tmp_path):
    class Foreign:
        pass

    for wrong in (Foreign(), None, {"a": 1}, [1]):
        with pytest.raises(UsageError, match=dial):
            updated(Config(), {dial: wrong})
    if dials()[dial] in (int, float, bool):
        with pytest.raises(UsageError, match=dial):
            load({}, {variable(dial): "many"}, tmp_path)
    if dials()[dial] is not bool:
        with pytest.raises(UsageError, match=dial):
            updated(Config(), {dial: True})


@pytest.mark.parametrize(
    "dial, wrong, valid",
    [
        ("store", "", "a folder; the current one is ."),
        ("model.threads", -1, "0 .automatic. to 1024"),
        ("model.dtype", "int8", "auto, float32, bfloat16, float16"),
        ("model.device", "tpu", "auto, cpu, cuda, mps"),
        ("documents.max_bytes", 0, "1 to 1000000000000000"),
        ("documents.chunk_tokens", 3, "4 to 8192"),
        ("documents.chunk_tokens", 8193, "4 to 8192"),
        ("memorize.tokens_per_vector", -1, "0 .auto. to 8192"),
        ("memorize.steps", -1, "0 .the recipe's own. to 1000000"),
        ("memorize.steps", 10**9, "0 .the recipe's own. to 1000000"),
        ("memorize.batch", 0, "1 to 4096"),
        ("memorize.seconds_per_chunk", -0.5, "0 .no bound. to 1000000"),
        ("memorize.seconds_per_chunk", math.inf, "0 .no bound. to 1000000"),
        ("memorize.tau", math.nan, "0 to 100"),
        ("memorize.max_pins", -2, "-1 .no limit. or more"),
        ("retrieve.k", 0, "1 to 1000"),
        ("retrieve.dense_weight", 1.5, "0 to 1, or -1"),
        ("retrieve.dense_weight", math.nan, "0 to 1, or -1"),
        ("ask.read", "aloud", "auto, memory, unfolded, zoomed, decode, text"),
        ("ask.max_new_tokens", 0, "1 to 8192"),
        ("ask.max_question_tokens", 0, "1 to 8192"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_with_the_range(dial, wrong, valid):
    with pytest.raises(UsageError, match=f"{dial} is .*; valid: {valid}") as refused:
        updated(Config(), {dial: wrong})
    assert repr(wrong) in str(refused.value)


def test_an_unknown_dial_is_refused_in_the_file_and_left_alone_in_the_environment(tmp_path):
    load({}, {PREFIX + "SOMETHING_ELSE": "1"}, tmp_path)
    for text in (
        "colour = 1\n",
        "[memorize]\ncolour = 1\n",
        "[colour]\nred = 1\n",
        'model = "mini"\n',
    ):
        (tmp_path / FILE_NAME).write_text(text)
        with pytest.raises(UsageError, match="no setting .*(colour|model)"):
            load({}, {}, tmp_path)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RETRIEVE_KAY", "RETRIEVE_K"),
        ("STOER", "STORE"),
        ("MODEL_THREAD", "MODEL_THREADS"),
        ("ASK_MAX_TOKENS", "ASK_MAX_NEW_TOKENS"),
    ],
)
def test_a_misspelt_variable_is_named_with_what_it_may_mean(name, meant, tmp_path):
    with pytest.raises(UsageError, match=f"no setting {PREFIX}{name}; did you mean .*{meant}"):
        load({}, {PREFIX + name: "1"}, tmp_path)


@pytest.mark.parametrize("name", ["TRUST_STORE", "DATA", "REGENERATE", "CRASH_AT", "PATH"])
def test_variables_that_are_no_settings_are_left_alone(name, tmp_path):
    assert load({}, {PREFIX + name: "1"}, tmp_path) == Config()


def test_a_misspelt_setting_in_the_file_is_named_with_what_it_may_mean(tmp_path):
    (tmp_path / FILE_NAME).write_text("[retrieve]\nkay = 3\n")
    with pytest.raises(UsageError, match="no setting 'retrieve.kay'; did you mean .*retrieve.k"):
        load({}, {}, tmp_path)


@pytest.mark.parametrize("content", [b"store = ", b"store = 'caf\xe9'", b"\x00"])
def test_a_file_that_is_not_toml_is_named(content, tmp_path):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(UsageError, match=FILE_NAME):
        load({}, {}, tmp_path)


def test_numbers_in_the_file_may_lack_a_decimal_point(tmp_path):
    (tmp_path / FILE_NAME).write_text("[memorize]\nseconds_per_chunk = 2\n")
    found = load({}, {}, tmp_path).memorize.seconds_per_chunk
    assert found == 2.0 and type(found) is float


def test_the_dials_are_all_fields_of_frozen_classes():
    sections = [value for value in vars(config).values() if is_dataclass(value)]
    assert len(sections) == 9
    with pytest.raises(AttributeError):
        Config().store = "elsewhere"
    assert all(value_of(Config(), dial) is not None for dial in dials())


@pytest.mark.parametrize("dial", dials())
def test_every_dial_has_a_help_that_an_option_of_it_prints(dial):
    option = options.parameter(dial, stored=False)
    (told,) = option.annotation.__metadata__
    assert told.help == options.field_of(dial).metadata["help"] and told.help.endswith(".")
    assert str(told.default).startswith("-") and not str(told.show_default).startswith(
        options.OF_STORE
    )
    assert option.default in (None, False)


def test_what_options_come_to_is_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable("retrieve.k"), "7")
    found = []

    @options.settings("model.id", "documents.exclude", "documents.gitignore", "retrieve.k")
    def command(settings, much=False):
        found.append((settings, much))

    given = {"model__id": "toy", "documents__exclude": ["*.md"], "documents__gitignore": True}
    command(**given, retrieve__k=None, much=True)
    command(model__id=None, documents__exclude=[], documents__gitignore=False, retrieve__k=2)
    (first, much), (second, little) = found
    assert (first.model.id, first.documents.exclude) == ("toy", ("*.md",)) and much and not little
    assert (first.documents.gitignore, second.documents.gitignore) == (False, True)
    assert (first.retrieve.k, second.retrieve.k) == (7, 2) and second.documents.exclude == ()


@pytest.mark.parametrize("dial", ONLY_WITH)
def test_a_flag_that_the_engine_has_no_use_for_is_refused(dial, tmp_path):
    given = {dial: three_of(dial)[0]}
    other, wanted = ONLY_WITH[dial]
    with pytest.raises(UsageError, match=f"{dial} is .*, which {other} ") as refused:
        asked(given, {}, tmp_path)
    assert f"--engine {wanted}" in refused.value.remedy
    if other == "cluster.engine":  # a held store takes no such keyword
        assert "in Python" not in refused.value.remedy
    else:
        keyword = {other.replace(".", "__"): wanted}
        assert f"{next(iter(keyword))}={wanted!r} in Python" in refused.value.remedy
        here(**{dial.replace(".", "__"): given[dial]}, **keyword)
    with pytest.raises(UsageError, match=dial):
        here(**{dial.replace(".", "__"): given[dial]})
    for flags, environment in (
        (given | {other: wanted}, {}),
        (given, {variable(other): wanted}),
        ({}, {variable(dial): str(given[dial])}),  # for when it is wanted
    ):
        assert value_of(asked(flags, environment, tmp_path), dial) == given[dial]


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("http://a:99999", False),
        ("http://a:0", False),
        ("http://a..b:80", False),
        ("http://.a", False),
        (f"http://{'a' * 64}:80", False),
        ("http://[:::]:80", False),
        ("http://[127.0.0.1]", False),
        ("http://[]", False),
        ("http://me:secret@a", False),
        ("http://\u00e4:80", False),
        ("a_b.example.:8000", True),
        ("https://[::1]:8000/v1", True),
        ("127.0.0.1:65535", True),
        (f"{'a' * 63}.example/x~y", True),
    ],
)
def test_an_address_is_one_that_a_server_may_have(url, fits):
    if fits:
        assert config.Ask(url=url).url == url
        return
    with pytest.raises(UsageError, match="ask.url is"):
        config.Ask(url=url)


def test_a_refused_value_is_told_with_where_it_is_set(tmp_path):
    wrong = {variable("retrieve.k"): "0", variable("model.threads"): "1"}
    with pytest.raises(UsageError, match=r"retrieve.k is 0; .*RAG_MEMTOK_RETRIEVE_K") as refused:
        load({}, wrong, tmp_path)
    assert "unset RAG_MEMTOK_RETRIEVE_K" in refused.value.remedy
    assert "rag-memtok config" not in refused.value.remedy  # which fails on it as well
    for text in ("[retrieve]\nk = 0\n", "[retrieve]\nk = 'x'\n", "[retrieve]\nkay = 1\n"):
        (tmp_path / FILE_NAME).write_text(text)
        with pytest.raises(UsageError, match=FILE_NAME) as refused:
            load({}, {}, tmp_path)
        assert str(tmp_path / FILE_NAME) in refused.value.remedy
    with pytest.raises(UsageError, match="retrieve.k is 0") as refused:
        load({"retrieve.k": 0}, {}, tmp_path / "elsewhere")
    assert "set in" not in str(refused.value)


def test_what_only_a_store_says_is_no_setting(tmp_path):
    assert not {"model.recorded", "retrieve.recorded"} & dials().keys()
    with pytest.raises(UsageError, match="no setting"):
        updated(Config(), {"model.recorded": True})
    known, foreign = {"model": "mini", "embedder": "mini"}, {"model": "a/b", "embedder": "c/d"}
    for manifest, recorded in (({}, False), (known, False), (foreign, True)):
        found = complete_config(Config(), manifest)
        assert (found.model.recorded, found.retrieve.recorded) == (recorded, recorded)
    given = updated(Config(), {"model.id": "a/b", "retrieve.embedder": "c/d"})
    found = complete_config(given, foreign)
    assert not found.model.recorded and not found.retrieve.recorded
