"""`crosstrace label`: labels for features, asked for at a server or taken from cards, and tested."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstrace.tracer import defaults
from crosstrace.tracer.commands.delivery import say_wrote
from crosstrace.tracer.commands.messages import note, one_line_errors
from crosstrace.tracer.commands.options import Debug, Quiet, Resume

if TYPE_CHECKING:
    from crosstrace.graphs import AttributionGraph, FeatureCards
    from crosstrace.tracer.labels.client import LabelServer
    from crosstrace.tracer.labels.excerpts import FeatureContexts, Key
    from crosstrace.tracer.labels.labelling import LabelRun

_SERVER, _TESTS = "Server", "Tests"


def label(
    cards: Annotated[
        Path, typer.Option("--cards", metavar="FILE", help="The features' cards (crosstrace features --corpus).")
    ],
    feature: Annotated[
        list[str] | None, typer.Argument(metavar="FEATURE", help="Features to label: L3/417.", show_default=False)
    ] = None,
    graph: Annotated[
        list[Path] | None,
        typer.Option(
            "-g",
            "--graph",
            metavar="GRAPH",
            help="Label the features that pruning keeps in this graph (.safetensors or .json), and show the labeller what "
            "feeds them. Repeatable.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Label every feature that has a card.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write or extend this labels.json; labels that a person gave stay.",
            show_default="labels.json beside the cards",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, metavar="N", help="Print N labels.")] = 20,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server, such as http://localhost:8080/v1.",
            show_default="none: the automatic labels are tested",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="What the server calls its model.", rich_help_panel=_SERVER),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="VAR", help="The environment variable that holds the key.", rich_help_panel=_SERVER),
    ] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(
            "--prompt",
            metavar="FILE",
            help="Instructions in place of tracer/labels/prompts/label.txt.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Send at most N requests.", show_default="no limit", rich_help_panel=_SERVER
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Requests at a time.", rich_help_panel=_SERVER)
    ] = 4,
    retries: Annotated[
        int, typer.Option(min=0, metavar="N", help="Repeat a request up to N times.", rich_help_panel=_SERVER)
    ] = 6,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Wait so long for an answer.", rich_help_panel=_SERVER)
    ] = 120.0,
    tests: Annotated[
        bool, typer.Option("--test/--no-test", help="Test labels on held-out contexts.", rich_help_panel=_TESTS)
    ] = True,
    shuffled: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Try another feature's label on N of the features too; at a server.",
            rich_help_panel=_TESTS,
        ),
    ] = defaults.SHUFFLED_LABELS,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of what is drawn.", rich_help_panel=_TESTS)] = 0,
) -> None:
    """Name features, and say what the names are worth: a score from contexts that their maker has not seen.

    Example: crosstrace label --cards cards.safetensors L0/120 --base-url http://localhost:8080/v1 --model gemma

    Example: crosstrace label --cards cards.safetensors --all -o labels.json
    """
    if sum((bool(feature), bool(graph), every)) != 1:
        raise typer.BadParameter("name features, or give --graph, or --all")
    if (base_url is None) != (model is None):
        raise typer.BadParameter("--base-url and --model go together: the server, and what it calls its model")
    if base_url is None and (api_key_env or prompt or budget or resume):
        raise typer.BadParameter("--api-key-env, --prompt, --budget and --resume go with --base-url")
    with one_line_errors(debug):
        from crosstrace.graphs import FeatureCards, read_graph
        from crosstrace.graphs.files import check_writable
        from crosstrace.tracer.labels.client import LabelServer
        from crosstrace.tracer.labels.excerpts import FeatureContexts
        from crosstrace.tracer.labels.label_set import write_label_set
        from crosstrace.tracer.labels.labelling import automatic_labels
        from crosstrace.tracer.samples.sample import sample_of_cards
        from crosstrace.tracer.terminal.features.labels import said_of, show_labels

        opened = FeatureCards(cards)
        target = output or _beside(opened)
        check_writable(target)
        graphs = [_checked_graph(read_graph(path), opened, path) for path in graph or ()]
        keys = _chosen(opened, feature or [], graphs, every)
        sample = sample_of_cards(opened)
        if tests and sample is None:
            note(
                "there is no sample beside the cards, so that labels are not tested: make the cards with "
                "crosstrace features --sample 50000"
            )
        contexts = FeatureContexts(opened, sample, seed)
        server = None
        if base_url is not None and model is not None:
            server = LabelServer(base_url, model, _key(api_key_env), timeout, retries)
        settings = (tests, shuffled, concurrency, False if quiet else None)
        if server is None:
            run = automatic_labels(contexts, keys, seed, tests and sample is not None)
        else:
            run = _ask(contexts, keys, server, target, graphs, prompt, budget, resume, settings)
        kept = write_label_set(target, run.labels, opened.n_layers)
        if not quiet:
            if rows:
                show_labels(run, rows)
            else:
                typer.echo(said_of(run))
        if kept:
            note(f"{kept:,} features have a label that a person gave; it stays")
        if run.missing:
            note(
                f"the budget of {budget:,} requests is spent; {len(set(run.missing)):,} features are left: continue with "
                "the same command and --resume"
            )
        say_wrote(target)


def _ask(
    contexts: FeatureContexts,
    keys: list[Key],
    server: LabelServer,
    target: Path,
    graphs: list[AttributionGraph],
    prompt: Path | None,
    budget: int | None,
    resume: bool,
    settings: tuple[bool, int, int, bool | None],
) -> LabelRun:
    """Ask a server; the journal goes once everything is answered."""
    from crosstrace.tracer.labels.client import ChatClient, ServerError
    from crosstrace.tracer.labels.journal import Journal
    from crosstrace.tracer.labels.labelling import asked_labels, journal_identity
    from crosstrace.tracer.progress import step_progress

    tests, shuffled, concurrency, progress = settings
    identity = journal_identity(contexts.cards, contexts, server.model, prompt, graphs)
    with ChatClient(server, budget) as client:
        journal = Journal(Path(f"{target}.partial.jsonl"), identity, resume)
        whole = False
        try:
            with step_progress(progress) as done:
                run = asked_labels(
                    contexts,
                    keys,
                    client,
                    journal,
                    graphs=graphs,
                    prompt=prompt,
                    tests=tests,
                    shuffled=shuffled,
                    concurrency=concurrency,
                    done=done,
                )
            whole = not run.missing
        except ServerError as problem:
            known = f"; {len(journal.known):,} answers are kept: continue with --resume" if journal.known else ""
            raise ServerError(f"{problem}{known}") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; {len(journal.known):,} answers are kept in {journal.path}: continue with --resume"
            ) from None
        finally:
            journal.close(delete=whole or not journal.known)
    return run


def _beside(cards: FeatureCards) -> Path:
    from crosstrace.replacement_model.embedded import EMBEDDED_MODELS

    folder = cards.path.resolve().parent
    if any(folder == own.transcoders.resolve() for own in EMBEDDED_MODELS):
        raise ValueError("the embedded demos keep the labels that they came with: say with -o where these go")
    return cards.path.parent / "labels.json"


def _checked_graph(graph: AttributionGraph, cards: FeatureCards, path: Path) -> AttributionGraph:
    if different := cards.belongs_to(graph.model_name, graph.transcoders_name, graph.settings.get("fingerprints")):
        raise ValueError(f"{path}: {different}")
    return graph


def _chosen(cards: FeatureCards, wanted: list[str], graphs: list[AttributionGraph], every: bool) -> list[Key]:
    """Return the features to label; of a graph, those that have a card.

    Raises:
        ValueError: A feature cannot be read, does not exist or did not fire, or there is none.
    """
    from crosstrace.replacement_model.interventions.references import parse_feature
    from crosstrace.tracer.labels.feeding import features_of_graph
    from crosstrace.tracer.terminal.features.card import check_feature

    chosen: list[Key] = list(cards) if every else []
    for text in wanted:
        found = parse_feature(text)
        if found is None:
            raise ValueError(f"feature {text!r} cannot be read; write L3/417 (layer 3, feature 417)")
        check_feature(cards, (found.layer, found.feature))
        chosen.append((found.layer, found.feature))
    for graph in graphs:
        chosen += [key for key in features_of_graph(graph) if key in cards]
    if not chosen:
        raise ValueError("there is no feature with a card to label")
    return sorted(set(chosen))


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable {variable} that --api-key-env names is not set")
    return key
