"""Files that packages bring, found without importing any code of theirs."""

import hashlib
import importlib.util
from pathlib import Path


def file_in(package: str, file: str) -> Path | None:
    """The file of that name in an installed package; None if there is none."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (found := Path(folder) / file).is_file():
            return found
    return None


def sha256_of(file: Path) -> str:
    """The hex sha256 of a file. Cost: reads it, about 1 GB a second."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
