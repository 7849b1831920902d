"""The server against its own description: what it allows, and what it does not, is tried."""

import pytest
import schemathesis
import toy
from hypothesis import HealthCheck
from hypothesis import settings as tries
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from served import served, settings
from small import written

from rag_memtok.pipeline import api
from rag_memtok.serve import app

EXAMPLES = 50  # an operation
# of which no description can say that a text asks something, and of what is there
ASK = ("/ask", "/search", "/ingest", "/v1/completions", "/v1/chat/completions")

pytestmark = [
    pytest.mark.slow,
    # a thread of the server, in this process, may use it while an example is made
    pytest.mark.filterwarnings("ignore:Do not use the .random. module"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    config = settings(folder / "store", toy.save(folder / "toy"))
    api.ingest([written(folder / "docs")], config)
    with served(config) as running:
        yield running


described = app.application(None).openapi()  # the description needs no store
schema = schemathesis.openapi.from_dict(described)


@schema.parametrize()
@tries(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_it_is_as_it_describes_itself(case, server):
    excluded = [positive_data_acceptance] if case.path in ASK else []
    excluded += [negative_data_rejection] if case.path == "/ingest" else []  # any bytes are a file
    case.call_and_validate(base_url=server.url, excluded_checks=excluded)
