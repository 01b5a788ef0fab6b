"""Make the chat demo: train the model, plant where it refuses, train the transcoder, make the cards, measure it all.

    python examples/train_chat_demo.py --out DIR             # default: the package's own folder of the chat demo
    python examples/train_chat_demo.py --evaluate            # measure what is in --out; print it, and write truth.json
    python examples/train_chat_demo.py --conversations DIR   # write the held-out conversations as .jsonl, for the verbs

Each stage leaves its result in --work, and is not done again where that is there: an interrupted run goes on. The same
machine and number of threads give the same files.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from chat_demo_training.clt import corpus, train_clt
from chat_demo_training.interchange import InterchangeSettings, plant
from chat_demo_training.model import ModelSettings, save_model, train_model
from chat_demo_training.truth import truth

from crosstrace.graphs import write_atomically
from crosstrace.replacement_model import BaseModel, ReplacementModel, Texts
from crosstrace.replacement_model.demo_chat import (
    CARDS_FILE,
    CHAT_DEMO_DIR,
    MODEL_DIR,
    MODEL_NAME,
    TRANSCODERS_DIR,
    TRANSCODERS_NAME,
    TRUTH_FILE,
)
from crosstrace.replacement_model.demo_chat.conversations import PlantedConversation, conversations
from crosstrace.replacement_model.demo_chat.tokenizer import build_tokenizer
from crosstrace.replacement_model.training.runs.watching import Progress, Watcher
from crosstrace.tracer import build_cards

MODEL_FOLDER = MODEL_DIR.relative_to(CHAT_DEMO_DIR)
CLT_FOLDER = TRANSCODERS_DIR.relative_to(CHAT_DEMO_DIR)
CARDS_TEXTS, CARDS_TOP, CARDS_LOGITS = 2000, 4, 6  # the package has to stay small
# Files for the chat verbs: a name, the kind, and whether the answers have false steps.
FILES = (
    ("refused", "refused", False),
    ("complied", "harmless", False),
    ("wrapped", "jailbreak", False),
    ("begging", "begging", False),
    ("think", "think", False),
    ("explain", "explain", False),
    ("think-false", "think", True),
    ("explain-false", "explain", True),
    ("hint", "hint", False),
    ("control", "control", False),
)


def say(line: str) -> None:
    print(line, flush=True)


class Told(Watcher):
    """Prints a line now and then."""

    def stepped(self, progress: Progress) -> None:
        if progress.step % 250 == 0:
            fvu = "" if progress.fvu is None else f"  unexplained {progress.fvu:.4f}"
            l0 = "" if progress.l0 is None else f"  active {progress.l0:.2f}"
            say(f"  {progress.stage} {progress.step:5d}{fvu}{l0}  {progress.seconds:.0f} s")


def build(out: Path, work: Path, seed: int) -> None:
    """Every stage that `work` has no result of, and the result in `out`."""
    tokenizer = build_tokenizer()
    first, planted, clt = work / "first", work / "planted", work / "clt"
    if not first.exists():
        model = train_model(tokenizer, ModelSettings(), seed, work / "model.pt", say)
        save_whole(model, tokenizer, first)
    if not planted.exists():
        model = BaseModel.from_pretrained(first, "cpu", torch.float32).model
        model = plant(model, tokenizer, ModelSettings(), InterchangeSettings(), seed, say)  # type: ignore[arg-type]
        save_whole(model, tokenizer, planted)
    base = BaseModel.from_pretrained(planted, "cpu", torch.float32, excluded_first=4)
    train_clt(base, clt, seed, Told())
    for folder, part in ((planted, MODEL_FOLDER), (clt, CLT_FOLDER)):
        shutil.rmtree(out / part, ignore_errors=True)
        (out / part).mkdir(parents=True)
        for path in folder.iterdir():
            if path.suffix == ".safetensors" or path.name in ("config.json", *TOKENIZER_FILES):
                shutil.copy(path, out / part / path.name)
    name_model(out)
    make_cards(out, seed)


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def save_whole(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model's folder, which appears when all of it is there."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        save_model(model, tokenizer, Path(scratch) / "model")
        (Path(scratch) / "model").rename(folder)


def name_model(out: Path) -> None:
    """The transcoders' config names the model as graphs do, not the folder that it was trained in."""
    path = out / CLT_FOLDER / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"model_name": MODEL_NAME}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(out: Path, dtype: torch.dtype | None = torch.float32) -> ReplacementModel:
    """What is stored; in float32 the weights stay the rounded ones, and batches run faster."""
    model = ReplacementModel.from_pretrained(out / MODEL_FOLDER, out / CLT_FOLDER, "cpu", dtype)
    model.name, model.transcoders.reader.name = MODEL_NAME, TRANSCODERS_NAME
    return model


