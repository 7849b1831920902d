"""What a store of many chunks costs: a store is made, each command is run on it, a table printed.

    python -m benchmarks.scale --chunks 100000 --work build/scale
    python -m benchmarks.scale --chunks 20000 --work build/scale --only export,import
    python -m benchmarks.scale --keys 300000 --work build/scale     the index beyond 200,000 keys
    python -m benchmarks.scale --gpus 20 --gpu-seconds 2.5 --commit 0.004

The chunks are made by rule, not written: 4 vectors of 576 in float16, a text of some 30 words, the
key that the embedded retriever gives it. Every command runs in a process of its own; its memory is
the most it had resident, less what it had before, when all was imported. The last form computes, it
measures nothing: what so many GPUs would do, each writing a chunk in so many seconds, if one
process commits a chunk in so many.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rag_memtok.cli.console import say
from rag_memtok.cli.tables import put_markdown
from rag_memtok.config import Config
from rag_memtok.datatypes import Occurrence, Record, StoredDocument, Verdict, sha256_of_text
from rag_memtok.datatypes import sha256_of_tokens as of_tokens
from rag_memtok.pipeline import api
from rag_memtok.pipeline.manifest import KEPT, REQUIRED
from rag_memtok.retrieval.embedder import load_embedder
from rag_memtok.retrieval.index import NEIGHBOURS, build, open_index, recall
from rag_memtok.retrieval.lines import EVERY
from rag_memtok.retrieval.search import search
from rag_memtok.settings import updated
from rag_memtok.store import ownership
from rag_memtok.store.files import CACHES
from rag_memtok.store.store import Store, create, open_store

ROWS, WIDTH = 4, 576
A_FILE = 20  # chunks
TOGETHER = 500
ASKED = 20
SINGLE = 500  # chunks put one by one, as an ingest does
NAMES = (
    "Aldo Berta Cosmo Dalia Edda Frida Gerd Hanna Ivo Jana Karl Lena Milo Nora Otto Paula".split()
)
THINGS = (
    "lamp fan kiln press sieve crane valve pump motor ledger boat roof oven scale gate loom wheel "
    "belt chain filter gauge bearing boiler winch cable spring lever drum hopper chute"
).split()
PLACES = "harbour mill cellar yard hall attic quay barn office canteen bridge depot garage".split()
DOES = "repaired sold painted inspected replaced measured borrowed cleaned ordered moved".split()


def sentence(chance: random.Random) -> str:
    """Some fact, of a few millions."""
    return (
        f"{chance.choice(NAMES)} {chance.choice(DOES)} the {chance.choice(THINGS)} "
        f"{chance.randrange(1000)} in the {chance.choice(PLACES)} on day {chance.randrange(365)}."
    )


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Texts of three facts, each with its number."""
    chance = random.Random(seed)
    for number in range(count):
        yield f"Entry {number}. " + " ".join(sentence(chance) for _ in range(3)) + "\n"


def record_of(text: str, key: np.ndarray, chance: np.random.Generator) -> Record:
    """A chunk as if it had been written."""
    packed = chance.standard_normal((ROWS, WIDTH), dtype=np.float32).astype("<f2").tobytes()
    tokens = tuple(range(32))
    verdict = Verdict("exact", len(tokens), margin=1.0)
    return Record(
        sha256_of_text(text),
        tokens=len(tokens),
        tokens_sha256=of_tokens(tokens),
        codec="float16",
        packed=packed,
        shape=(ROWS, WIDTH),
        pins=(),
        verdict=verdict,
        key=key,
    )


