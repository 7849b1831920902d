"""Many processes at one store: one writer, all others are told who it is.

Readers always see a whole store.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import small
from kills import Trial
from world import Child, Scene, World

from rag_memtok.store.store import open_store


def writers(scene: Scene, count: int) -> Iterator[Trial]:
    """`count` processes start the same work at once.

    One does it, the others end with 11 and name its pid and its start.
    """
    scene.ready()
    gate = scene.world.folder / "gate"  # while it is there the one that writes waits
    gate.touch()
    with scene.world.trial(scene.base) as store:
        children = [scene.world.start(lambda: scene.run(store)) for _ in range(count)]
        codes: dict[Child, int] = {}
        deadline = time.monotonic() + 600
        while len(codes) < count:
            codes |= {
                child: code
                for child in children
                if child not in codes and (code := child.ended()) is not None
            }
            if len(codes) >= count - 1 or time.monotonic() > deadline:
                gate.unlink(missing_ok=True)
            time.sleep(0.01)
        wrong = scene.world.broken(store)
        if small.content_of(store) != scene.after:
            wrong.append("the store is not what one writer makes")
        if sorted(codes.values()) != [0] + [11] * (count - 1):
            wrong.append(f"they ended with {sorted(codes.values())}")
        winners = [child.pid for child, code in codes.items() if code == 0]
        for child, code in codes.items():
            named = re.search(
                r"(?:process (\d+), started 20\d\d-.*|another process) is writing to ", child.output
            )
            if code == 11 and (named is None or (named[1] and int(named[1]) not in winners)):
                wrong.append(f"the writer is not named: {child.output[-200:]}")
        yield Trial(
            f"{count} writers",
            f"one wrote, {list(codes.values()).count(11)} were told who",
            tuple(wrong),
        )


def readers(scene: Scene, count: int) -> Iterator[Trial]:
    """`count` processes read all the time while one writes; one of them audits.

    None is ever told of damage, all see whole generations.
    """
    scene.ready()
    world = scene.world
    with world.trial(scene.base) as store:
        end = world.folder / "end"
        end.unlink(missing_ok=True)
        known = scene.before[0] | scene.after[0]
        children = [world.start(lambda: look(world, store, end, known)) for _ in range(count - 1)]
        children.append(world.start(lambda: audit_again(world, store, end)))
        writer = world.start(lambda: scene.run(store))
        code = writer.wait()
        end.touch()
        ended = [(child.wait(), child) for child in children]
        looks = sum(looks_of(child) for _, child in ended)
        wrong = [f"a reader: {child.output[-300:]}" for found, child in ended if found]
        if code or small.content_of(store) != scene.after:
            wrong.append(f"the writer ended with {code}: {writer.output[-300:]}")
        yield Trial(
            f"{count} readers during {scene.name}",
            "all saw whole generations" if looks else "no reader came to look",
            tuple(wrong),
        )


def looks_of(child: Child) -> int:
    return sum(map(int, re.findall(r"looked (\d+)", child.output)))


def look(world: World, store: Path, end: Path, known: dict) -> None:
    """Reads everything in one generation, again and again.

    Every document has to be whole, every chunk as before or as after.
    """
    looks = 0
    while not end.exists() or not looks:
        with open_store(store, write=False) as opened, opened.snapshot():
            for document in opened.documents():
                places = opened.document_chunks(document.root, document.path)
                assert all(
                    opened.record(place.chunk_id).packed == known[place.chunk_id][0]
                    for place in places
                )
        looks += 1
        time.sleep(0.05)  # or on two cores the writer never gets its turn
    os.write(1, f"looked {looks}".encode())


def audit_again(world: World, store: Path, end: Path) -> None:
    """Audits again and again.

    A chunk may have gone meanwhile, nothing may be a mismatch or damaged.
    """
    looks = 0
    while not end.exists() or not looks:
        assert not (wrong := world.broken(store)), wrong
        looks += 1
    os.write(1, f"looked {looks}".encode())
