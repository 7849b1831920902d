"""Jobs as JSON: what they are asked for, where they stand, what came of them."""

from typing import Literal, TypeVar

from pydantic import BaseModel, Field

from rag_memtok.pipeline import audit, ingest
from rag_memtok.serve import jobs
from rag_memtok.serve.refusals import refusal_of
from rag_memtok.serve.schemas import Error, Int, Logits, ReplyModel, RequestModel

M = TypeVar("M", bound=BaseModel)


class Ingest(RequestModel):
    """Files and folders of this machine, under the folders that the server was started with."""

    paths: list[str] = Field(min_length=1, max_length=1000)
    prune: bool = Field(False, description="Remove from the store what is gone from the folders.")


class Verify(RequestModel):
    """What the audit is to look at."""

    quick: bool = Field(False, description="Structure and checksums only.")
    sample: float = Field(1.0, gt=0, le=1, description="The share of the chunks.")
    seed: Int = Field(0, ge=0, lt=2**31)
    batch: Int = Field(1, ge=1, le=256, description="Chunks decoded together, without drafts.")
    reference: bool = Field(False, description="Decode every memory token by token, alone.")


class Progress(ReplyModel):
    """Where a job stands."""

    done: int
    total: int
    stage: str
    facts: dict[str, Logits]
    seconds: float
    seconds_left: float | None


class Skipped(ReplyModel):
    """Something that was not read, and why."""

    root: str
    path: str
    reason: str


class Assumed(ReplyModel):
    """An encoding that a file did not tell."""

    root: str
    path: str
    encoding: str


class Ingested(ReplyModel):
    """What an ingest did."""

    files: int
    unchanged: int
    removed: int
    vanished: list[tuple[str, str]]
    skipped: list[Skipped]
    over_limit: list[Skipped]
    chunks: int
    reused: int
    verdicts: dict[str, int]
    positions: int
    text_positions: int
    seconds: float
    tokens_per_vector: int
    ignored: int
    assumed: list[Assumed]


class Finding(ReplyModel):
    """Something that is not proven: what, where, and why."""

    kind: str
    subject: str
    reason: str


class Audit(ReplyModel):
    """What an audit checked and found; `ok`: all that was asked for is proven."""

    ok: bool
    sentence: str
    counts: dict[str, int]
    chunks: int
    checked: int
    documents: int
    documents_checked: int
    documents_proven: int
    findings: list[Finding]
    profile: str
    sample: str
    seconds: float
    interrupted: bool
    decodes: bool
    readable: dict[str, int]


def _validate_or_none(model: type[M], value: object) -> M | None:
    return None if value is None else model.model_validate(value)


class Job(BaseModel):
    """Work that goes on by itself: one at a time, the others wait.

    `subjects` are the files it is for. `ingested` or `audit` is what it did, once it is done.
    """

    id: str
    kind: Literal["ingest", "verify"]
    state: Literal["waiting", "running", "done", "failed", "stopped"]
    subjects: list[str]
    progress: Progress | None = None
    ingested: Ingested | None = None
    audit: Audit | None = None
    error: Error | None = None

    @classmethod
    def of(cls, job: jobs.Job) -> "Job":
        """A job where it stands now."""
        result = job.result
        error = None if job.error is None else refusal_of(job.error)[1]["error"]
        return cls(
            id=job.id,
            kind=job.kind,
            state=job.state,
            subjects=job.subjects,
            progress=_validate_or_none(Progress, job.progress),
            ingested=Ingested.model_validate(result)
            if isinstance(result, ingest.Ingested)
            else None,
            audit=Audit.model_validate(result) if isinstance(result, audit.Audit) else None,
            error=None if error is None else Error(**error),
        )


class JobsReply(BaseModel):
    """The jobs of this server, the last one first."""

    jobs: list[Job]
