"""A run of labelling: labels are asked for, or taken from cards, and tested; several requests at a time, in any order.

What is asked depends on the cards, the sample and the seed alone, so that a run gives the same labels with one request at a
time or many, interrupted or not, from a server that answers the same to the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from crosstrace.graphs import AttributionGraph, FeatureCards
from crosstrace.tracer.defaults import SHUFFLED_LABELS
from crosstrace.tracer.labels.client import BudgetSpentError, ChatClient, StoppedError
from crosstrace.tracer.labels.excerpts import FeatureContexts, Key
from crosstrace.tracer.labels.feeding import Feeding
from crosstrace.tracer.labels.journal import Journal
from crosstrace.tracer.labels.label_set import Label
from crosstrace.tracer.labels.messages import (
    detection_message,
    fuzzing_message,
    label_message,
    parse_judgements,
    parse_label,
    read_prompt_file,
)
from crosstrace.tracer.labels.scoring import (
    LITERAL,
    balanced_accuracy,
    combined,
    enough,
    fuzzed,
    literal_scores,
    shuffled_partner,
)

_TRIES = 2  # of a question whose answer is nonsense
AUTOMATIC = "automatic"
Done = Callable[[str, int, int], None]


@dataclass
class LabelRun:
    """What came of a run.

    Attributes:
        labels: By (layer, feature).
        nonsense: Features to which the server gave no usable label.
        missing: Features that were not reached before the budget was spent.
        requests: Requests sent.
    """

    labels: dict[Key, Label] = field(default_factory=dict)
    nonsense: list[Key] = field(default_factory=list)
    missing: list[Key] = field(default_factory=list)
    requests: int = 0

    @property
    def mean_score(self) -> float | None:
        """The mean score of the labels that were tested beside a shuffled one."""
        return _mean([label.score for label in self._compared])

    @property
    def mean_shuffled(self) -> float | None:
        """The mean score of other features' labels on the same contexts."""
        return _mean([label.shuffled for label in self._compared])

    @property
    def tested(self) -> int:
        """How many labels have a score."""
        return sum(label.score is not None for label in self.labels.values())

    @property
    def _compared(self) -> list[Label]:
        return [label for label in self.labels.values() if label.score is not None and label.shuffled is not None]


@dataclass(frozen=True)
class _Question:
    """One question: its name in the journal, what is asked, and how an answer is read; None is nonsense."""

    name: str
    system: str
    user: str
    read: Callable[[str], Any]


def automatic_labels(contexts: FeatureContexts, keys: Sequence[Key], seed: int = 0, tests: bool = True) -> LabelRun:
    """Take the automatic labels of cards and test them by the letter; no server is asked.

    Args:
        contexts: Of the features.
        keys: The features, as (layer, feature).
        seed: Of what is drawn.
        tests: Whether to test them.

    Raises:
        KeyError: A feature has no card.
    """
    found = {key: Label(contexts.cards.label(key).removeprefix("~").strip(), AUTOMATIC) for key in keys}
    return LabelRun(literal_tests(contexts, found, seed) if tests else found)


def literal_tests(contexts: FeatureContexts, labels: Mapping[Key, Label], seed: int = 0) -> dict[Key, Label]:
    """Return labels with the scores of the literal test; those whose features have too few held-out contexts get none.

    Args:
        contexts: Of the features.
        labels: Whoever made them.
        seed: Of what is drawn.
    """
    partner = shuffled_partner(sorted(labels), seed)
    found = dict(labels)
    for key, label in sorted(labels.items()):
        excerpts = contexts.test(key) if key in contexts.cards else []
        items = fuzzed(excerpts, key, seed)
        detection, fuzzing = literal_scores(label.text, excerpts, items)
        other = None if key not in partner else combined(*literal_scores(labels[partner[key]].text, excerpts, items))
        found[key] = _tested(label, detection, fuzzing, other, LITERAL)
    return found


def asked_labels(
    contexts: FeatureContexts,
    keys: Sequence[Key],
    client: ChatClient,
    journal: Journal,
    *,
    graphs: Sequence[AttributionGraph] = (),
    prompt: Path | None = None,
    tests: bool = True,
    shuffled: int = SHUFFLED_LABELS,
    concurrency: int = 4,
    done: Done = lambda what, number, total: None,
) -> LabelRun:
    """Ask a server for labels of features, and test them on held-out contexts.

    Args:
        contexts: Of the features.
        keys: The features, as (layer, feature).
        client: Asks the server.
        journal: Keeps the answers; those that it has are not asked for again.
        graphs: Say what feeds the features.
        prompt: Instructions in place of those that come with the package.
        tests: Whether to test the labels.
        shuffled: On how many features another one's label is tried too.
        concurrency: Requests at a time.
        done: Called with what is done, how much of it, and how much there is.

    Returns:
        The labels. Where the budget is spent, those so far.

    Raises:
        KeyError: A feature has no card.
        ServerError: The server cannot be used; the answers so far are in the journal.
    """
    feeding, cards = Feeding(graphs, contexts.cards), contexts.cards
    system = read_prompt_file("label", prompt)
    pool = _Pool(client, journal, concurrency)
    run = LabelRun()

    def label_questions() -> Iterator[_Question]:
        for key in keys:
            card = cards[key]
            promoted, suppressed = ([token for token, _ in card[side]] for side in ("promoted", "suppressed"))
            message = label_message(contexts.shown(key), promoted, suppressed, *feeding.of(key))
            yield _Question(_name("label", key), system, message, parse_label)

    pool.ask(label_questions(), len(keys), "labels", done)
    for key in keys:
        name = _name("label", key)
        if name not in journal.known:
            run.missing.append(key)
        elif journal.known[name] is None:
            run.nonsense.append(key)
        else:
            run.labels[key] = Label(journal.known[name], client.server.model)
    if tests and contexts.sample is not None and not run.missing:
        _test(contexts, run, pool, shuffled, done)
    run.requests = client.sent
    return run


