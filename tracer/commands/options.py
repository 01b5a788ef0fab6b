"""Options that several verbs share, each defined once. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crosstrace.tracer import defaults

_MACHINE = "Model and machine"
_PRUNING = "Pruning"
_TRIVIAL = "What is trivial"
_READING = "Reading texts"
_TARGETS = "What to explain"

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="A text, or - to read it from standard input.")]
Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="NAME",
        help="A Gemma 3 model: a folder, a .gguf file, its name on the hub, or demo-chat, the embedded chat model.",
        show_default="the embedded demo",
        rich_help_panel=_MACHINE,
    ),
]
TranscodersOption = Annotated[
    str | None,
    typer.Option(
        "-t",
        "--transcoders",
        metavar="NAME",
        help="Its transcoders: a folder, or org/repo\\[/sub/folder]\\[@revision] on the hub.",
        rich_help_panel=_MACHINE,
    ),
]
# Options whose metavar is their own name are named: typer 0.27 takes a name from the metavar where there is none.
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where to compute: cpu, cuda, cuda:1, …",
        show_default="a GPU if there is one",
        rich_help_panel=_MACHINE,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Use the weights in float32, bfloat16 or float16.",
        show_default="as stored",
        rich_help_panel=_MACHINE,
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for transcoder weights and rows, such as 8GB.",
        show_default="80 % of what is free",
        rich_help_panel=_MACHINE,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="MAP",
        help="Spread the model's layers over devices with accelerate: auto, balanced or sequential.",
        rich_help_panel=_MACHINE,
    ),
]
ExcludeFirst = Annotated[
    int | None,
    typer.Option(
        "--exclude-first",
        min=0,
        metavar="N",
        help="The first N positions carry no features and no errors.",
        show_default="1, or the header of a chat prompt",
        rich_help_panel=_MACHINE,
    ),
]
SaeOption = Annotated[
    list[str] | None,
    typer.Option(
        "-s",
        "--sae",
        metavar="NAME",
        help="An SAE of its: a folder, or org/repo/sub/folder\\[@revision] on the hub; one layer, or a family of layers. "
        "Repeatable.",
        rich_help_panel=_MACHINE,
    ),
]
Saes = Annotated[
    list[str] | None,
    typer.Option(
        "-s",
        "--sae",
        metavar="NAME",
        help="An SAE of its: a folder, or org/repo/sub/folder\\[@revision] on the hub; one layer, or a family of "
        "layers. Repeatable, for several sites too.",
        show_default="the demo's, for the demo",
        rich_help_panel=_MACHINE,
    ),
]
CorpusFiles = Annotated[
    list[Path],
    typer.Option("-c", "--corpus", metavar="FILE", help="Texts: .txt, .jsonl or .parquet. Repeatable."),
]
TextField = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Key or column that holds the text in .jsonl and .parquet.", rich_help_panel=_READING
    ),
]
SkipBroken = Annotated[
    bool,
    typer.Option("--skip-broken", help="Leave broken lines out instead of stopping.", rich_help_panel=_READING),
]
ContextLength = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help="Tokens of a context, <bos> included.",
        show_default=str(defaults.CONTEXT_LENGTH),
        rich_help_panel=_READING,
    ),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Run N tokens at a time.",
        show_default="by memory, 2048 at most; on a GPU 16384",
        rich_help_panel=_READING,
    ),
]
GraphOutputs = Annotated[
    list[Path] | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write the graph; the suffix sets the format. The whole graph: .safetensors, .html (a page). "
        "The pruned graph: .json, .dot, .svg, .pdf, .png, .graphml. Repeatable.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Rows computed at a time.",
        show_default="what memory allows",
        rich_help_panel=_MACHINE,
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="Explain this instead of the most probable tokens: '\" Austin\"', '\"\\n\"', #24278 (an id), "
        '\'" Austin" - " Dallas"\', L3/417@7, or resid_post/12/417@7 with --sae. Repeatable; all weigh the same.',
        rich_help_panel=_TARGETS,
    ),
]
Position = Annotated[
    int,
    typer.Option(
        metavar="P",
        help="Read targets at this position; negative numbers count from the end.",
        rich_help_panel=_TARGETS,
    ),
]
MaxLogits = Annotated[
    int,
    typer.Option(metavar="N", help="Explain at most N of the most probable tokens.", rich_help_panel=_TARGETS),
]
LogitProbability = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Explain the fewest tokens that reach this probability together.",
        rich_help_panel=_TARGETS,
    ),
]
MaxFeatureNodes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Trace at most N features, the most influential ones.",
        show_default=str(defaults.MAX_FEATURE_NODES),
        rich_help_panel=_TARGETS,
    ),
]
Attention = Annotated[
    bool,
    typer.Option(
        "--attention",
        help="Also keep which head carried each edge, and why the heads that matter most looked there.",
    ),
]
NodeThreshold = Annotated[
    float,
    typer.Option(
        metavar="SHARE", help="Keep the fewest nodes that carry this share of the influence.", rich_help_panel=_PRUNING
    ),
]
EdgeThreshold = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Keep the fewest edges that carry this share of the edge scores.",
        rich_help_panel=_PRUNING,
    ),
]
CardsOption = Annotated[
    Path | None,
    typer.Option("--cards", metavar="FILE", help="Feature cards to use.", show_default="those beside the transcoders"),
]
PathFeatures = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="List only paths through N features or more.", rich_help_panel=_TRIVIAL),
]
BeforeLast = Annotated[
    bool,
    typer.Option("--before-last", help="Leave out features at the last position.", rich_help_panel=_TRIVIAL),
]
MaxFiringRate = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Leave out features that fire on more than this share of tokens; feature cards know it.",
        rich_help_panel=_TRIVIAL,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
OpenIt = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the stack trace of an error, and which program drew each picture.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print no tables and no progress bar.")]
