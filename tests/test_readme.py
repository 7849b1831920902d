"""The README's code runs, and its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from rag_memtok.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("")).splitlines() + re.findall(r"`(rag-memtok [^`\n]*)`", README)
    written = (line.split("#")[0].split(" < ")[0].removeprefix("$ ").strip() for line in lines)
    return sorted({line for line in written if line.startswith("rag-memtok ")})


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
