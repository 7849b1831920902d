"""A model's files on this machine: what a name means, what is refused, which weights are loaded."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_memtok.errors import InputRefused, ModelUnavailable
from rag_memtok.model import gguf

NAMES = ("mini", "smollm2")  # of the models that are embedded and packaged
UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_WEIGHTS = "transformers_weights"  # a config.json may name other files by it


def local_path(name: str) -> Path | None:
    """The folder or file that `name` means, absolute: it holds wherever one is.

    None: one of NAMES, which no folder replaces, or nothing is there: a hub id, a mistake.
    """
    if name in ("", *NAMES):
        return None
    path = Path(name).expanduser()
    return path.absolute() if path.is_dir() or path.is_file() else None


def resolve_gguf(path: Path) -> Path:
    """A model folder as it is, or what is made of a GGUF file or of the one in a folder."""
    if path.is_file():
        return gguf.convert(path)
    files = sorted(path.glob("*.gguf"))
    if (path / "config.json").exists() or not files:
        return path
    if len(files) > 1:
        raise ModelUnavailable(
            f"{path} holds {len(files)} GGUF files", remedy=f"name one: --model {files[0]}"
        )
    return gguf.convert(files[0])


def read_config(folder: Path, families: Sequence[str]) -> dict[str, Any]:
    """A model folder's config.json, once nothing speaks against loading it.

    Raises:
        InputRefused: it has pickled weights, or wants to run code of its own.
        ModelUnavailable: it is not a model folder, or not of a class in `families`.
    """
    description = _config_in(folder)
    if description.get("auto_map"):
        raise InputRefused(
            f"the model in {folder} wants to run code of its own",
            remedy="use a model that transformers knows by itself",
        )
    if not any(folder.glob("*.safetensors")):
        unsafe = sorted(path.name for path in folder.iterdir() if path.suffix in UNSAFE_SUFFIXES)
        if unsafe:
            raise InputRefused(
                f"{folder} has only pickled weights ({unsafe[0]})",
                remedy="convert them to safetensors first",
            )
        raise ModelUnavailable(
            f"{folder} holds no *.safetensors", remedy="give --model a folder with its weights"
        )
    if description.get("model_type") not in families:
        known = ", ".join(families)
        raise ModelUnavailable(
            f"model class {description.get('model_type')!r} is not known here",
            remedy=f"use one of: {known}",
        )
    return description


def _config_in(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(description, dict):
            raise ValueError(f"it is a {type(description).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnavailable(
            f"{folder} holds no readable config.json",
            remedy="give --model a Hugging Face model folder",
        ) from error
    return description


def weight_files(folder: Path, description: Mapping[str, Any]) -> list[Path]:
    """The files whose weights transformers loads, in their order; others may lie beside them."""
    if OTHER_WEIGHTS not in description:
        if (folder / WEIGHTS).is_file():
            return [folder / WEIGHTS]
        if (folder / INDEX).is_file():
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            return sorted({folder / name for name in index["weight_map"].values()})
    return sorted(folder.glob("*.safetensors"))


def hash_files(paths: Sequence[Path]) -> str:
    """One digest over the files' digests; reads about 1 GB a second."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
