"""What a store is bound to, and the refusal of what does not match.

A new store has its manifest, an old one the settings it implies.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from rag_memtok import __version__
from rag_memtok.config import CHUNK_TOKENS, CODEC, Config, Memorize, Model, Retrieve
from rag_memtok.errors import UsageError, WrongModel
from rag_memtok.memory.recipes import recipe_of
from rag_memtok.model.folders import NAMES
from rag_memtok.model.lm import LM, default_id
from rag_memtok.model.prompts import Template
from rag_memtok.retrieval.embedder import NAMES as EMBEDDERS
from rag_memtok.retrieval.embedder import Embedder, default_embedder
from rag_memtok.settings import value_of

LIBRARIES = ("torch", "transformers", "tokenizers", "faiss-cpu", "semantic-text-splitter")

BOUND = {
    "weights_sha256": "the model's weights",
    "tokenizer_sha256": "the tokenizer",
    "dtype": "the dtype",
    "template_sha256": "the template",
}

# Settings that a store keeps: one that is given must be what it was made with.
KEPT = {
    "documents.chunk_tokens": "chunk_tokens",
    "memorize.tokens_per_vector": "tokens_per_vector",
    "memorize.write": "write",
    "memorize.codec": "codec",
}

KEEP_TEXT = "keep_text"  # kept as well

JOB = "job"  # the fingerprint of a cluster's unfinished work on the store; "": there is none
# What has to be given alike to go on with it: what memories come out as, not how work is laid out.
OF_A_JOB = ("steps", "seconds_per_chunk", "tau", "seed", "draft", "max_pins", "readable")

# What every store's manifest has; a row that is gone leaves no checksum behind that could be wrong.
REQUIRED = frozenset(
    {*BOUND, *KEPT.values(), "model", "template", "embedder", "embedder_sha256", "tau"}
)


def complete_config(config: Config, manifest: Mapping[str, str]) -> Config:
    """`config` with what it leaves open taken from `manifest` (empty for a new store)."""
    chosen = config.model
    same = chosen.id in ("", manifest.get("model"))
    model = Model(
        id=chosen.id or manifest.get("model") or default_id(),
        revision=chosen.revision or (manifest.get("revision", "") if same else ""),
        dtype=chosen.dtype if chosen.dtype != "auto" else manifest.get("dtype", "float32"),  # type: ignore[arg-type]
        device=chosen.device,
        threads=chosen.threads,
        recorded=not chosen.id and manifest.get("model", "") not in ("", *NAMES),
    )
    tokens_per_vector = config.memorize.tokens_per_vector or int(
        manifest.get("tokens_per_vector", 0)
    )
    template = config.memorize.template or manifest.get("template", "bare")
    codec = config.memorize.codec or manifest.get("codec", CODEC)
    memorize: Memorize = replace(
        config.memorize, template=template, tokens_per_vector=tokens_per_vector, codec=codec
    )
    keep_text = memorize.keep_text and keeps_text(manifest) is not False
    write: Any = memorize.write or manifest.get("write", "exact")
    memorize = replace(memorize, write=write, keep_text=keep_text)
    chunk_tokens = config.documents.chunk_tokens or int(manifest.get("chunk_tokens", CHUNK_TOKENS))
    retrieve: Retrieve = replace(
        config.retrieve,
        embedder=config.retrieve.embedder or manifest.get("embedder") or default_embedder(),
        recorded=not config.retrieve.embedder
        and manifest.get("embedder", "") not in ("", *EMBEDDERS),
    )
    documents = replace(config.documents, chunk_tokens=chunk_tokens)
    return replace(config, model=model, documents=documents, memorize=memorize, retrieve=retrieve)


def manifest_of(lm: LM, template: Template, embedder: Embedder, config: Config) -> dict[str, str]:
    """The manifest of a store that is written with these: everything it depends on."""
    return {
        **bound_values(lm, template),
        "embedder": embedder.id,
        "embedder_sha256": embedder.digest,
        "chunk_tokens": str(config.documents.chunk_tokens),
        "tokens_per_vector": str(config.memorize.tokens_per_vector),
        "recipe": recipe_of(config.memorize),
        "codec": config.memorize.codec,
        "tau": str(config.memorize.tau),
        "seed": str(config.memorize.seed),
        "write": config.memorize.write or "exact",
        KEEP_TEXT: str(config.memorize.keep_text),
        **installed_versions(),
    }


def keeps_text(manifest: Mapping[str, str]) -> bool | None:
    """Whether the store keeps its chunks' text.

    It is None for a new one, and for one that was made before that was written down.
    """
    return None if KEEP_TEXT not in manifest else manifest[KEEP_TEXT] != "False"


def bound_values(lm: LM, template: Template) -> dict[str, str]:
    """The manifest's rows on LM and template, without which a memory is noise."""
    return {
        "model": lm.identity.id,
        "revision": lm.identity.revision,
        "weights_sha256": lm.identity.weights_sha256,
        "tokenizer_sha256": lm.identity.tokenizer_sha256,
        "dtype": lm.identity.dtype,
        "template": template.name,
        "template_sha256": template.digest,
    }


