"""The store's own API: ask search ingest verify restore documents chunks jobs health metrics."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from rag_memtok import __version__
from rag_memtok.config import Config
from rag_memtok.datatypes import Answer
from rag_memtok.documents.names import UPLOADS
from rag_memtok.errors import Busy, UsageError
from rag_memtok.pipeline import api, inspect
from rag_memtok.pipeline.answer import quotations
from rag_memtok.pipeline.audit import Audit
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.pipeline.resources import store_folder
from rag_memtok.serve import job_schemas, restoring, schemas, uploads
from rag_memtok.serve.engine import Question
from rag_memtok.serve.jobs import ENDED, ENDS, LATER, Job
from rag_memtok.serve.refusals import body_of, refusal_of
from rag_memtok.serve.schemas import ERRORS
from rag_memtok.serve.serving import CurrentServing, Serving
from rag_memtok.serve.streams import (
    EVENTS,
    AnswerStream,
    format_event,
    stream_response,
    wait_or_cancel,
)
from rag_memtok.store.files import DATABASE
from rag_memtok.store.ownership import MAKER
from rag_memtok.store.store import open_store

EVERY = 0.25  # seconds between looks at a job that is watched
SILENT = 15.0  # seconds without an event, then a comment shows that the connection lives
PAGE = 1000  # chunks listed at once

router = APIRouter(tags=["store"], responses=ERRORS)
PART = r"[A-Za-z0-9_%~-][A-Za-z0-9_%~.-]*"  # of a name as it is sent: percent-encoded
Id = Annotated[str, Path(pattern="^[0-9a-f]{4,64}$")]


def event_responses(description: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry of a reply that may come as events."""
    return {200: {"description": description, "content": {EVENTS: {"schema": {"type": "string"}}}}}


# --- questions


@router.post(
    "/ask",
    response_model=schemas.Answer,
    responses=event_responses("The answer; with `stream` events `text`, then `answer` or `error`."),
)
async def ask(request: Request, body: schemas.Ask, serving: CurrentServing) -> Any:
    """Answers a question from the store, with sources.

    With `stream` the events are `text` ({"text": ...}, a piece of the answer) and at last `answer`
    (the whole of it) or `error`.
    """
    question = Question(
        text=body.question,
        before=body.before,
        k=body.k or 0,
        within=body.within or "",
        limit=body.max_tokens or 0,
    )
    stream = AnswerStream(serving.engine, question)
    await wait_or_cancel(request, stream, stream.begin() if body.stream else stream.reply())
    if body.stream:
        return stream_response(stream, _answer_events(stream))
    return (await stream.reply()).answer


async def _answer_events(stream: AnswerStream) -> AsyncIterator[str]:
    try:
        async for text in stream.texts():
            yield format_event({"text": text}, "text")
        yield format_event(dump(schemas.Answer, (await stream.reply()).answer), "answer")
    except Exception as error:
        yield format_event(refusal_of(error)[1], "error")


def dump(model: Any, value: Answer | Job) -> dict[str, Any]:
    """A value of ours as the JSON of `model`."""
    dumped: dict[str, Any] = model.model_validate(value).model_dump(mode="json")
    return dumped


@router.post("/search")
async def search(body: schemas.Search, serving: CurrentServing) -> schemas.FoundReply:
    """The passages that have to do with a question, best first."""
    passages = await asyncio.wrap_future(
        serving.engine.call(
            lambda session: quotations(
                session,
                body.question,
                replace(
                    session.config.retrieve,
                    k=body.k or session.config.retrieve.k,
                    within=body.within or session.config.retrieve.within,
                ),
            )
        )
    )
    return schemas.FoundReply(
        found=[
            schemas.Found(source=schemas.Source.model_validate(source), text=text)
            for text, source in passages
        ]
    )


# --- the store


@router.get("/documents")
async def documents(serving: CurrentServing) -> schemas.DocumentsReply:
    """The store's documents with the verdicts of their chunks."""
    listed = await run_in_threadpool(api.documents, serving.config)
    lost = await run_in_threadpool(api.lost, serving.config)
    return schemas.DocumentsReply(
        documents=[schemas.Document.of(document) for document in listed],
        lost=[schemas.Lost(path=path, reason=reason) for path, reason in lost],
    )


@router.post("/restore", response_class=StreamingResponse, responses=event_responses("Events."))
async def restore(body: schemas.Restore, serving: CurrentServing) -> Any:
    """A document decoded from its memories alone, as server-sent events.

    They are `text` ({"text": ...}) for each of its chunks, in their order, then `restored`
    ({"sha256": ...}) if these are the document, else `refused` ({"reason": ..., "damaged": ...}) or
    `error`.
    """
    document = await asyncio.wrap_future(
        serving.engine.call(lambda session: restoring.document_at(session, body.root, body.path))
    )
    if document is None:
        error = body_of(404, "document", "there is no such document", "GET /documents has them")
        return JSONResponse(error, status_code=404)
    return StreamingResponse(restoring.stream_document(serving, document), media_type=EVENTS)


@router.get("/chunks")
async def chunks(
    serving: CurrentServing,
    path: Annotated[str | None, Query(description="Only those of this document.")] = None,
    start: Annotated[int, Query(ge=0)] = 0,
) -> schemas.ChunksReply:
    """The store's chunks as they were judged when they were written, a thousand at a time.

    Those of a document are in its order, all of them in the order they were stored.
    """
    listed, total = await run_in_threadpool(_page_of_chunks, serving.config, path, start)
    return schemas.ChunksReply(
        chunks=[schemas.ListedChunk.model_validate(chunk) for chunk in listed], total=total
    )


