"""What traces the prompts of a sweep: a model loaded once, then one prompt after the other into the folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from crosstrace.graphs import AttributionGraph, with_card_labels
from crosstrace.replacement_model import ReplacementModel, weight_fingerprints
from crosstrace.tracer.attribution.batches import steady_batch_size
from crosstrace.tracer.attribution.named_saes import named_saes
from crosstrace.tracer.attribution.tracing import saes_in_use
from crosstrace.tracer.cards.lookup import find_cards
from crosstrace.tracer.sweeps.folder import Outcome, graph_path
from crosstrace.tracer.sweeps.prompts import SweepPrompt
from crosstrace.tracer.sweeps.settings import TraceSettings
from crosstrace.tracer.sweeps.tables import graph_tables, write_parts

Loader = Callable[[], ReplacementModel]
"""Loads the model; pickled where other processes load it."""


@dataclass(frozen=True)
class Job:
    """What all prompts of a sweep have in common.

    Attributes:
        load: Loads the model.
        folder: The sweep's folder.
        settings: How prompts are traced.
        saes: SAEs whose latents may be targets, as command lines name them.
        generate: The most tokens of an answer that the model gives first.
        threads: How many threads compute on the CPU: results to the bit depend on it.
        cards: Feature cards; None for those beside the transcoders.
    """

    load: Loader
    folder: Path
    settings: TraceSettings
    saes: tuple[str, ...] = ()
    generate: int = 0
    threads: int = 1
    cards: Path | None = None

    def as_settings(self) -> dict[str, Any]:
        """Return what graphs depend on beside the weights, by the names of the command line's options."""
        settings = self.settings
        return {
            "targets": [target if isinstance(target, str | int) else repr(target) for target in settings.targets],
            "max_logits": settings.max_logits,
            "logit_probability": settings.logit_probability,
            "max_feature_nodes": settings.max_feature_nodes,
            "batch_size": settings.batch_size,
            "position": settings.position,
            "node_threshold": settings.node_threshold,
            "edge_threshold": settings.edge_threshold,
            "attention": settings.attention,
            "hide_template": settings.hide_template,
            "generate": self.generate,
            "sae": list(self.saes),
            "threads": self.threads,
            "cards": None if self.cards is None else self.cards.name,
        }


class Worker:
    """A loaded model at work on a sweep."""

    def __init__(self, job: Job) -> None:
        """Load the model.

        Raises:
            ValueError: It cannot be used.
            OSError: Files are missing or cannot be read, or the sweep's folder is not on this machine.
        """
        if not (job.folder / "graphs").is_dir():
            raise FileNotFoundError(
                f"{job.folder} is not on this machine: the workers of a sweep write into a folder that all of them share"
            )
        self.job = job
        self.model = job.load()
        targets = [target for target in job.settings.targets if isinstance(target, str)]
        readers = named_saes(job.saes, targets, loaded_demo=self.model.name == "crosstrace-demo")
        self.saes = saes_in_use(self.model, readers)
        self._weights = weight_fingerprints(self.model)
        self._cards = find_cards(self.model.name, self.model.transcoders.name, self._weights, given=job.cards)

    def identity(self) -> dict[str, Any]:
        """Return what graphs depend on and the settings do not tell: weights, device, what tokenizing needs."""
        model = self.model
        template = getattr(model.tokenizer, "chat_template", None)
        return {
            "weights": self._weights,
            "device": model.device.type,
            "exclude_first": model.description.excluded_first,
            "chat_template": template and hashlib.sha256(str(template).encode()).hexdigest()[:16],
        }

    def trace(self, number: int, prompt: SweepPrompt) -> Outcome:
        """Trace a prompt and write its graph, and its rows of the tables beside it.

        Args:
            number: Of the prompt.
            prompt: The prompt.

        Returns:
            What became of it; a prompt that cannot be traced is one that failed.

        Raises:
            OSError: The folder cannot be written to, for want of room or otherwise: no other prompt would fare better.
        """
        began = time.monotonic()
        notes: list[str] = []
        try:
            with threads(self.job.threads):
                graph = self._graph(prompt, notes.append)
                labelled = with_card_labels(graph, self._cards)
                tables = graph_tables(labelled, graph_path(self.job.folder, number).stem, prompt.as_dict())
        except Exception as problem:  # whatever it is, the sweep goes on
            return Outcome(number, failure(problem), tuple(notes), time.monotonic() - began)
        write_parts(self.job.folder, number, tables)
        graph.save(graph_path(self.job.folder, number))  # the last: that it is there says that the prompt is done
        return Outcome(number, "", tuple(notes), time.monotonic() - began)

    def _graph(self, prompt: SweepPrompt, note: Callable[[str], None]) -> AttributionGraph:
        settings, model = self.job.settings, self.model
        if prompt.targets:
            settings = replace(settings, targets=prompt.targets)
        given = prompt.of(model, self.job.generate)
        if isinstance(given, str) and (words := model.unknown_words(given)):
            note(f"not in the vocabulary, read as unknown: {', '.join(words)}")
        if settings.batch_size is None:
            n_positions = len(model.tokenize(given))
            size = steady_batch_size(model.description, n_positions, model.device.type)
            settings = replace(settings, batch_size=size)
        graph = settings.trace(model, given, self.saes, progress=False, note=note)
        # A guess takes a product with the whole unembedding: features that a card names get none.
        return settings.finish(graph, model, self.saes, progress=False, named=self._cards or ())


class OneProcess:
    """Traces prompts in this process."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)

    def identity(self) -> dict[str, Any]:
        """Return what graphs depend on; see `Worker.identity`."""
        return self._worker.identity()

    def run(self, todo: Sequence[tuple[int, SweepPrompt]]) -> Iterator[Outcome]:
        """Trace prompts in order."""
        for number, prompt in todo:
            yield self._worker.trace(number, prompt)

    def close(self) -> None:
        """Let the model go."""


def failure(problem: BaseException) -> str:
    """Return why a prompt failed, in one line."""
    said = " ".join(str(problem).split())
    expected = isinstance(problem, ValueError | OSError | RuntimeError | MemoryError)
    return said if said and expected else f"{type(problem).__name__}: {said}".rstrip(": ")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute on this many threads of the CPU for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