def put_file(store: Store, number: int, lines: Sequence[str]) -> None:
    """Puts a file's document in, whose chunks are these."""
    root, file, starts = "/scale", f"{number % 100:02}/{number}.txt", [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    places = [
        Occurrence(
            root,
            path=file,
            ordinal=order,
            chunk_id=sha256_of_text(line),
            start=starts[order],
            end=starts[order + 1],
            locator="",
        )
        for order, line in enumerate(lines)
    ]
    whole = sha256_of_text("".join(lines))
    store.add_document(
        StoredDocument(
            root,
            file=file,
            path=file,
            sha256=whole,
            file_sha256=whole,
            chunks=len(lines),
            characters=starts[-1],
            extractor="text/1",
            size=starts[-1],
            modified=0,
        ),
        places,
    )


def made(folder: Path, chunks: int, threads: int) -> None:
    """Makes the store, unless it is there."""
    if (folder / "made").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    embedder = load_embedder("mini")
    manifest = dict.fromkeys(REQUIRED, "made up") | {
        "embedder": "mini", "embedder_sha256": embedder.digest, "chunk_tokens": "128",
        "tokens_per_vector": "32", "codec": "float16", "write": "exact", "tau": "0.1",
        "model": "none",
    }  # fmt: skip
    assert set(KEPT.values()) <= manifest.keys()
    create(folder, manifest | ownership.new_maker())
    rest, chance, number = texts(chunks), np.random.default_rng(0), 0
    with open_store(folder, write=True) as store:
        while some := [text for _, text in zip(range(TOGETHER), rest, strict=False)]:
            keys = embedder.encode(some, query=False)
            with store.together():
                for text, key in zip(some, keys, strict=True):
                    store.put(record_of(text, key, chance), text)
                for start in range(0, len(some), A_FILE):
                    put_file(store, number, some[start : start + A_FILE])
                    number += 1
            say(f"{number * A_FILE} of {chunks} chunks made")
    (folder / "made").touch()


# --- what is measured: each in a process of its own


def questions() -> list[str]:
    """Questions of which most have an answer."""
    chance = random.Random(1)
    return [f"When was it that {sentence(chance)[:-1]}?" for _ in range(ASKED)]


def asked_cold(config: Config, work: Path) -> int:
    """A first question, with all that is to be opened and loaded but the model."""
    return len(api.search(questions()[0], config))


def asked_warm(config: Config, work: Path) -> float:
    """The median of ASKED questions, in milliseconds."""
    embedder, took = load_embedder("mini"), []
    with open_store(Path(config.store), write=False) as store:
        index = open_index(store, embedder)
        for question in questions():
            began = time.monotonic()
            search(store, index, embedder, question, config.retrieve)
            took.append(time.monotonic() - began)
    return round(1000 * sorted(took)[len(took) // 2], 1)


def put_singly(config: Config, work: Path) -> float:
    """Milliseconds to commit a chunk, as an ingest does it, its key made; on a copy."""
    copy = work / "copy"
    shutil.copytree(config.store, copy, dirs_exist_ok=True)
    embedder, chance = load_embedder("mini"), np.random.default_rng(1)
    with open_store(copy, write=True) as store:
        began = time.monotonic()
        for text in texts(SINGLE, seed=2):
            key = embedder.encode([text], query=False)[0]
            store.put(record_of("New. " + text, key, chance), "New. " + text)
        took = time.monotonic() - began
    shutil.rmtree(copy)
    return round(1000 * took / SINGLE, 2)


def opened(config: Config, work: Path) -> int:
    """Opens the store, and reads what it is bound to."""
    with open_store(Path(config.store), write=False) as store:
        return len(store.manifest)


def indexed(config: Config, work: Path) -> int:
    """Builds the index of keys anew, and the keys of file names and headings."""
    for cache in CACHES:
        (Path(config.store) / cache).unlink(missing_ok=True)
    with open_store(Path(config.store), write=True) as store:
        return open_index(store, load_embedder("mini"), EVERY).keys.ntotal


def hashed(config: Config, work: Path) -> int:
    """The hashes of all files: what an ingest asks of unchanged ones."""
    with open_store(Path(config.store), write=False) as store:
        known = store.file_hashes("/scale")
        return sum(known.get(file) is not None for file in known)


def exported(config: Config, work: Path) -> int:
    """Writes the store into a file."""
    (work / "export").unlink(missing_ok=True)
    return api.export(work / "export", config).bytes


def imported(config: Config, work: Path) -> int:
    """Makes a store of that file."""
    shutil.rmtree(work / "imported", ignore_errors=True)
    return api.import_(work / "export", replace(config, store=str(work / "imported"))).chunks


def removed(config: Config, work: Path) -> int:
    """Forgets a file, of the store that was imported."""
    return len(api.remove(Path("/scale/00/0.txt"), replace(config, store=str(work / "imported"))))


STEPS: dict[str, Callable[[Config, Path], object]] = {
    "open": opened,
    "index": indexed,
    "ask-cold": asked_cold,
    "ask-warm": asked_warm,
    "put": put_singly,
    "status": lambda config, work: api.status(config).summary.chunks,
    "list": lambda config, work: len(api.documents(config)),
    "list-chunks": lambda config, work: len(api.chunks(config)),
    "hashes": hashed,
    "verify-quick": lambda config, work: api.verify(config, structure_only=True).exit_code,
    "export": exported,
    "import": imported,
    "rm": removed,
}


def resident(field: str) -> float:
    """This process's resident memory, MB: VmRSS now, VmHWM the most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def step(name: str, config: Config, work: Path) -> None:
    """Runs one of STEPS in this process, and prints what it took."""
    before, busy = resident("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    began = time.monotonic()
    found = STEPS[name](config, work)
    seconds = time.monotonic() - began
    print(
        json.dumps(
            {
                "found": found,
                "seconds": round(seconds, 3),
                "cpu": round(time.process_time() - busy, 3),
                "mb": round(resident("VmHWM") - before, 1),
            }
        )
    )


def measured(name: str, options: argparse.Namespace) -> tuple[str, ...]:
    """A row of the table: the step in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.scale", "--step", name]
    words += ["--work", str(options.work), "--chunks", str(options.chunks)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        say(done.stderr)
        return (name, "failed", "", "", "")
    found = json.loads(done.stdout.splitlines()[-1])
    say(f"{name}: {found}")
    return (name, *(str(found[one]) for one in ("found", "seconds", "cpu", "mb")))


def beyond(count: int) -> None:
    """The index of so many keys: its lists, and what it finds of the nearest of new questions."""
    embedder = load_embedder("mini")
    some = [embedder.encode(list(texts(count, seed=5)), query=False)]
    keys = np.concatenate(some).astype(np.float32)
    index = build(np.arange(count, dtype=np.int64), keys)
    asked = embedder.encode(questions(), query=True)
    import faiss

    lists = faiss.downcast_index(index.index)
    kind = type(lists).__name__
    looked = f"{lists.nprobe} of {lists.nlist} lists" if hasattr(lists, "nlist") else "all"
    share = recall(lists, keys, np.ascontiguousarray(asked, dtype=np.float32))
    put_markdown(
        ("keys", "index", "looks at", f"recall at {NEIGHBOURS}"),
        [(str(count), kind, looked, f"{share:.3f}")],
    )


def computed(options: argparse.Namespace) -> None:
    """The time that GPUs would take: computed, not measured."""
    each, commit, gpus = options.gpu_seconds, options.commit, options.gpus
    rate = min(gpus / each, 1 / commit)
    rows = {
        "GPUs": gpus,
        "seconds a chunk on one GPU": each,
        "seconds that one process needs to commit a chunk": commit,
        "GPUs that keep that process busy": round(each / commit),
        "chunks a minute": round(60 * rate),
        "hours for 100,000 chunks": round(100_000 / rate / 3600, 1),
        "GPU hours for 100,000 chunks": round(gpus * 100_000 / rate / 3600, 1),
    }
    put_markdown(
        ("computed, not measured", "value"), [(name, str(value)) for name, value in rows.items()]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the store, runs the steps, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=20_000, metavar="N", help="(20000)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/scale"), help="a folder for it all"
    )
    parser.add_argument("--only", default="", help="these steps, with commas")
    parser.add_argument("--step", default="", help="run one step here, and print JSON")
    parser.add_argument(
        "--keys", type=int, default=0, metavar="N", help="the index of N keys alone"
    )
    parser.add_argument("--gpus", type=int, default=0, help="compute what so many GPUs would do")
    parser.add_argument("--gpu-seconds", type=float, default=0.0, help="a chunk, on one GPU")
    parser.add_argument("--commit", type=float, default=0.0, help="seconds to commit a chunk")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    folder = options.work / f"store-{options.chunks}"
    config = updated(Config(), {"store": str(folder), "model.threads": options.threads})
    if options.gpus:
        computed(options)
    elif options.keys:
        beyond(options.keys)
    elif options.step:
        step(options.step, config, options.work)
    else:
        made(folder, options.chunks, options.threads)
        names = options.only.split(",") if options.only else list(STEPS)
        rows = [measured(name, options) for name in names]
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        rows.append(("disk", f"{size / options.chunks:.0f} bytes a chunk", "", "", ""))
        put_markdown(("step", "found", "seconds", "CPU seconds", "MB above the start"), rows)


if __name__ == "__main__":
    main()
