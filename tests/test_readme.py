"""The code of the README and of docs/ runs, and its commands are commands.

This goes for the scripts' commands of benchmarks/ and training/, too.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from rag_memtok.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def inline(start: str, text: str) -> list[str]:
    """What stands between two ` and begins so; it may go on in the next lines."""
    return [
        found.replace("\n", " ") for found in re.findall(rf"`({start}[^`\n]*(?:\n[^`\n]+)*)`", text)
    ]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Each page's commands."""
    found = set()
    for page, text in PAGES.items():
        lines = "\n".join(blocks("", text)).splitlines()
        lines += inline("rag-memtok ", without_blocks(text))
        for line in lines:
            written = line.split("#")[0].split(" < ")[0].removeprefix("$ ").strip()
            if written.startswith("rag-memtok ") and " COMMAND " not in written:
                found.add((page, written))
    return sorted(found)


@pytest.mark.parametrize(
    "page, code",
    [  # each is a process with a model; the README's is the first that people try
        pytest.param(page, code, marks=() if page == "README.md" else pytest.mark.slow)
        for page, text in PAGES.items()
        for code in blocks("python", text)
    ],
)
def test_the_python_of_a_page_runs(
    page: str,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})
    out = capsys.readouterr().out
    assert "testbench.toml" in out
    if page == "README.md":
        counts, source, proven = out.splitlines()
        assert counts.split()[0].isdigit()
        assert (source, proven) == ("testbench.toml", "1")


def test_there_are_commands_in_the_readme_and_in_the_documentation() -> None:
    assert len([page for page, _ in commands() if page == "README.md"]) >= 8
    assert len(commands()) >= 50


@pytest.mark.parametrize("page, line", commands())
def test_the_commands_of_a_page_parse(page: str, line: str) -> None:
    group = get_command(app)
    name, *arguments = shlex.split(line)[1:]
    if name.startswith("-"):
        group.make_context("rag-memtok", [name], resilient_parsing=True)
        return
    command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments, resilient_parsing=False).close()


def test_the_options_that_a_page_names_are_there() -> None:
    """Those that stand alone between two `, of any command, make or python script."""
    known = set(re.findall(r"--[a-z][a-z-]+", "\n".join(map(str, options()))))
    for path in (*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "training").glob("*.py")):
        known |= set(re.findall(r"\"(--[\w-]+)\"", path.read_text(encoding="utf-8")))
    for page, text in PAGES.items():
        for found in inline("--", without_blocks(text)):
            named = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", found))
            assert named <= known | {"--help", "--install-completion"}, f"{page}: {found}"


def options() -> list[str]:
    group = get_command(app)
    return [
        option
        for command in group.commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
    ]


def test_what_a_page_makes_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    for page, text in PAGES.items():
        named = re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, page


def test_what_a_page_names_of_the_repository_is_there() -> None:
    """Files and folders between two `: benchmarks/log.md, rag_memtok/errors.py, ..."""
    folders = "rag_memtok|benchmarks|training|tests|data|notebooks"
    for page, text in PAGES.items():
        for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text):
            found = ROOT / path
            assert found.exists() or list(found.parent.glob(f"{found.name}.*")), f"{page}: {path}"


def scripts() -> set[tuple[str, str]]:
    """The commands that run a script, with the script's path.

    They are those of the README, docs/, the log, training's README, and the scripts' docstrings.
    """
    others = ("benchmarks/log.md", "training/README.md", "rag_memtok/mini/lm/README.md")
    pages = [ROOT / name for name in (*PAGES, *others)]
    found = set()
    for page in (*pages, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "training").glob("*.py")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = inline("python -m (?:benchmarks|training)", text) + re.findall(
            r"^(?:    )?((?:nice |python |torchrun ).*)", text, re.MULTILINE
        )
        for line in lines:
            for module, options in re.findall(
                r"(?<=-m )((?:benchmarks|training)\.[a-z]\w*)(.*)", line
            ):
                found.add((options, module.replace(".", "/") + ".py"))
    return found


def test_the_commands_of_the_scripts_have_their_options() -> None:
    """Read, not run: a script loads what it measures."""
    assert len(scripts()) > 30
    for line, script in sorted(scripts()):
        source = (ROOT / script).read_text(encoding="utf-8")
        if " options(__doc__" in source:
            source += (ROOT / "benchmarks/measure.py").read_text(encoding="utf-8")
        there = set(re.findall(r"add_argument\(\s*\"(--[\w-]+)\"", source))
        assert set(re.findall(r" (--[\w-]+)", line)) <= there, f"{script} has not all of: {line}"


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1200 and len(README.splitlines()) <= 160


def test_every_number_of_the_readmes_first_screen_and_table_is_in_the_results() -> None:
    """So that no figure is changed in one place alone."""
    results = PAGES["docs/results.md"].replace("\n", " ")
    (table,) = re.findall(r"(?:^\|.*\n)+", README.partition("## Results")[2], re.MULTILINE)
    numbers = set(re.findall(r"\d+\.\d", table))
    head = README.partition("```")[0].partition("## Results")[0]
    numbers |= set(re.findall(r"\d[\d,]*\d(?:\.\d)?", without_blocks(head)))
    assert len(numbers) > 15
    missing = {number for number in numbers if number not in results}
    assert missing <= {"135", "89"}, missing  # million parameters; 89.2, rounded


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_a_torch_that_was_asked_for_stays_and_any_other_follows_the_constraints(tmp_path) -> None:
    python, log = tmp_path / ".venv" / "bin" / "python", tmp_path / "log"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> log\ncase "$*" in *none*) exit 1; esac\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / ".made").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def installed(constrained: str, *words: str) -> list[str]:
        log.write_text("")
        (tmp_path / "constraints.txt").write_text(f"numpy==2\n{constrained}\n")
        subprocess.run(
            ["make", ".venv/.torch", *words], cwd=tmp_path, env=outer, capture_output=True
        )
        return re.findall(r"torch==\S+", log.read_text())

    assert installed("torch==2.0") == ["torch==2.0"] and installed("torch==2.0") == []
    assert installed("torch==2.1") == ["torch==2.1"]
    assert installed("torch==2.1", "TORCH=torch==none") == ["torch==none"]
    assert installed("torch==2.1") == []  # what could not be had is not asked for again
    assert installed("torch==2.1", "TORCH=torch==1.9") == ["torch==1.9"]
    assert installed("torch==2.2") == []


def test_nothing_is_left_to_fill_in() -> None:
    for page, text in PAGES.items():
        assert "@@" not in text and "REPOSITORY" not in text, page
