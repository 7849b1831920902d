"""What every route needs: the engine, the jobs, the settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from rag_memtok.config import Config
from rag_memtok.serve.ending import Ending
from rag_memtok.serve.engine import Engine
from rag_memtok.serve.jobs import Jobs
from rag_memtok.serve.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Serving:
    """A store being served from `folder`."""

    folder: Path
    config: Config
    engine: Engine
    jobs: Jobs
    metrics: Metrics
    ending: Ending


def serving_of(request: Request) -> Serving:
    """The store that the application of a request serves."""
    serving: Serving = request.app.state.serving
    return serving


CurrentServing = Annotated[Serving, Depends(serving_of)]
