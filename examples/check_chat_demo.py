"""What was planted in the chat demo, found by the tools on held-out conversations: prints the figures of docs/chat.md.

python examples/check_chat_demo.py [--count 40] [--write FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.conversations import Record
from crosstrace.replacement_model.demo_chat.conversations import PlantedConversation, conversations
from crosstrace.tracer import jailbreak, reasoning, refusal
from crosstrace.tracer.chat.entities import demo_entities


def record(number: int, one: PlantedConversation) -> Record:
    """A conversation as its file would have it."""
    fields = {key: value for key, value in one.record.items() if key != "messages"}
    return Record(f"{one.kind} {number}", one.messages, fields)


def records(kind: str, count: int) -> list[Record]:
    """Held-out conversations of a kind."""
    return [record(number, one) for number, one in enumerate(conversations(kind, count=count))]


def write(folder: Path, count: int) -> None:
    """Write the conversations as files for the commands."""
    folder.mkdir(parents=True, exist_ok=True)
    reasoned = [*conversations("think", count=count), *conversations("explain", count=count)]
    files = {
        "refused": [one.messages for one in conversations("refused", count=count)],
        "complied": [one.messages for one in conversations("harmless", count=count)],
        "plain": [[{"role": "user", "content": c.labels["plain"]}] for c in conversations("jailbreak", count=count)],
        "wrapped": [one.messages for one in conversations("jailbreak", count=count)],
        "reasoning": [one.record for one in reasoned],
        "hints": [one.record for one in conversations("hint", count=count)],
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Run all three analyses, or write their files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="conversations of each kind")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the conversations instead")
    chosen = parser.parse_args()
    if chosen.write is not None:
        write(chosen.write, chosen.count)
        return
    model = ReplacementModel.from_pretrained("demo-chat")
    began, cpu = time.time(), time.process_time()

    def say(line: str) -> None:
        print(f"[{time.time() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU] {line}", flush=True)

    harmless = records("harmless", chosen.count)
    for removal in ("mean", "zero"):
        found = refusal(model, records("refused", chosen.count), harmless, removal=removal)
        say(f"refusal, removed to {removal}: {found.first_line}")
        at = found.settings["counts"].index(found.settings["named"])
        steered = ", ".join(f"{points[at].refused.value:.1%} by {by}" for by, points in found.added.items())
        say(f"refusal, {found.settings['named']} features added to harmless requests: refused {steered}")
    pairs = conversations("jailbreak", count=chosen.count)
    plain = [Record(str(i), [{"role": "user", "content": one.labels["plain"]}]) for i, one in enumerate(pairs)]
    undone = jailbreak(model, plain, [record(i, one) for i, one in enumerate(pairs)])
    say(f"jailbreak: {undone.report.first_line}")
    told = reasoning(
        model, [*records("think", chosen.count), *records("explain", chosen.count)], entities=demo_entities("demo-chat")
    )
    say(f"reasoning: {told.first_line}; AUROC {told.auroc}; mass and effect of steps {told.correlation}")
    hinted = reasoning(model, records("hint", chosen.count), entities=demo_entities("demo-chat"))
    say(f"hints: {hinted.first_line}")


if __name__ == "__main__":
    sys.exit(main())
