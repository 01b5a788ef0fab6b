"""Everything that the handlers of requests share, made once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crosstrace.tracer.server.core.engine import Engine
from crosstrace.tracer.server.core.models import Models, Prompt, Served
from crosstrace.tracer.server.core.safety import Access
from crosstrace.tracer.server.core.settings import ServeSettings
from crosstrace.tracer.server.core.store import Entry, GraphStore
from crosstrace.tracer.server.core.uploads import Uploads
from crosstrace.tracer.server.paths.jobs import Refused
from crosstrace.tracer.server.paths.wire import ChatMessage, Failure

FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "The request cannot be used"},
    401: {"model": Failure, "description": "The secret is missing or wrong"},
    403: {"model": Failure, "description": "The page's token or the secret is missing or wrong"},
    404: {"model": Failure, "description": "There is no such thing"},
    413: {"model": Failure, "description": "The body is too large"},
    421: {"model": Failure, "description": "The Host header is another name than this server's"},
    500: {"model": Failure, "description": "A fault of the program"},
    503: {"model": Failure, "description": "The queue is full"},
}


@dataclass(frozen=True)
class Service:
    """The parts of a server.

    Attributes:
        settings: What was named at start.
        models: The models.
        store: The graphs.
        engine: Where models work.
        drawing: Where files are made of graphs, beside the models.
        access: Who may do what.
        uploads: How graphs are sent away.
    """

    settings: ServeSettings
    models: Models
    store: GraphStore
    engine: Engine
    drawing: Engine
    access: Access
    uploads: Uploads

    def model(self, name: str | None) -> Served:
        """Return a model by its name.

        Raises:
            Refused: It is not served here.
        """
        try:
            return self.models.find(name)
        except ValueError as problem:
            raise Refused(400, str(problem)) from None

    def model_of(self, entry: Entry) -> Served | None:
        """Return the model that a graph was traced in; None if it is not served now."""
        return next((one for one in self.models if one.scan == entry.scan), None)

    def entry(self, graph_id: str) -> Entry:
        """Return a kept graph.

        Raises:
            Refused: There is none.
        """
        if (found := self.store.entry(graph_id)) is None:
            raise Refused(404, "there is no such graph; it may have made room for newer ones")
        return found


def prompt_of(text: str, messages: list[ChatMessage] | None, answer: str = "") -> Prompt:
    """Return the prompt of a request."""
    turns = tuple({"role": message.role, "content": message.content} for message in messages or ())
    return Prompt("" if turns else text, turns, answer)
