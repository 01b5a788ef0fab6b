"""Another architecture is one description, registered under its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from cases import load_case

from crosstrace.replacement_model import (
    SUPPORTED_ARCHITECTURES,
    ModelDescription,
    ModulePaths,
    ReplacementModel,
    register_architecture,
)
from crosstrace.replacement_model.architectures.registry import describe
from crosstrace.tracer import trace


def test_unsupported_architecture_lists_the_supported_ones():
    config = transformers.LlamaConfig(architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM .*Gemma3ForCausalLM, Gemma3ForConditionalGeneration"):
        describe(config, "some/llama")


def describe_glm4(config: Any, architecture: str, source: str, chat: bool) -> ModelDescription:
    """GLM-4: four norms a layer under other names, gains stored whole, keys rotated in part."""
    return ModelDescription(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        modules=ModulePaths(
            text_model="model",
            unembedding="lm_head",
            embedding="embed_tokens",
            layers="layers",
            final_norm="norm",
            attention="self_attn",
            input_norm="input_layernorm",
            post_attention_norm="post_self_attn_layernorm",
            pre_feedforward_norm="post_attention_layernorm",
            post_feedforward_norm="post_mlp_layernorm",
            value="v_proj",
            output="o_proj",
        ),
    )


@pytest.fixture(scope="module")
def glm4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.Glm4Config(
        num_hidden_layers=5,
        hidden_size=48,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        vocab_size=200,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    transformers.set_seed(0)
    folder = tmp_path_factory.mktemp("glm4")
    transformers.Glm4ForCausalLM(config).save_pretrained(folder)
    return folder


def test_another_architecture_is_traced_once_it_is_registered(glm4):
    transcoders = load_case("clt_plain_gqa").transcoders
    with pytest.raises(
        ValueError, match=r"architecture Glm4ForCausalLM is not supported; supported: Gemma3ForCausalLM"
    ):
        ReplacementModel.from_pretrained(glm4, transcoders, "cpu")
    register_architecture("Glm4ForCausalLM", describe_glm4)
    assert "Glm4ForCausalLM" in SUPPORTED_ARCHITECTURES
    graph = trace(ReplacementModel.from_pretrained(glm4, transcoders, "cpu"), [3, 17, 42, 99, 5, 60])
    assert len(graph.active_features) > 20
    assert graph.completeness_error() < 1e-5


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="architecture Gemma3ForCausalLM is registered already"):
        register_architecture("Gemma3ForCausalLM", describe_glm4)
