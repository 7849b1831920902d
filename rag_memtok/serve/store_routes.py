"""The store's own API: ask search ingest verify restore documents chunks jobs health metrics."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from rag_memtok import __version__
from rag_memtok.datatypes import Answer
from rag_memtok.documents.names import UPLOADS
from rag_memtok.errors import Busy, UsageError
from rag_memtok.pipeline import api, inspect
from rag_memtok.pipeline.answer import quotations
from rag_memtok.pipeline.audit import Audit
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.serve import job_schemas, restoring, schemas, uploads
from rag_memtok.serve.engine import Question
from rag_memtok.serve.jobs import ENDED, ENDS, LATER, Job
from rag_memtok.serve.refusals import body_of, refusal_of
from rag_memtok.serve.schemas import ERRORS
from rag_memtok.serve.serving import Here, Serving
from rag_memtok.serve.streams import EVENTS, Voice, event, heard, streamed
from rag_memtok.store.files import DATABASE
from rag_memtok.store.ownership import MAKER

EVERY = 0.25  # seconds between looks at a job that is watched
SILENT = 15.0  # seconds without an event, then a comment shows that the connection lives
PAGE = 1000  # chunks listed at once

router = APIRouter(tags=["store"], responses=ERRORS)
Id = Annotated[str, Path(pattern="^[0-9a-f]{4,64}$")]


def streams(words: str) -> dict[int | str, dict[str, Any]]:
    """That a reply may come as events."""
    return {200: {"description": words, "content": {EVENTS: {"schema": {"type": "string"}}}}}


# --- questions


@router.post(
    "/ask",
    response_model=schemas.Answer,
    responses=streams("The answer; with `stream` events `text`, then `answer` or `error`."),
)
async def ask(request: Request, body: schemas.Ask, here: Here) -> Any:
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
    voice = Voice(here.engine, question)
    await heard(request, voice, voice.begin() if body.stream else voice.reply())
    return streamed(voice, _told(voice)) if body.stream else (await voice.reply()).answer


async def _told(voice: Voice) -> AsyncIterator[str]:
    try:
        async for text in voice.texts():
            yield event({"text": text}, "text")
        yield event(dumped(schemas.Answer, (await voice.reply()).answer), "answer")
    except Exception as error:
        yield event(refusal_of(error)[1], "error")


def dumped(model: Any, value: Answer | Job) -> dict[str, Any]:
    """A value of ours as JSON."""
    found: dict[str, Any] = model.model_validate(value).model_dump(mode="json")
    return found


@router.post("/search")
async def search(body: schemas.Search, here: Here) -> schemas.FoundReply:
    """The passages that have to do with a question, best first."""
    found = await asyncio.wrap_future(
        here.engine.call(
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
            for text, source in found
        ]
    )


# --- the store


@router.get("/documents")
async def documents(here: Here) -> schemas.DocumentsReply:
    """The store's documents with the verdicts of their chunks."""
    found = await run_in_threadpool(api.documents, here.config)
    lost = await run_in_threadpool(api.lost, here.config)
    return schemas.DocumentsReply(
        documents=[schemas.Document.of(one) for one in found],
        lost=[schemas.Lost(path=path, reason=reason) for path, reason in lost],
    )


@router.post("/restore", response_class=StreamingResponse, responses=streams("Events."))
async def restore(body: schemas.Restore, here: Here) -> Any:
    """A document decoded from its memories alone, as server-sent events.

    They are `text` ({"text": ...}) for each of its chunks, in their order, then `restored`
    ({"sha256": ...}) if these are the document, else `refused` ({"reason": ..., "damaged": ...}) or
    `error`.
    """
    found = await asyncio.wrap_future(
        here.engine.call(lambda session: restoring.document_at(session, body.root, body.path))
    )
    if found is None:
        told = body_of(404, "document", "there is no such document", "GET /documents has them")
        return JSONResponse(told, status_code=404)
    return StreamingResponse(restoring.decoded(here, found), media_type=EVENTS)


@router.get("/chunks")
async def chunks(
    here: Here,
    path: Annotated[str | None, Query(description="Only those of this document.")] = None,
    start: Annotated[int, Query(ge=0)] = 0,
) -> schemas.ChunksReply:
    """The store's chunks as they were judged when they were written, a thousand at a time.

    Those of a document are in its order, all of them in the order they were stored.
    """
    found = await run_in_threadpool(api.chunks, here.config)
    some = list(found)
    if path is not None:
        some = [one for one in found if one.place and one.place.path == path]
        some.sort(key=lambda one: one.place.ordinal if one.place else 0)
    return schemas.ChunksReply(
        chunks=[schemas.ListedChunk.model_validate(one) for one in some[start : start + PAGE]],
        total=len(some),
    )


