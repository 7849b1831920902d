"""The options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

Store = Annotated[
    str | None, typer.Option("--store", help="The store's folder.", show_default=".rag-memtok")
]
Collection = Annotated[
    str | None, typer.Option("--collection", help="One of several stores under --store, by name.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="smollm2, mini, a folder, a GGUF file or a hub id.",
        show_default="the store's, or smollm2 where installed",
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="The model's revision on the hub.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="float32, bfloat16, float16 or nf4 (4 bits).",
        show_default="the store's, or float32",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or mps.", show_default="auto")
]
Threads = Annotated[
    int | None, typer.Option("--threads", help="CPU threads.", show_default="automatic")
]
Embedder = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        help="mini, minilm, or a sentence-transformers folder or id.",
        show_default="the store's, or mini",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TokensPerVector = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-vector",
        help="Text tokens a memory vector holds; 0 finds out.",
        show_default="0",
    ),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", help="gitignore-style pattern; may be repeated.")
]
Encoding = Annotated[
    str | None,
    typer.Option(
        "--encoding",
        help="What all texts are in, such as cp1252.",
        show_default="what they say, or UTF-8, or the likeliest",
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="What standard input (-) is to be called, such as NOTE.md."),
]
NoGitignore = Annotated[
    bool, typer.Option("--no-gitignore", help="Read what a .gitignore leaves out, too.")
]
Prune = Annotated[
    bool, typer.Option("--prune", help="Remove from the store what is gone from the folders.")
]
K = Annotated[
    int | None, typer.Option("-k", "--k", help="How many memories to use.", show_default="3")
]
Within = Annotated[
    str | None,
    typer.Option("--in", help="A folder or file: search only what is stored of it."),
]
Read = Annotated[
    str | None, typer.Option("--read", help="memory, decode, text or auto.", show_default="auto")
]
Passages = Annotated[
    str | None,
    typer.Option(
        "--passages",
        help="Several memories: together in a prompt, apart (the surest answer is kept) or auto.",
        show_default="auto",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="An adapter's folder, none, or auto: the store's, or the model's.",
        show_default="auto",
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", help="Tokens of the answer, at most.", show_default="64"),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine", help="What answers: here, or a vLLM server (vllm).", show_default="here"
    ),
]
Url = Annotated[
    str | None,
    typer.Option("--url", help="Where that server is.", show_default="http://127.0.0.1:8000"),
]
SecondsPerChunk = Annotated[
    float | None,
    typer.Option(
        "--seconds-per-chunk", help="Seconds a chunk, at most; 0: no bound.", show_default="0"
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        help="Processes that write, each with the model; one a GPU.",
        show_default="1",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-store",
        envvar="RAG_MEMTOK_TRUST_STORE",
        help="Read a store that was not made here.",
    ),
]
Show = Annotated[
    bool, typer.Option("--show", help="Show the passages, too, the answer >>marked<< in them.")
]
Paths = Annotated[
    list[Path], typer.Argument(help="Files and folders; - is standard input, and needs --name.")
]
ChunkTokens = Annotated[
    int | None,
    typer.Option(
        "--chunk-tokens", help="Tokens of a chunk, at most.", show_default="the store's, or 128"
    ),
]
Readable = Annotated[
    int | None,
    typer.Option(
        "--readable",
        help="Tokens for each of the vectors that are read beside a memory; 0: none.",
        show_default="the store's",
    ),
]
Write = Annotated[
    str | None,
    typer.Option(
        "--write",
        help="exact, or readable: memories that also answer.",
        show_default="the store's, or exact",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", help="Another way of writing, by name.", show_default="by --write"),
]
Template = Annotated[
    str | None,
    typer.Option("--template", help="bare or cue.", show_default="the store's, or bare"),
]
Codec = Annotated[
    str | None,
    typer.Option("--codec", help="How vectors are stored.", show_default="the store's, or float16"),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", help="Optimiser steps a chunk, at most.", show_default="500, 300 to be read"
    ),
]
Batch = Annotated[
    int | None, typer.Option("--batch", help="Chunks written together.", show_default="8")
]
MaxPins = Annotated[
    int | None, typer.Option("--max-pins", help="Refuse a chunk with more correction pins.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the writer.", show_default="0")]
NoText = Annotated[bool, typer.Option("--no-text", help="Keep no text: dense retrieval only.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be written and how long it takes.")
]
SkipOk = Annotated[bool, typer.Option("--skip-ok", help="Exit 0 even if some inputs were skipped.")]
