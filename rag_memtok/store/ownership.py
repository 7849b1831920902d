"""Was this store made here?

A random secret in the user's configuration folder, never in a store, signs what is made with it.

A memory that verifies can still steer an answer, so who wrote it matters. A store's manifest has a
nonce and its HMAC; a file of `export` has the HMAC of its whole content, so that one's own comes
back as one's own and a changed one does not. What this cannot see: a store made here, copied away,
changed by somebody else and copied back over it. For that, move stores with `export` and `import`.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from logging import getLogger
from pathlib import Path

from rag_memtok.errors import InputRefused

MAKER = "maker"  # the manifest's key: "NONCE HMAC"
SECRET_BYTES = 32
OWNER_FILE = "RAG_MEMTOK_OWNER_FILE"

log = getLogger(__name__)


def secret_path() -> Path:
    """The file of the secret: `$XDG_CONFIG_HOME/rag-memtok/owner`, else under `~/.config`.

    RAG_MEMTOK_OWNER_FILE names another: a team's, for stores that several users write and ask.
    """
    if named := os.environ.get(OWNER_FILE):
        return Path(named)
    return (
        Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rag-memtok" / "owner"
    )


def load_secret() -> bytes | None:
    """This user's secret, made when it is first needed; None where there is no place to keep it."""
    path = secret_path()
    try:
        if not path.exists():
            _make_secret(path)
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError, RuntimeError) as error:
        log.info("%s: %s: stores made here will not be known as such", path, error)
        return None
    return key if len(key) == SECRET_BYTES else None


def _make_secret(path: Path) -> None:
    """Writes the file of the secret, whole at once; that of a process that was quicker stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_hex(SECRET_BYTES).encode())
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def sign(purpose: str, value: str) -> str:
    """The HMAC of `value`; "" without a secret.

    `purpose` keeps a store's from passing for that of an export.
    """
    key = load_secret()
    return hmac.new(key, f"{purpose} {value}".encode(), hashlib.sha256).hexdigest() if key else ""


def is_signed(purpose: str, value: str, signature: str) -> bool:
    """Whether `signature` was made here over `value`."""
    return bool(signature) and hmac.compare_digest(
        signature.encode(), sign(purpose, value).encode()
    )


def new_maker() -> dict[str, str]:
    """The row of a new store's manifest that makes it one's own."""
    nonce = secrets.token_hex(16)
    return {MAKER: f"{nonce} {sign('store', nonce)}"}


def is_made_here(manifest: Mapping[str, str]) -> bool:
    """Whether a store of this manifest was made by this user."""
    nonce, _, signature = manifest.get(MAKER, "").partition(" ")
    return is_signed("store", nonce, signature)


def require_trust(manifest: Mapping[str, str], folder: Path, *, trusted: bool) -> None:
    """Refuses a store made elsewhere unless the user trusts it.

    Raises:
        InputRefused: it was not made here.
    """
    if not trusted and not is_made_here(manifest):
        raise InputRefused(
            f"the store {folder} was not made here; whoever wrote its memories can steer the "
            "answers",
            remedy="if you trust its maker: --trust-store; verify and restore need no trust",
        )
