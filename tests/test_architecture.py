"""What CONTRIBUTING says of the house.

It says which file may import which, where a library lives, and how long things are.
"""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from rag_memtok import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rag_memtok"
HOMES = {
    "transformers": {"model.lm", "model.precision", "model.gguf", "model.tokenizer"},
    "gguf": {"model.gguf_header"},
    "huggingface_hub": {"model.lm", "retrieval.embedder"},
    "faiss": {"retrieval.index"},
    "sentence_transformers": {"retrieval.embedder"},
    "sqlite3": {
        "store.files",
        "store.schema",
        "store.words",
        "store.upgrade",
        "store.database",
        "store.integrity",
    },
    "typer": {
        "cli.options",
        "cli.ingest",
        "cli.ask",
        "cli.verify",
        "cli.manage",
        "cli.evaluate",
        "cli.serve",
        "cli.app",
    },
    "watchfiles": {"pipeline.watch"},
    "rich": {"cli.console"},
    "semantic_text_splitter": {"documents.split"},
    "snowballstemmer": {"store.stems"},
    "pathspec": {"documents.walk"},
    "charset_normalizer": {"documents.encodings"},
    "openpyxl": {"documents.sheets"},
    "pypdf": {"documents.extract"},
    "markitdown": {"documents.extract"},
    "odfdo": {"documents.opendocument"},
    "striprtf": {"documents.extract"},
    "peft": {"model.lora"},
    "multiprocessing": {"memory.workers"},
    "datasets": {"evaluation.questions"},
    "matplotlib": {"evaluation.figures"},
    "bitsandbytes": {"model.quantize"},
    "pyarrow": {"cluster.rows"},
    "ray": {"cluster.pool"},
    "langchain_core": {"integrations.langchain"},
    "llama_index": {"integrations.llamaindex"},
    "fastapi": {
        "serve.serving",
        "serve.streams",
        "serve.openai",
        "serve.store_routes",
        "serve.app",
    },
    "starlette": {"serve.app"},
    "pydantic_core": {"serve.openai_schemas"},
    "pydantic": {"serve.schemas", "serve.job_schemas", "serve.openai_schemas", "serve.app"},
    "uvicorn": {"serve.app"},
}
# each command imports what it needs
DOORS = {"cli.ingest", "cli.ask", "cli.verify", "cli.serve", "cli.manage", "cli.evaluate"}
OPTIONAL = {
    "model.gguf",
    "model.gguf_header",
    "model.tokenizer",
    "pipeline.watch",
    "documents.encodings",
    "documents.extract",
    "documents.opendocument",
    "documents.sheets",
    "model.quantize",
    "model.lm",
    "model.precision",
    "model.lora",
    "retrieval.embedder",
    "cluster.pool",
}
LAZY = DOORS | OPTIONAL | {"evaluation.figures"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# what vLLM reads prompts from; nothing of it is loaded here
SAVES = "remote.py"
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "np.load",
    "numpy.load",
    "pickle.load",
    "pickle.loads",
}
MAX_LINES, MAX_FUNCTION, MEDIAN, NINETIETH, MAX_TRACKED = 400, 80, 12, 40, 58 * 2**20

PATHS = [*sorted(PACKAGE.glob("*.py")), *sorted(PACKAGE.glob("*/*.py"))]
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PATHS
    if path.stem != "__init__"
}
FOLDERS = {name.partition(".")[0] for name in FILES if "." in name}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
OTHERS = [
    path for folder in ("training", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))
]


def listing():
    """The files that CONTRIBUTING prints, in its order."""
    block = re.search(
        r"^rag_memtok/\n(.*?)^training/",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    found, folder = [], ""
    for indent, name, files in re.findall(
        r"^( +)(?:(\w+)/ |((?:\w+\.py +)+))", block[1], re.MULTILINE
    ):
        folder = f"{name}." if name else folder if len(indent) > 2 else ""
        found += [
            folder + file.removesuffix(".py") for file in files.split() if file != "__init__.py"
        ]
    return found


ORDER = listing()


def imported(node):
    """The modules that an import statement names, dotted."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    inside = (
        node.module == "rag_memtok" or (node.module or "").removeprefix("rag_memtok.") in FOLDERS
    )
    return (
        [f"{node.module}.{alias.name}" for alias in node.names] if inside else [node.module or ""]
    )


def for_types_only(tree):
    """The imports under `if TYPE_CHECKING`."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        inner
        for block in blocks
        for inner in ast.walk(block)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    }


def imports(tree, types=False):
    """Each import statement that runs, and what it imports."""
    skipped = set() if types else for_types_only(tree)
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in skipped
    ]
    return [(node, name) for node in found for name in imported(node)]


def functions(tree):
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def length(node):
    return node.end_lineno - node.lineno + 1


def test_every_file_has_its_place_in_the_listing():
    assert sorted(FILES) == sorted(ORDER), "CONTRIBUTING's listing"


@pytest.mark.parametrize("name", FILES)
def test_imports_run_upstairs_only(name):
    for node, module in imports(TREES[name], types=not name.startswith("cli.")):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{name} imports relatively"
        package, _, other = module.partition(".")
        if package == "rag_memtok" and other in ORDER:
            assert ORDER.index(other) < ORDER.index(name), (
                f"{name} imports {other}, which is printed below it"
            )
        assert package not in ("training", "benchmarks", "tests"), f"{name} imports {module}"


