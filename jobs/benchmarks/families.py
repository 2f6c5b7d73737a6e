"""Tiny random models of many families, with weights so large that attention matters, in the cases that were silent.

At an init of 0.02 attention hardly moves the loss, so a test with such weights proves little.
"""

from __future__ import annotations

import math
from typing import Any

import torch

NOISY = {  # every name by which a family randomizes its training; each takes those that its configuration has
    "attention_dropout": 0.1, "hidden_dropout": 0.1, "residual_dropout": 0.1, "activation_dropout": 0.1, "dropout": 0.1,
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "layerdrop": 0.5, "router_jitter_noise": 0.1,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "ffn_dropout": 0.1, "emb_pdrop": 0.1,
}  # fmt: skip
SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "d_model": 32, "n_embd": 32, "embedding_size": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 64, "ffn_dim": 64, "n_inner": 64, "d_ff": 64, "dff": 64, "ffn_hidden_size": 64,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "n_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256, "rotary_dim": 4,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96,
}  # fmt: skip
LATENT = {"num_key_value_heads": 4, "head_dim": 8}  # families whose keys are made of a latent have one a head

TREE, SEPARATE, REFUSED = "tree", "separate", "refused"
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {  # name: family, its settings, what is found of it
    # noise that used to stay on
    "seed_oss": ("seed_oss", {}, TREE),
    "phimoe-jitter": ("phimoe", {}, REFUSED),
    "mixtral-jitter": ("mixtral", {}, TREE),
    "opt-layerdrop": ("opt", {}, TREE),
    "biogpt-layerdrop": ("biogpt", {}, TREE),
    "gpt2": ("gpt2", {}, TREE),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 64}, SEPARATE),
    "gpt_bigcode": ("gpt_bigcode", {}, TREE),
    "falcon-alibi": ("falcon", {"alibi": True}, SEPARATE),
    "bloom": ("bloom", {}, SEPARATE),
    "mpt": ("mpt", {}, SEPARATE),
    "persimmon": ("persimmon", {}, TREE),
    "phi": ("phi", {}, TREE),
    "starcoder2": ("starcoder2", {}, TREE),
    "ctrl": ("ctrl", {}, TREE),
    # gradients that are wrong where hidden states are right
    "doge": ("doge", {}, SEPARATE),
    # padding, selection, windows
    "deepseek_v32": ("deepseek_v32", {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, **LATENT}, REFUSED),
    "deepseek_v3": ("deepseek_v3", LATENT, TREE),
    "deepseek_v2": ("deepseek_v2", LATENT, TREE),
    "mistral-window": ("mistral", {"sliding_window": 16}, SEPARATE),
    "qwen2": ("qwen2", {}, TREE),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, SEPARATE),
    "qwen3": ("qwen3", {}, TREE),
    "gemma3": ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"]}, TREE),
    "gemma3-window": (
        "gemma3_text", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}, SEPARATE,
    ),
    "gpt_oss-sinks": ("gpt_oss", {"sliding_window": 512}, SEPARATE),
    "phi3": ("phi3", {}, TREE),
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
            },
        },
        REFUSED,
    ),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                                "max_position_embeddings": 64}, TREE),
    "llama-yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, TREE),
    # a base model that is the model itself
    "llama4": ("llama4_text", {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 512,
                               "interleave_moe_layer_step": 2, "intermediate_size_mlp": 64}, TREE),
    # logits that are capped or scaled after the head, also where they are small
    "gemma2-softcap": ("gemma2", {"layer_types": ["sliding_attention", "full_attention"]}, REFUSED),
    "cohere-scale": ("cohere", {}, REFUSED),
    "gemma2-attention-cap": ("gemma2", {"final_logit_softcapping": None}, SEPARATE),
    "cohere": ("cohere", {"logit_scale": 1.0}, TREE),
    "granite": ("granite", {}, TREE),
    "granite-scale": ("granite", {"logits_scaling": 8.0}, REFUSED),
    # not causal, not attention, and the common ones
    "bert": ("bert", {}, REFUSED),
    "mamba": ("mamba", {"state_size": 8}, SEPARATE),
    "gemma": ("gemma", {}, TREE),
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, TREE),
    "gptj": ("gptj", {}, TREE),
    "gpt_neox": ("gpt_neox", {}, TREE),
    "codegen": ("codegen", {}, SEPARATE),
    "olmo2": ("olmo2", {}, TREE),
    "olmoe": ("olmoe", {}, TREE),
    "qwen3_moe": ("qwen3_moe", {"mlp_only_layers": []}, TREE),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}, TREE),
    "stablelm": ("stablelm", {}, TREE),
    "glm4": ("glm4", {}, TREE),
    "helium": ("helium", {}, TREE),
    "minimax": ("minimax", {}, SEPARATE),
    "jetmoe": ("jetmoe", {}, TREE),
    "aria": ("aria_text", {}, TREE),  # whose `moe_topk` is no window
}  # fmt: skip


def family_model(family: str, **settings: Any) -> Any:
    """A causal LM of 2 layers and width 32 in its noisiest configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = type(AutoConfig.for_model(family).get_text_config(decoder=True))
    known = {*kind().to_dict(), *kind.attribute_map}
    wanted = {name: value for name, value in (SHAPE | NOISY).items() if name in known} | settings
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**wanted))
    return scaled_up(model)


@torch.no_grad()
def scaled_up(model: Any) -> Any:
    """The same model with weights of about 1 a row."""
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim >= 2:
            p.copy_(noise * (0.7 if "emb" in name or "wte" in name else 1.2 / math.sqrt(p.shape[-1])))
        else:
            p.add_(0.1 * noise)
    return model
