"""The quick part of the fault campaign (README.md here): a few tries of every kind.

`make faults` makes all of them.
"""

import errno
import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import corruption
import crowd
import kills
import limits
import pytest
import tracer
from world import VERBS, Child, Scene, World

MARKS = {
    "ingest": (1, 5, 9, 31, 52, 88, 111),
    "update": (2, 9, 23),
    "delete": (2, 3, 4, 6),
    "prune": (3, 4, 8),
    "index write": (2, 4),
    "upgrade": (3, 5, 6, 14, 26, 27, 28),
}


@pytest.fixture(scope="module")
def world():
    # not pytest's own, into which another user may not look
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield World(Path(folder))


@pytest.fixture(scope="module")
def bench(world):
    return corruption.Bench(world)


def nothing_lost(trials, at_least=1):
    """Every try left everything as it must be."""
    seen = list(trials)
    assert [trial for trial in seen if trial.wrong] == []
    assert len(seen) >= at_least
    return seen


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(verb, marks=[pytest.mark.slow] * (verb in ("ingest", "upgrade")))
        for verb in VERBS
    ],
)
def test_a_kill_at_a_marked_step_loses_nothing(world, verb):
    nothing_lost(kills.at_marks(world.scenes[verb], iter(MARKS[verb])), at_least=2)


def test_marks_that_are_not_reached_change_nothing(world):
    assert list(kills.at_marks(world.scenes["delete"], iter([10_000]))) == []


@pytest.mark.slow
@pytest.mark.skipif(bool(tracer.able()), reason=tracer.able() or "-")
@pytest.mark.parametrize("verdict", ["kill", "tear", errno.ENOSPC, errno.EIO])
def test_an_end_or_a_failure_at_a_system_call_loses_nothing(world, verdict):
    tries = {"ingest": (1, 33, 214), "delete": (2, 26, 61, 84), "upgrade": (9, 60, 99)}
    for verb, numbers in tries.items():
        nothing_lost(kills.at_calls(world.scenes[verb], iter(numbers), verdict), at_least=2)


@pytest.mark.slow
def test_kills_at_random_lose_nothing(world):
    nothing_lost(kills.at_random(list(world.scenes.values()), 4, seed=1))


@pytest.mark.slow
@pytest.mark.skipif(bool(limits.able_to_mount()), reason=limits.able_to_mount() or "-")
def test_a_full_disk_loses_nothing_and_a_read_only_one_is_read(world):
    nothing_lost(limits.full_disks(world.scenes["update"], 160 * 1024), at_least=2)
    nothing_lost(limits.read_only(world.scenes["update"]), at_least=2)


@pytest.mark.parametrize("verb", ["update", "upgrade"])
def test_files_that_may_not_grow_lose_nothing(world, verb):
    nothing_lost(limits.small_files(world.scenes[verb], 250 * 1024), at_least=2)