@pytest.mark.parametrize("name", FILES)
def test_a_library_lives_in_its_home(name):
    for _, module in imports(TREES[name], types=True):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or name in homes, f"{module} in {name}; its home is {homes}"


def test_every_home_is_lived_in():
    for library, homes in HOMES.items():
        for home in homes & FILES.keys():
            assert any(
                module.split(".")[0] == library for _, module in imports(TREES[home], types=True)
            ), f"{home} has no {library}"


@pytest.mark.parametrize("name", FILES)
def test_only_the_doors_import_within_functions(name):
    within = [
        node
        for function in functions(TREES[name])
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not within or name in LAZY, f"{name} imports within a function, line {within[0].lineno}"


def test_the_tables_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    printed = re.findall(r"^ +(\w+)\.py .*\btable ([A-Z]+)", text, re.MULTILINE)
    wanted = re.findall(r"^\|.*`([A-Z]+)`.*\| `(?:\w+/)(\w+)\.py` \|", text, re.MULTILINE)
    named = {*printed, *((file, table) for table, file in wanted)}
    assert len(named) > 5
    for file, table in sorted(named):
        (source,) = (path for name, path in FILES.items() if name.rpartition(".")[2] == file)
        assert re.search(rf"^{table}\b.* = ", source.read_text(encoding="utf-8"), re.MULTILINE), (
            f"{file}.py has no {table}"
        )


def test_the_first_floor_needs_no_third_party():
    for name in ("errors", "config", "settings", "child"):
        assert {module.split(".")[0] for _, module in imports(TREES[name])} <= {
            *sys.stdlib_module_names,
            "rag_memtok",
        }


@pytest.mark.parametrize(
    "path", [*FILES.values(), *OTHERS], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_nothing_that_runs_foreign_code(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {module.split(".")[0] for _, module in imports(tree, types=True)} & FORBIDDEN_MODULES
    forbidden = FORBIDDEN_CALLS - ({"torch.save"} if path == PACKAGE / "model" / SAVES else set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in forbidden, (
                f"line {node.lineno}: {ast.unparse(node.func)}"
            )
            for keyword in node.keywords:
                safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "trust_remote_code" or safe, (
                    f"line {node.lineno}: trust_remote_code"
                )
                assert keyword.arg != "shell" or safe, f"line {node.lineno}: shell"


def test_every_exception_is_drawn_with_its_code_and_made_somewhere():
    own = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.RagMemtokError)
    ]
    drawn = re.findall(r"-- (\w+) +(\d+) ", errors.__doc__)
    assert sorted(drawn) == sorted(
        (one.__name__, str(one.exit_code)) for one in own if one is not errors.RagMemtokError
    )
    sources = [path.read_text(encoding="utf-8") for name, path in FILES.items() if name != "errors"]
    assert not [name for name, _ in drawn if not any(f"{name}(" in source for source in sources)]


def test_files_and_functions_are_short():
    lines = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()
    }
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
    lengths = {
        f"{name}.{node.name}": length(node)
        for name, tree in TREES.items()
        for node in functions(tree)
    }
    assert {name: count for name, count in lengths.items() if count > MAX_FUNCTION} == {}
    assert statistics.median(lengths.values()) <= MEDIAN
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= NINETIETH


VARIADIC = ("ReadOnlyCell", "command", "options.flags", "options.settings")


@pytest.mark.parametrize(
    "path", [*FILES.values(), *OTHERS], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_calls_of_many_arguments_name_them(path):
    """Six numbers in a row are swapped without a sound."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) not in VARIADIC:
            assert len(node.args) < 6, f"line {node.lineno}: {ast.unparse(node.func)}"


def test_values_of_many_fields_name_them():
    """A dataclass of more than four fields is keyword-only."""
    for name, tree in TREES.items():
        if "." not in name:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
                made = [ast.unparse(one) for one in node.decorator_list]
                positional = any("dataclass" in one and "kw_only" not in one for one in made)
                assert len(fields) <= 4 or not positional, f"{name}.{node.name}"


def test_print_is_the_terminals():
    for name, tree in TREES.items():
        called = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        ]
        assert not called or name == "cli.console", f"{name} prints, line {called[0].lineno}"


def test_nothing_is_decided_at_import():
    """No global dtype, seed or thread number; no state that two callers would share."""
    for name, tree in TREES.items():
        for node in tree.body:
            calls = (
                [ast.unparse(one.func) for one in ast.walk(node) if isinstance(one, ast.Call)]
                if isinstance(node, ast.Expr)
                else []
            )
            assert not calls, f"{name} calls {calls} when it is imported"
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)], (
            f"{name} has a global"
        )


def test_importing_the_command_line_loads_no_model_library():
    script = (
        "import rag_memtok.cli.app, sys; print(*sorted({'torch', 'transformers', 'faiss', "
        "'numpy', 'sqlite3'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_what_is_tracked_stays_small():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("no git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file()) < MAX_TRACKED
    assert not [path for path in paths if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