def installed_versions() -> dict[str, str]:
    """The versions of the program and of the libraries that what it computes may depend on."""
    return {"program": __version__, **{library: version(library) for library in LIBRARIES}}


def find_differences(manifest: Mapping[str, str], lm: LM, template: Template) -> list[str]:
    """How LM and template differ from those of the store's memories, both values named."""
    now = bound_values(lm, template)
    return [
        f"{what} ({manifest.get(key, 'none')[:16]} in the store, {now[key][:16]} here)"
        for key, what in BOUND.items()
        if manifest.get(key) != now[key]
    ]


def require_same(manifest: Mapping[str, str], lm: LM, template: Template) -> None:
    """Refuses an LM or a template that is not the store's.

    Raises:
        WrongModel: both values named.
    """
    if different := find_differences(manifest, lm, template):
        theirs = f"{manifest.get('model')} {manifest.get('revision', '')}".strip()
        ours = f"{lm.identity.id} {lm.identity.revision}".strip()
        raise WrongModel(
            f"the store was written with {theirs}, which is not {ours} as it is here: "
            f"{'; '.join(different)}",
            remedy="leave --model, --dtype and --template out to take the store's, or name another "
            "--store",
        )


def require_same_embedder(manifest: Mapping[str, str], embedder: Embedder) -> None:
    """Refuses an embedder whose keys cannot be compared with the store's.

    Raises:
        WrongModel: both digests named.
    """
    if manifest.get("embedder_sha256") != embedder.digest:
        raise WrongModel(
            f"the store's keys are of the embedder {manifest.get('embedder')} "
            f"({manifest.get('embedder_sha256', '')[:16]}), "
            f"not of {embedder.id} ({embedder.digest[:16]})",
            remedy="leave --embedder out to take the store's, or name another --store",
        )


def require_same_settings(manifest: Mapping[str, str], config: Config) -> None:
    """Refuses, before anything is loaded, a setting that was given and is not the store's.

    Chunks of two kinds are never mixed.

    Raises:
        UsageError: both values named.
    """
    for name, key in KEPT.items():
        value, stored = value_of(config, name), manifest.get(key)
        if value and stored is not None and str(value) != stored:
            raise UsageError(
                f"{name} is {value!r}; this store was made with {stored}",
                remedy="leave the setting out to take the store's, or name another --store or "
                "--collection",
            )
    # the other way round nothing was given: to keep text is the default
    if keeps_text(manifest) and not config.memorize.keep_text:
        raise UsageError(
            "--no-text keeps no text; this store keeps it",
            remedy="leave it out, or name another --store or --collection",
        )


def job_fingerprint(config: Config) -> str:
    """The fingerprint of a job: its settings beyond what the store is bound to anyway."""
    settings = {name: getattr(config.memorize, name) for name in OF_A_JOB}
    return json.dumps(settings | {"recipe": recipe_of(config.memorize)}, sort_keys=True)


def require_same_job(manifest: Mapping[str, str], config: Config) -> None:
    """Refuses to write otherwise than an unfinished job does. The documents may be more by now.

    Raises:
        UsageError: the settings that differ, both values named.
    """
    if not (begun := manifest.get(JOB)) or begun == job_fingerprint(config):
        return
    then, now = json.loads(begun), json.loads(job_fingerprint(config))
    different = [
        f"{name} {then.get(name)!a} there, {now[name]!a} now"
        for name in now
        if then.get(name) != now[name]
    ]
    raise UsageError(
        f"a job on this store is not finished, and writes with other settings: "
        f"{', '.join(different)}",
        remedy="ingest with its settings until it is done, or name another --store",
    )