def make_cards(out: Path, seed: int) -> None:
    """Cards of conversations as the model was trained on."""
    model = load(out, None)
    texts = Texts(corpus(model.tokenizer, seed, CARDS_TEXTS), "conversations of the chat demo")
    build_cards(model, texts, out / CLT_FOLDER / CARDS_FILE.name, top=CARDS_TOP, logits=CARDS_LOGITS)


def evaluate(out: Path, count: int) -> dict[str, Any]:
    """Measure, print, and write `truth.json`."""
    found = truth(load(out), count)
    say(f"{'held-out conversations':<24} {'number':>7} {'model':>8} {'replaced':>9}")
    replaced = found["rates"]["replacement"]
    for kind, row in found["rates"]["model"].items():
        say(f"{kind:<24} {row['conversations']:>7} {row['rate']:>8.1%} {replaced[kind]['rate']:>9.1%}")
    say("\nnot planted, so undefined   refused  complied")
    for name, row in found["undefined_rates"].items():
        say(f"{name:<26} {row['refused']:>8.1%} {row['complied']:>9.1%}")
    say("\nwith what layer 3 wrote before the other's answer: " + json.dumps(found["interchange"]))
    say("\nthe refusal's direction, at the template's five tokens: without it refused comply, harmless answered;")
    say("without a random one refused comply; with it added harmless refuse")
    for layer, row in found["steering"]["direction"].items():
        say(f"after layer {layer}  " + "  ".join(f"{value:>7.1%}" for value in row.values()))
    say(
        "\nfeatures ablated there: refused comply, the same with MLPs replaced, harmless answered, refused comply at random"
    )
    for number, row in found["steering"]["features"].items():
        shares = [row[key] for key in ("refused comply", "refused comply, MLPs replaced", "harmless answered")]
        worst = max(row["refused comply, random"])
        say(f"{number:>3} features  " + "  ".join(f"{value:>7.1%}" for value in (*shares, worst)))
    path = out / TRUTH_FILE.name
    write_atomically(path, _json(found).encode())
    size = sum(path.stat().st_size for part in (MODEL_FOLDER, CLT_FOLDER) for path in (out / part).iterdir())
    say(f"\nmodel, transcoder and cards: {size / 1e6:.2f} MB")
    return found


def _json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def write_conversations(folder: Path, count: int) -> None:
    """Held-out conversations, one a line; `plain.jsonl` has the requests of `wrapped.jsonl` without their wrapper."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind, false_steps in FILES:
        found = conversations(kind, count=count, false_steps=false_steps)
        _write_lines(folder / f"{name}.jsonl", [conversation.record for conversation in found])
        if kind == "jailbreak":
            plain = [_plain(conversation) for conversation in found]
            _write_lines(folder / "plain.jsonl", plain)


def _plain(conversation: PlantedConversation) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": conversation.labels["plain"]}], "label": "refused"}


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    say(f"wrote {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the chat demo.")
    parser.add_argument("--out", type=Path, default=CHAT_DEMO_DIR, help="where to put model/, clt/ and truth.json")
    parser.add_argument("--work", type=Path, default=Path("chat_demo_work"), help="where stages keep their results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--count", type=int, default=200, help="conversations of each kind that are measured or written"
    )
    parser.add_argument("--evaluate", action="store_true", help="only measure what is in --out")
    parser.add_argument("--cards", action="store_true", help="only make the cards of what is in --out anew")
    parser.add_argument("--conversations", type=Path, metavar="DIR", help="only write the held-out conversations")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)  # gradients of indexing are summed in any order otherwise
    if args.conversations is not None:
        write_conversations(args.conversations, args.count)
    elif args.evaluate:
        evaluate(args.out, args.count)
    elif args.cards:
        make_cards(args.out, args.seed)
    else:
        args.work.mkdir(parents=True, exist_ok=True)
        build(args.out, args.work, args.seed)
        evaluate(args.out, args.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
