"""The stored documents against the files of a folder, read again."""

import os
from dataclasses import replace
from pathlib import Path

from rag_memtok.config import Documents
from rag_memtok.documents.encodings import encoding_in
from rag_memtok.documents.names import name_of, resolve_path
from rag_memtok.documents.scan import Scan, read
from rag_memtok.errors import UsageError
from rag_memtok.pipeline.audit import Finding
from rag_memtok.store.store import Store


def root_for(store: Store, folder: Path) -> str:
    """The folder that was ingested to compare `folder` with.

    It is `folder` itself or, as it may be a copy, the only one there is.

    Raises:
        UsageError: there are several others.
    """
    name = name_of(resolve_path(os.fspath(folder)))
    roots = sorted({document.root for document in store.documents(skip_damaged=True)})
    if name in roots or not roots:
        return name
    if len(roots) > 1:
        raise UsageError(
            f"{folder} is none of the folders that were ingested; there are {', '.join(roots)}",
            remedy="name one of these; a copy can be compared with a store of one folder alone",
        )
    return roots[0]


def compare_with_files(store: Store, root: str, scan: Scan, settings: Documents) -> list[Finding]:
    """Findings where what was ingested from the folder `root` differs from files read again.

    What cannot be read cannot be compared. The same bytes are read in the encoding in which they
    were read before.
    """
    stored = {
        (document.file, document.path): document
        for document in store.documents(skip_damaged=True)
        if document.root == root
    }
    unread = {item.path: item.reason for item in (*scan.skipped, *scan.ignored)}
    findings = []
    readings = {document.file_sha256: document.extractor for document in stored.values()}
    for source in scan.files:
        if source.encoding and source.sha256 in readings:
            source = replace(source, encoding=encoding_in(readings[source.sha256]))
        reading = read(source, settings)
        unread |= {item.path: item.reason for item in reading.skipped}
        for document in reading.documents:
            before = stored.pop((document.file, document.path), None)
            if before is None:
                findings.append(Finding("mismatch", document.path, "is not in the store"))
            elif before.extractor != document.extractor:
                reason = f"was extracted by {before.extractor}, here by {document.extractor}"
                findings.append(Finding("incomparable", document.path, reason))
            elif before.sha256 != document.sha256:
                findings.append(
                    Finding("mismatch", document.path, "has another text than the stored one")
                )
    for file, path in stored:
        if why := unread.get(path) or unread.get(file):
            findings.append(Finding("incomparable", path, f"cannot be read here: {why}"))
        else:
            findings.append(Finding("mismatch", path, "is in the store, not in the folder"))
    return findings
