"""Kills: at every marked step, at system calls, and at random moments.

Of the system calls it is every one that changes the store.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tracer
from world import Child, Scene

from rag_memtok.store.files import CRASH_AT


@dataclass(frozen=True)
class Trial:
    """One try: what was done, where it ended, and all that was wrong afterwards.

    One hopes that nothing was wrong.
    """

    where: str
    outcome: str
    wrong: tuple[str, ...]


def judged(scene: Scene, store: Path, where: str, outcome: str, acknowledged: int) -> Trial:
    """Looks at the store as the end left it, then runs the verb again and looks once more."""
    wrong = scene.wrong_now(store, acknowledged) + scene.wrong_after(store)
    return Trial(where, outcome, tuple(wrong))


def at_marks(scene: Scene, numbers: Iterator[int]) -> Iterator[Trial]:
    """SIGKILL at the n-th marked step, for each of `numbers`.

    Stops when the verb ends before it gets there: done, or else that is what was wrong.
    """
    scene.ready()
    for number in numbers:
        with scene.world.trial(scene.base) as store:
            child = scene.world.start(lambda: scene.run(store), **{CRASH_AT: str(number)})
            if (code := child.wait()) != -signal.SIGKILL:
                yield from crashed(f"{scene.name}, before step {number}", code, child.output)
                return
            step = child.output.rpartition("killed: ")[2].strip()
            yield judged(
                scene, store, f"{scene.name}, step {number}: {step}", "killed", child.acknowledged
            )


def at_calls(scene: Scene, numbers: Iterator[int], verdict: int | str) -> Iterator[Trial]:
    """The n-th system call that changes the store is the last or fails, for each of `numbers`.

    It is the last for "kill" and "tear", and fails for an errno. Stops when the verb ends before it
    gets there: done, or else that is what was wrong.
    """
    scene.ready()
    for number in numbers:
        with scene.world.trial(scene.base) as store:
            seen: list[tracer.Call] = []

            def decide(
                call: tracer.Call, number: int = number, seen: list[tracer.Call] = seen
            ) -> int | str | None:
                if call.number == number:
                    seen.append(call)
                    return verdict
                return None

            child = scene.world.start(lambda: (tracer.be_traced(), scene.run(store)))
            code = tracer.follow(child.pid, store, decide)
            if not seen:
                yield from crashed(f"{scene.name}, before call {number}", code, child.output)
                return
            where = f"{scene.name}, call {number}: {seen[0].name} {seen[0].file}"
            trial = judged(
                scene,
                store,
                where,
                "killed" if code == -signal.SIGKILL else f"exit {code}",
                child.acknowledged,
            )
            told = unkilled if isinstance(verdict, str) else unkind
            yield Trial(where, trial.outcome, (*trial.wrong, *told(code, child.output)))


def crashed(where: str, code: int, output: str) -> Iterator[Trial]:
    """The try of a verb that was not killed; none where it is done, and nothing was tried."""
    if wrong := unkilled(code, output):
        yield Trial(where, f"exit {code}", tuple(wrong))


def unkilled(code: int, output: str) -> list[str]:
    """What is wrong with how a command ended that should be killed: it is killed, or done."""
    return [] if code in (0, -signal.SIGKILL) else [f"it ended with {code}: {output[-300:]}"]


def unkind(code: int, output: str) -> list[str]:
    """What is wrong with how a command told of a disk that refused.

    Right is 20 and what to do, or nothing where it could do without.
    """
    if code == 0:
        return []
    if code != 20 or "nothing that was stored is lost" not in output or "\n  next: " not in output:
        return [f"it ended with {code}: {output[-300:]}"]
    return []


def at_random(scenes: list[Scene], tries: int, seed: int) -> Iterator[Trial]:
    """SIGKILL at a random moment of a random verb, as long as an undisturbed run takes."""
    chosen = random.Random(seed)
    lengths: dict[str, float] = {}
    for number in range(tries):
        scene = chosen.choice(scenes)
        scene.ready()
        if scene.name not in lengths:
            lengths[scene.name] = seconds(lambda scene=scene: finished(scene))
        moment = chosen.random() * lengths[scene.name]
        with scene.world.trial(scene.base) as store:
            child = scene.world.start(lambda scene=scene: scene.run(store))
            time.sleep(moment)
            child.send(signal.SIGKILL)
            code = child.wait()
            ended = "killed" if code == -signal.SIGKILL else f"exit {code}"
            where = f"{scene.name}, random kill {number} after {moment:.3f} s"
            trial = judged(scene, store, where, ended, child.acknowledged)
            yield Trial(where, ended, (*trial.wrong, *unkilled(code, child.output)))


SIGNALS = {
    "Ctrl-C": (signal.SIGINT,),
    "Ctrl-C twice": (signal.SIGINT, signal.SIGINT),
    "SIGTERM": (signal.SIGTERM,),
}


def interrupts(scene: Scene, tries: int, seed: int) -> Iterator[Trial]:
    """Ctrl-C, Ctrl-C twice and SIGTERM at random moments.

    The code is 130 or 143, what is done is kept, and how to go on is said.
    """
    chosen = random.Random(seed)
    scene.ready()
    length = seconds(lambda: finished(scene))
    for number in range(tries):
        name = list(SIGNALS)[number % len(SIGNALS)]
        with scene.world.trial(scene.base) as store:
            child = scene.world.start(lambda: scene.run(store))
            code = ended_before("ready", child)
            if code is None:
                time.sleep(chosen.random() * length)
                for sent in SIGNALS[name]:
                    child.send(sent)
                code = child.wait()
            trial = judged(
                scene, store, f"{scene.name}, {name} {number}", f"exit {code}", child.acknowledged
            )
        told = code == 0 or (
            code == (143 if name == "SIGTERM" else 130) and "Traceback" not in child.output
        )
        told = told and (
            code == 0
            or name == "Ctrl-C twice"
            or "run the same command again to go on" in child.output
        )
        yield Trial(
            trial.where,
            trial.outcome,
            trial.wrong if told else (*trial.wrong, f"it ended with {code}: {child.output[-300:]}"),
        )


def ended_before(word: str, child: Child) -> int | None:
    """Waits until the child says `word`; its exit code if it ends without it."""
    code = None
    while code is None and word not in child.output:
        time.sleep(0.01)
        code = child.ended()
    return code


def finished(scene: Scene) -> None:
    """An undisturbed run."""
    with scene.world.trial(scene.base) as store:
        scene.world.start(lambda: scene.run(store)).wait()


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began