def _test(contexts: FeatureContexts, run: LabelRun, pool: _Pool, shuffled: int, done: Done) -> None:
    """Test the labels of a run, and other features' labels on some of the features."""
    systems = {what: read_prompt_file(what) for what in ("detection", "fuzzing")}
    keys, seed, known = sorted(run.labels), contexts.seed, pool.journal.known
    partner = dict(islice(shuffled_partner(keys, seed).items(), shuffled))

    def questions() -> Iterator[_Question]:
        for key in keys:
            excerpts = contexts.test(key)
            items = fuzzed(excerpts, key, seed)
            for kind, other in (("own", key), ("shuffled", partner.get(key))):
                if other is None:
                    continue
                label = run.labels[other].text
                for what, message, truth in (
                    ("detection", detection_message(label, excerpts), [one.active for one in excerpts]),
                    ("fuzzing", fuzzing_message(label, items), [one.right for one in items]),
                ):
                    if enough(truth):
                        read = partial(parse_judgements, count=len(truth))
                        yield _Question(_name(f"{what} {kind}", key), systems[what], message, read)

    pool.ask(questions(), 2 * len(keys) + 2 * len(partner), "tests", done)
    for key in keys:
        excerpts = contexts.test(key)
        items = fuzzed(excerpts, key, seed)
        truths = {"detection": [one.active for one in excerpts], "fuzzing": [one.right for one in items]}
        names = {(what, kind): _name(f"{what} {kind}", key) for what in truths for kind in ("own", "shuffled")}

        def accuracy(
            what: str,
            kind: str,
            truths: Mapping[str, list[bool]] = truths,
            names: Mapping[tuple[str, str], str] = names,
        ) -> float | None:
            said = known.get(names[what, kind])
            return None if said is None else balanced_accuracy(said, truths[what])

        run.labels[key] = _tested(
            run.labels[key],
            accuracy("detection", "own"),
            accuracy("fuzzing", "own"),
            combined(accuracy("detection", "shuffled"), accuracy("fuzzing", "shuffled")),
            pool.client.server.model,
        )
        asked = [
            name for (what, kind), name in names.items() if enough(truths[what]) and (kind == "own" or key in partner)
        ]
        if any(name not in known for name in asked):
            run.missing.append(key)


class _Pool:
    """Asks questions, several at a time."""

    def __init__(self, client: ChatClient, journal: Journal, concurrency: int) -> None:
        self.client, self.journal, self._concurrency = client, journal, concurrency

    def ask(self, questions: Iterator[_Question], total: int, what: str, done: Done) -> None:
        """Ask what the journal does not know, until all is known or the budget is spent.

        Raises:
            ServerError: The server cannot be used.
        """
        finished = 0
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="crosstrace-labels") as pool:
            running: set[Future[None]] = set()

            def collect(least: int) -> None:
                nonlocal finished
                while len(running) > least:
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    running.difference_update(ended)
                    for one in ended:
                        one.result()
                    finished += len(ended)
                    done(what, finished, total)

            try:
                for question in questions:
                    if question.name in self.journal.known:
                        finished += 1
                        continue
                    collect(self._concurrency - 1)
                    running.add(pool.submit(self._answer, question))
                collect(0)
            except BudgetSpentError:
                for one in running:  # what is under way was paid for
                    with suppress(BudgetSpentError, StoppedError):
                        one.result()
            except BaseException:
                self.client.stop()
                for one in running:
                    one.cancel()
                raise

    def _answer(self, question: _Question) -> None:
        for _ in range(_TRIES):
            answer = question.read(self.client.ask(question.system, question.user))
            if answer is not None:
                break
        self.journal.add(question.name, answer)


def journal_identity(
    cards: FeatureCards, contexts: FeatureContexts, model: str, prompt: Path | None, graphs: Sequence[AttributionGraph]
) -> dict[str, Any]:
    """Return what the answers of a run depend on."""
    return {
        "transcoders": cards.transcoders_name,
        "cards": cards.corpus.get("digest", ""),
        "sample": None if contexts.sample is None else contexts.sample.positions,
        "model": model,
        "seed": contexts.seed,
        "prompt": hashlib.sha256(read_prompt_file("label", prompt).encode()).hexdigest()[:16],
        "graphs": [graph.prompt for graph in graphs],
    }


def _name(what: str, key: Key) -> str:
    return f"{what} L{key[0]}/{key[1]}"


def _tested(label: Label, detection: float | None, fuzzing: float | None, shuffled: float | None, scorer: str) -> Label:
    score = combined(detection, fuzzing)
    return Label(label.text, label.source, score, detection, fuzzing, shuffled, scorer if score is not None else "")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
