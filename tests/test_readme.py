"""The README's code runs, and its commands are commands.

This goes for those of benchmarks/ and training/, too.
"""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from rag_memtok.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def inline(start: str, text: str) -> list[str]:
    """What stands between two ` and begins so; it may go on in the next line."""
    return [
        found.replace("\n", " ") for found in re.findall(rf"`({start}[^`\n]*\n?[^`\n]*)`", text)
    ]


def commands() -> list[str]:
    lines = "\n".join(blocks("")).splitlines() + inline("rag-memtok ", README)
    written = (line.split("#")[0].split(" < ")[0].removeprefix("$ ").strip() for line in lines)
    return sorted({line for line in written if line.startswith("rag-memtok ")})


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    counts, source, proven = capsys.readouterr().out.splitlines()
    assert counts.split()[0].isdigit()
    assert (source, proven) == ("testbench.toml", "1")


def test_there_are_commands_in_the_readme() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_readme_parse(line: str) -> None:
    group = get_command(app)
    name, *arguments = shlex.split(line)[1:]
    if name.startswith("-"):
        group.make_context("rag-memtok", [name], resilient_parsing=True)
        return
    command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments, resilient_parsing=False).close()


def scripts() -> set[tuple[str, str]]:
    """The commands that run a script, with the script's path.

    They are those of the README, the log, training's README, and the scripts' docstrings.
    """
    pages = [
        ROOT / name
        for name in (
            "README.md",
            "benchmarks/log.md",
            "training/README.md",
            "rag_memtok/mini/lm/README.md",
        )
    ]
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


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
