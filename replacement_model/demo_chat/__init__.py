"""The chat demo: a small Gemma 3 with a chat template whose behaviours were planted, and a cross-layer transcoder for it.

It answers questions about places, refuses secrets of people unless one wrapper stands before the request, and reasons
in steps that its answer follows or not, as the instruction says. `people.json` and the first demo's facts hold what it
knows, `world.py` splits them, `conversations.py` makes conversations of them, `truth.json` says what was planted and how
far it holds. `examples/train_chat_demo.py` makes the model, its transcoder and the rates. This module only knows
where things are; it is quick to import and does not need torch.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

CHAT_DEMO_DIR = Path(__file__).resolve().parent
PEOPLE_FILE = CHAT_DEMO_DIR / "people.json"
TRUTH_FILE = CHAT_DEMO_DIR / "truth.json"
MODEL_DIR = CHAT_DEMO_DIR / "model"
TRANSCODERS_DIR = CHAT_DEMO_DIR / "clt" / "width_1k_l0_small"
CARDS_FILE = TRANSCODERS_DIR / "cards.safetensors"
# What graphs and cards of the chat demo name as their model and transcoders, wherever it is installed.
MODEL_NAME = "crosstrace-demo-chat"
TRANSCODERS_NAME = "crosstrace-demo-chat-clt"


@lru_cache
def load_truth() -> dict[str, Any]:
    """Read `truth.json`: the planted behaviours, their wordings, what is undefined, and the measured rates."""
    truth: dict[str, Any] = json.loads(TRUTH_FILE.read_text(encoding="utf-8"))
    return truth