def _page_of_chunks(
    config: Config, path: str | None, start: int
) -> tuple[list[inspect.ListedChunk], int]:
    with open_store(store_folder(config), write=False) as store, store.snapshot():
        return inspect.page_of_chunks(store, path, start, PAGE)


@router.get("/chunks/{id}", response_model=schemas.Chunk)
async def chunk(id: Id, serving: CurrentServing) -> Any:
    """One memory, decoded now, token by token: margins and pins."""
    try:
        return await asyncio.wrap_future(
            serving.engine.call(
                lambda session: inspect.show(session.store, session.lm, session.template, id)
            )
        )
    except UsageError as error:
        body = body_of(404, "chunk", str(error), "GET /chunks has their ids", "id")
        return JSONResponse(body, status_code=404)


@router.get("/status", response_model=schemas.Status)
async def status(serving: CurrentServing) -> Any:
    """What is in the store, and what it is bound to, but for what proves whose it is."""
    stored = await run_in_threadpool(api.status, serving.config)
    manifest = {name: value for name, value in stored.manifest.items() if name != MAKER}
    return replace(stored, manifest=manifest)


# --- jobs

UPLOAD_OR_PATHS = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": job_schemas.Ingest.model_json_schema()},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": "X-Rag-Memtok-Name",
            "in": "header",
            "required": False,
            "description": "With a file as the body: its name, percent-encoded UTF-8, such as "
            "notes/2026.md.",
            "schema": {"type": "string", "pattern": f"^{PART}(/{PART})*$"},
        }
    ],
}


@router.post("/ingest", status_code=202, openapi_extra=UPLOAD_OR_PATHS)
async def ingest(request: Request, serving: CurrentServing) -> job_schemas.Job:
    """Takes documents in, as a job: a file that is sent, or paths under the server's roots.

    A file is kept under `uploads/` of the store. Several that are sent while a job waits become
    part of that one.
    """
    if serving.ending.has_begun:  # what is sent need not arrive first
        raise Busy(ENDS, remedy=LATER, seconds=30)
    name = request.headers.get("x-rag-memtok-name")
    if name is not None:
        parts = uploads.parse_name(name)
        await uploads.store_upload(
            serving.folder, parts, request.stream(), serving.config.serve.max_upload
        )
        folder = serving.folder / UPLOADS
        job = serving.jobs.add(
            "ingest", ["/".join(parts)], lambda store: store.ingest(folder), joins=True
        )
        return job_schemas.Job.of(job)
    body = job_schemas.Ingest.model_validate_json(await request.body())
    paths = uploads.require_allowed(body.paths, serving.config.serve.roots)
    return job_schemas.Job.of(
        serving.jobs.add("ingest", body.paths, lambda store: store.ingest(*paths, prune=body.prune))
    )


@router.post("/verify", status_code=202)
async def verify(body: job_schemas.Verify, serving: CurrentServing) -> job_schemas.Job:
    """Proves that nothing was lost, as a job: every memory decoded, every document compared."""

    def audit(store: MemoryStore) -> Ingested | Audit:
        return store.verify(**body.model_dump())

    return job_schemas.Job.of(serving.jobs.add("verify", [], audit))


@router.get("/jobs")
async def jobs(serving: CurrentServing) -> job_schemas.JobsReply:
    """The jobs since the server started, the last one first."""
    return job_schemas.JobsReply(jobs=[job_schemas.Job.of(job) for job in serving.jobs.all()])


@router.get("/jobs/{id}")
async def job(id: Id, serving: CurrentServing) -> job_schemas.Job:
    """Where a job stands, and what came of it."""
    return job_schemas.Job.of(_find_job(serving, id))


@router.get(
    "/jobs/{id}/events", response_class=StreamingResponse, responses=event_responses("Events.")
)
async def job_events(id: Id, serving: CurrentServing) -> StreamingResponse:
    """A job as server-sent events: `job` whenever it changed, until it has ended."""
    return StreamingResponse(_watch_job(_find_job(serving, id), serving), media_type=EVENTS)


async def _watch_job(job: Job, serving: Serving) -> AsyncIterator[str]:
    seen, silent = -1, 0.0
    while True:
        ending = job.state in ENDED or serving.ending.leaving
        if job.version != seen or ending:  # a state is there before its version
            seen, silent = job.version, 0.0
            yield format_event(job_schemas.Job.of(job).model_dump(mode="json"), "job")
        elif silent >= SILENT:
            silent = 0.0
            yield ": still here\n\n"
        if ending:
            return
        await asyncio.sleep(EVERY)
        silent += EVERY


def _find_job(serving: Serving, id: str) -> Job:
    job = serving.jobs.get(id)
    if job is None:
        raise HTTPException(404, f"there is no job {id}")
    return job


# --- the server


@router.get("/health")
async def health(serving: CurrentServing) -> schemas.Health:
    """Whether the server answers."""
    return schemas.Health(
        status="ending" if serving.ending.has_begun else "ok",
        version=__version__,
        store=(serving.folder / DATABASE).exists(),
        waiting=serving.engine.waiting,
    )


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(serving: CurrentServing) -> PlainTextResponse:
    """What the server counted, for Prometheus."""
    return PlainTextResponse(serving.metrics.text(), media_type="text/plain; version=0.0.4")