@router.get("/chunks/{id}", response_model=schemas.Chunk)
async def chunk(id: Id, here: Here) -> Any:
    """One memory, decoded now, token by token: margins and pins."""
    try:
        return await asyncio.wrap_future(
            here.engine.call(
                lambda session: inspect.show(session.store, session.lm, session.template, id)
            )
        )
    except UsageError as error:
        body = body_of(404, "chunk", str(error), "GET /chunks has their ids", "id")
        return JSONResponse(body, status_code=404)


@router.get("/status", response_model=schemas.Status)
async def status(here: Here) -> Any:
    """What is in the store, and what it is bound to, but for what proves whose it is."""
    found = await run_in_threadpool(api.status, here.config)
    told = {name: value for name, value in found.manifest.items() if name != MAKER}
    return replace(found, manifest=told)


# --- jobs

SENT = {
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
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9_%-]+(/[A-Za-z0-9_%-]+)*\\.md$"},
        }
    ],
}


@router.post("/ingest", status_code=202, openapi_extra=SENT)
async def ingest(request: Request, here: Here) -> job_schemas.Job:
    """Takes documents in, as a job: a file that is sent, or paths under the server's roots.

    A file is kept under `uploads/` of the store. Several that are sent while a job waits become
    part of that one.
    """
    if here.ending.begun:  # what is sent need not arrive first
        raise Busy(ENDS, remedy=LATER, seconds=30)
    name = request.headers.get("x-rag-memtok-name")
    if name is not None:
        parts = uploads.named_path(name)
        await uploads.keep(here.folder, parts, request.stream(), here.config.serve.max_upload)
        folder = here.folder / UPLOADS
        job = here.jobs.add(
            "ingest", ["/".join(parts)], lambda store: store.ingest(folder), joins=True
        )
        return job_schemas.Job.of(job)
    body = job_schemas.Ingest.model_validate_json(await request.body())
    paths = uploads.allowed(body.paths, here.config.serve.roots)
    return job_schemas.Job.of(
        here.jobs.add("ingest", body.paths, lambda store: store.ingest(*paths, prune=body.prune))
    )


@router.post("/verify", status_code=202)
async def verify(body: job_schemas.Verify, here: Here) -> job_schemas.Job:
    """Proves that nothing was lost, as a job: every memory decoded, every document compared."""

    def audit(store: MemoryStore) -> Ingested | Audit:
        return store.verify(**body.model_dump())

    return job_schemas.Job.of(here.jobs.add("verify", [], audit))


@router.get("/jobs")
async def jobs(here: Here) -> job_schemas.JobsReply:
    """The jobs since the server started, the last one first."""
    return job_schemas.JobsReply(jobs=[job_schemas.Job.of(one) for one in here.jobs.all()])


@router.get("/jobs/{id}")
async def job(id: Id, here: Here) -> job_schemas.Job:
    """Where a job stands, and what came of it."""
    return job_schemas.Job.of(_known(here, id))


@router.get("/jobs/{id}/events", response_class=StreamingResponse, responses=streams("Events."))
async def job_events(id: Id, here: Here) -> StreamingResponse:
    """A job as server-sent events: `job` whenever it changed, until it has ended."""
    return StreamingResponse(_watched(_known(here, id), here), media_type=EVENTS)


async def _watched(one: Job, here: Serving) -> AsyncIterator[str]:
    seen, silent = -1, 0.0
    while True:
        ending = one.state in ENDED or here.ending.leaving
        if one.version != seen or ending:  # a state is there before its version
            seen, silent = one.version, 0.0
            yield event(job_schemas.Job.of(one).model_dump(mode="json"), "job")
        elif silent >= SILENT:
            silent = 0.0
            yield ": still here\n\n"
        if ending:
            return
        await asyncio.sleep(EVERY)
        silent += EVERY


def _known(here: Serving, id: str) -> Job:
    found = here.jobs.get(id)
    if found is None:
        raise HTTPException(404, f"there is no job {id}")
    return found


# --- the server


@router.get("/health")
async def health(here: Here) -> schemas.Health:
    """Whether the server answers."""
    return schemas.Health(
        status="ending" if here.ending.begun else "ok",
        version=__version__,
        store=(here.folder / DATABASE).exists(),
        waiting=here.engine.waiting,
    )


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(here: Here) -> PlainTextResponse:
    """What the server counted, for Prometheus."""
    return PlainTextResponse(here.metrics.text(), media_type="text/plain; version=0.0.4")
