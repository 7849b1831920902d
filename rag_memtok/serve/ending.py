"""How a server ends: what runs is finished first; a second signal ends a job at its next step."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rag_memtok.datatypes import Progress
from rag_memtok.pipeline.resources import Say
from rag_memtok.serve.engine import Engine
from rag_memtok.serve.jobs import Job, Jobs

NAMES = {"ingest": "the ingest", "verify": "the audit"}
AGAIN = {
    "ingest": "what it did is kept, and the same upload or ingest goes on",
    "verify": "it changed nothing, and is to be asked for again",
}
BY_SIGNAL = 128  # and the signal's number: the exit code of what a signal cut short


@dataclass(slots=True, eq=False, kw_only=True)
class Ending:
    """The end of one server, from its first signal to what is said of it at last.

    `signals` are those that came: a handler may do no more than add to them, for it runs in the
    middle of anything. `leaving`: nothing runs any more, connections are to be closed. `describe`
    puts the facts and the time left of a job into words.
    """

    engine: Engine
    jobs: Jobs
    say: Say
    describe: Callable[[Progress], str]
    signals: list[int] = field(default_factory=list)
    leaving: bool = False
    _handled: int = 0  # signals that something was done about
    _dropped: int = 0  # jobs that waited
    _cut: Job | None = None  # the job that the second signal ends

    @property
    def has_begun(self) -> bool:
        """Whether nothing new is taken any more."""
        return bool(self.signals) or self.leaving

    def handle_signals(self) -> bool:
        """Does what the signals ask for that came since the last call.

        Returns whether the server is to end now: it was asked to, and nothing runs any more.
        """
        if self.signals and not self._handled:
            self._handled = 1
            self.engine.finish()
            self._dropped = self.jobs.finish()
            self._say_what_runs()
        if len(self.signals) > 1 and self._handled == 1:
            self._handled = 2
            self._cut = self.jobs.running
            self.jobs.stop()
            if self._cut:
                self.say(f"{NAMES[self._cut.kind]} ends at its next step")
        return bool(self._handled) and not self.engine.in_progress and self.jobs.running is None

    def _say_what_runs(self) -> None:
        count, job = self.engine.in_progress, self.jobs.running
        parts = [f"{count} question{'' if count == 1 else 's'} to be answered"] if count else []
        parts += [f"{NAMES[job.kind]} to be finished, {self._where(job)}"] if job else []
        if parts:
            second = "; a second signal ends the job at its next step, with nothing lost"
            self.say(f"ending: {' and '.join(parts)}{second if job else ''}")

    def _where(self, job: Job) -> str:
        progress = job.progress
        if progress is None:
            return "which just began"
        return ", ".join(
            filter(None, [f"{progress.done} of {progress.total}", self.describe(progress)])
        )

    @property
    def sentence(self) -> str:
        """The outcome of what ran and of what waited, in a sentence."""
        sentence = "every question is answered"
        if job := self._stopped:
            sentence += f"; {NAMES[job.kind]} was cut short, {self._where(job)}; {AGAIN[job.kind]}"
        else:
            sentence += ", no job was cut short"
        if count := self._dropped:
            waited = "a job that waited was" if count == 1 else f"{count} jobs that waited were"
            sentence += f"; {waited} not begun"
        return f"ended: {sentence}"

    @property
    def exit_code(self) -> int:
        """0, or 128 and the number of the signal that cut a job short."""
        return BY_SIGNAL + self.signals[1] if self._stopped else 0

    @property
    def _stopped(self) -> Job | None:
        return self._cut if self._cut and self._cut.state == "stopped" else None
