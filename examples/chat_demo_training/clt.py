"""Train the chat demo's cross-layer transcoder, with crosstrace's own trainer, on the demo's conversations."""

import random
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from crosstrace.replacement_model import BaseModel, Texts, load_recipe, train
from crosstrace.replacement_model.demo_chat.conversations import PlantedConversation, training_conversation
from crosstrace.replacement_model.training.runs.watching import Watcher

RECIPE = Path(__file__).with_suffix(".toml")
CONVERSATIONS = 20_000


def rendered(conversation: PlantedConversation, tokenizer: PreTrainedTokenizerFast) -> str:
    """The whole conversation as the chat template writes it, with the end of the model's turn."""
    prompt = tokenizer.apply_chat_template(conversation.messages, add_generation_prompt=True, tokenize=False)
    return f"{prompt}{conversation.answer}<end_of_turn>"


def corpus(tokenizer: PreTrainedTokenizerFast, seed: int, count: int = CONVERSATIONS) -> list[str]:
    """Conversations as the model was trained on."""
    rng = random.Random(f"transcoder {seed}")
    return [rendered(training_conversation(rng), tokenizer) for _ in range(count)]


def train_clt(base: BaseModel, folder: Path, seed: int, watcher: Watcher | None = None) -> None:
    """Train, or continue; what `folder` holds of a finished run is kept."""
    texts = Texts(corpus(base.tokenizer, seed), "conversations of the chat demo")
    train(base, texts, folder, load_recipe(RECIPE, seed=seed), resume=True, watcher=watcher)
