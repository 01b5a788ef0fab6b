"""Gemma 3 as a base model: which checkpoints are supported, where their modules are, and what their configs say."""

from __future__ import annotations

from typing import Any

from crosstrace.replacement_model.architectures.description import ModelDescription, ModulePaths

# Architectures named in config.json. Of the second the text model is loaded alone, as the first.
ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")

# First positions without features: `<bos>`, and where a prompt begins as the chat template does, all of its header.
_EXCLUDED_FIRST = 1
_CHAT_HEADER = "<bos><start_of_turn>user\n"
# Variants whose residual stream is not the linear model that is traced.
_NOT_LINEAR = ("final_logit_softcapping", "attention_bias", "use_bidirectional_attention")

Gemma3Description = ModelDescription  # the name before other architectures could be added


def describe(config: Any, architecture: str, source: str, chat: bool) -> ModelDescription:
    """Describe a Gemma 3 model from its `transformers` config.

    Args:
        config: The config of the checkpoint.
        architecture: One of `ARCHITECTURES`.
        source: What the user called the model, for messages.
        chat: Whether the tokenizer has a chat template.

    Raises:
        ValueError: A variant of Gemma 3 whose residual stream is not linear (biases in attention, soft-capped logits,
            bidirectional attention).
    """
    text = getattr(config, "text_config", config)
    for key in _NOT_LINEAR:
        if getattr(text, key, None):
            raise ValueError(
                f"{source}: config has {key}={getattr(text, key)!r}; only Gemma 3 without it can be traced"
            )
    return ModelDescription(
        n_layers=text.num_hidden_layers,
        d_model=text.hidden_size,
        n_heads=text.num_attention_heads,
        n_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        rms_norm_eps=text.rms_norm_eps,
        modules=ModulePaths(
            text_model="model",
            unembedding="lm_head",
            embedding="embed_tokens",
            layers="layers",
            final_norm="norm",
            attention="self_attn",
            input_norm="input_layernorm",
            post_attention_norm="post_attention_layernorm",
            pre_feedforward_norm="pre_feedforward_layernorm",
            post_feedforward_norm="post_feedforward_layernorm",
            value="v_proj",
            output="o_proj",
            mlp="mlp",
            query="q_proj",
            key="k_proj",
            query_norm="q_norm",
            key_norm="k_norm",
        ),
        norm_offset=1.0,
        excluded_first=_EXCLUDED_FIRST,
        chat_header=_CHAT_HEADER if chat else "",
        score_scale=text.query_pre_attn_scalar**-0.5,
        windows=tuple(text.sliding_window if kind == "sliding_attention" else None for kind in text.layer_types),
    )
