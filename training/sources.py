"""Reading the data folder: prose and questions, sampled by hash, dev and test kept apart."""

import hashlib
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WIKIPEDIA = ("wikipedia_en-1", "wikipedia_en-2")
SPANISH = ("eltec_spanish_novels", "python_docs_es", "react_docs_es")
SPAN_QUESTIONS = (
    "squad11_train_part",
    "nq_swap",
    "wiki_templates",
    "factbook_templates",
    "openstax_glossary",
    "multihop_small",
    "covidqa",
)
FREE_QUESTIONS = (
    "fairytaleqa",
    "onestopqa",
    "wikinews_quotes",
    "selqa",
    "squad_reqa_wiki",
    "dolly_context",
)
UNANSWERABLE = "wiki_templates_unanswerable"


@dataclass(frozen=True)
class Share:
    """The share of each source in the prose.

    The rest is split evenly over the other sources, as far as they reach.
    """

    wikipedia: float = 0.58
    wikinews: float = 0.08
    spanish: float = 0.055

    def budgets(self, sources: list[str], megabytes: float) -> dict[str, float]:
        """Megabytes of text to take from each source."""
        others = [s for s in sources if s not in WIKIPEDIA + SPANISH + ("wikinews_en",)]
        rest = (1 - self.wikipedia - self.wikinews - self.spanish) / max(1, len(others))
        fixed = dict.fromkeys(WIKIPEDIA, self.wikipedia / 2) | dict.fromkeys(
            SPANISH, self.spanish / 5
        )
        fixed |= {"wikinews_en": self.wikinews, "eltec_spanish_novels": self.spanish * 3 / 5}
        return {s: megabytes * fixed.get(s, rest) for s in sources}


def hash01(text: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256((salt + text).encode()).digest()[:6], "big") / 2**48


def read(path: Path) -> Iterator[dict]:
    """Rows of a `.jsonl.xz` file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def prose(data: Path, megabytes: float, share: Share = Share()) -> Iterator[tuple[str, str]]:
    """Pairs of (source, document) of about `megabytes` in all.

    Documents are taken by hash, up to a source's budget.

    Cost: decompresses every file once, about 10 MB of text a second and core.
    """
    files = {
        p.name.removesuffix(".jsonl.xz"): p for p in sorted((data / "text").glob("*.jsonl.xz"))
    }
    for source, budget in share.budgets(list(files), megabytes).items():
        if budget <= 0:
            continue
        keep = min(1.0, budget / estimated_megabytes(files[source]))
        for row in read(files[source]):
            if hash01(row["path"] + row["text"][:200]) < keep:
                yield source, row["text"]


def estimated_megabytes(path: Path) -> float:
    """Megabytes of text in a file, from its packed size (prose packs about 3.7 to one)."""
    return path.stat().st_size * 3.7 / 1e6


def questions(data: Path, source: str, split: str) -> list[dict]:
    """Rows of a question set in one split."""
    return [row for row in read(data / "qa" / f"{source}.jsonl.xz") if row["split"] == split]


def choosing(context: str) -> bool:
    """Whether questions about `context` may be chosen by; the other half is for the table alone."""
    return hash01(context, "half ") < 0.5