def test_memory_that_runs_out_loses_nothing(world):
    seen = nothing_lost(limits.little_memory(world.scenes["update"], 2**26, 20))
    assert {trial.outcome for trial in seen} == {"exit 21", "exit 0"}


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved(world):
    step = 2**24
    enough = next(
        more for more in range(step, 64 * step, step) if limits.rows_at_once(world, 1, more)[0] == 0
    )
    # how much of a refused batch the allocator gives back differs: the first that fits is taken
    found = []
    for halves in range(3, 25):
        found.append(limits.rows_at_once(world, 24, halves * enough // 2))
        if found[-1][0] == 0:
            break
    assert found[-1][0] == 0 and 1 <= found[-1][1] < 24, found
    assert limits.rows_at_once(world, 24, 2**20) == (21, 0)
    assert limits.rows_at_once(world, 24, 2**34) == (0, 24)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_no_permission_to_write_is_refused_and_reading_goes_on(world):
    nothing_lost(limits.no_permission(world.scenes["update"]), at_least=2)


@pytest.mark.slow
def test_a_flipped_bit_is_never_silent(bench):
    seen = nothing_lost(bench.flips(0.02), at_least=400)
    assert sum(trial.outcome != "harmless" for trial in seen) > len(seen) / 4


@pytest.mark.slow
def test_cuts_swaps_losses_and_strangers_are_never_silent(bench):
    changes = bench.truncations(3000), bench.swaps(), bench.losses(), bench.strangers()
    seen = nothing_lost(itertools.chain(*changes), at_least=100)
    assert sum(trial.outcome != "harmless" for trial in seen) > 70


def test_of_six_writers_one_writes_and_five_are_told_who(world):
    nothing_lost(crowd.writers(world.scenes["update"], 6))


def test_readers_and_an_audit_during_an_ingest_see_whole_generations(world):
    (seen,) = nothing_lost(crowd.readers(world.scenes["update"], 8))
    assert seen.outcome == "all saw whole generations"


# --- what must not pass: a fault that was not made, or another than the one meant

HERE = Path(__file__).parent


class Crashing(Scene):
    """A verb that ends by itself, with a traceback."""

    def run(self, store):
        raise RuntimeError("a bug")


def crashed(trials):
    """Whether the first try is told as one that ended by itself."""
    return [
        any("it ended with 1" in one and "a bug" in one for one in trial.wrong)
        for trial in itertools.islice(trials, 1)
    ] == [True]


def test_a_child_that_crashes_before_it_is_killed_is_told(world):
    scene = Crashing(**vars(world.scenes["delete"]))
    assert crashed(kills.at_marks(scene, itertools.count(1)))
    assert crashed(kills.at_random([scene], 1, seed=1))


@pytest.mark.skipif(bool(tracer.able()), reason=tracer.able() or "-")
@pytest.mark.parametrize("verdict", ["kill", "tear", errno.EIO])
def test_a_child_that_crashes_before_a_system_call_is_told(world, verdict):
    scene = Crashing(**vars(world.scenes["delete"]))
    assert crashed(kills.at_calls(scene, itertools.count(1), verdict))


class Mute(World):
    """A world whose children end before they say that they are ready."""

    def __init__(self, world):
        vars(self).update(vars(world))

    def start(self, work, **environment):
        command = [sys.executable, "-S", "-c", "raise SystemExit(1)"]
        return Child(os.posix_spawn(sys.executable, command, os.environ), Path(os.devnull))


def test_a_child_that_ends_before_it_can_be_interrupted_is_told(world):
    scene = replace(world.scenes["ingest"], world=Mute(world))
    (trial,) = kills.interrupts(scene, 1, seed=1)
    assert "it ended with 1: " in trial.wrong


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_audit_that_finds_something_without_permission_is_told(world):
    scene = world.scenes["update"]
    with world.trial(scene.base) as damaged:
        corruption.sql(damaged, "DELETE FROM occurrences WHERE ordinal = 0")
        trials = list(limits.no_permission(replace(scene, base=damaged)))
    (audit,) = (trial for trial in trials if trial.where.startswith("verify"))
    assert audit.outcome == "exit 1" and "documents are proven" in "".join(audit.wrong)


CAMPAIGN = """
import sys
import campaign

def unable(bench):
    raise campaign.Unable("not here")

faults = {"fine": [()], "lost": [(), ("gone",)], "none": []}
campaign.FAULTS = {
    "fine where it can be made": unable,
    **{name: lambda bench, tries=tries: (campaign.Trial(name, "killed", one) for one in tries)
       for name, tries in faults.items()},
}
for name in [*faults, "another"]:
    sys.argv = ["campaign", "--only", name]
    try:
        print(name, campaign.main(), file=sys.stderr)
    except SystemExit as ended:
        print(name, ended.code, file=sys.stderr)
"""


@pytest.mark.slow
def test_a_campaign_that_tries_nothing_fails():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CAMPAIGN],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent)])},
    )
    ended = dict(line.split() for line in done.stderr.splitlines() if line.count(" ") == 1)
    assert ended == {"fine": "0", "lost": "1", "none": "1", "another": "2"}
    assert "nothing was tried" in done.stderr
