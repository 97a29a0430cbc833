"""Sizes for a tiny model of each family: what a configuration and the configurations inside it are given."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig

# sizes by the names that configurations give them; what a family lacks is left out
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "encoder_hidden_size", "decoder_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("moe_intermediate_size", "intermediate_size_mlp", "shared_intermediate_size"), 48),
    "ffn_hidden_size": 48,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "rotary_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size"), 259),
    "qk_rope_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16, "n_group": 1, "topk_group": 1,
    "layer_types": None, "mlp_layer_types": None, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
    "decoder_start_token_id": 0, "initializer_range": 0.3, "init_std": 0.3, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "hidden_dropout": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_rate": 0.0, "is_decoder": True,
    "embed_dim": 32, "depth": 2, "patch_size": 4, "num_channels": 3, "image_size": 16, "word_embed_proj_dim": 32,
    "image_token_id": 250, "image_token_index": 250, "video_token_id": 251, "audio_token_id": 252,
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "attention_window_size"), 32),
    "vocab_size_per_layer_input": 259, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_SECTIONS = {**_ROPE, "mrope_section": [1, 1, 2]}
_MROPE = {"rope_parameters": _SECTIONS}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "shared_expert_intermediate_size": 48,
}  # fmt: skip
_KDA = {"layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 8, "linear_num_heads": 4}
_VQ = {
    "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 32,
    "num_embeddings": 16, "codebook_size": 16,
}  # fmt: skip
_CONFORMER = {
    "hidden_dim": 32, "dim_head": 8, "input_dim": 16, "context_size": 20, "max_pos_emb": 32, "output_dim": 8,
}  # fmt: skip
_ADAPTED = {"adapter_in_dim": 32, "adapter_out_dim": 32}
# sizes that must fit others of the same configuration, by its model type
OF_TYPE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {**_KDA, "num_expert_group": 1, "mlp_layer_types": ["dense", "sparse"]},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "blt_local_decoder": {"hidden_size_global": 32},
    "blt_local_encoder": {"hidden_size_global": 32},
    "chameleon": {"vocabulary_map": {"<image>": 250}},
    "chameleon_vqgan": _VQ,
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _SECTIONS, "sliding_attention": _SECTIONS},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_ocr2_text": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48},
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1},
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, **_ADAPTED},
    "dots3_note_vision_encoder": {"per_layer_config": {}, "mlp_layer_types": ["dense", "sparse"], **_ADAPTED},
    "emu3": {"vocabulary_map": {"<image>": 250}},
    "emu3_vqgan": _VQ,
    "encoder-decoder": {"decoder": {"add_cross_attention": True, "is_decoder": True}},
    "ernie4_5_vl_moe_text": {**_MROPE, "moe_intermediate_size": [48, 48], "moe_k": 2, "moe_num_experts": 4},
    "fast_vlm": {
        "vision_config": {
            "architecture": "fastvit_mci3", "hidden_size": 256,
            "model_args": {"inference_mode": True, "layers": [1] * 5, "embed_dims": [8, 16, 32, 64, 128]},
        },
    },
    "florence_vision": {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [16, 32], "num_heads": [2, 4], "num_groups": [2, 4],
        "window_size": 4, "projection_dim": 32,
    },
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n": {"vision_config": {"model_args": {"channel_multiplier": 0.0625}}},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "glm46v_text": _MROPE,
    "glm4v_moe_text": {"rope_parameters": {**_SECTIONS, "partial_rotary_factor": 1.0}},
    "glm4v_text": _MROPE,
    "glm5_next_text": {
        **_KDA, "layer_types": ["linear_attention", "indexed_attention"], "mlp_layer_types": ["dense", "sparse"],
        "qk_rope_head_dim": 0, "head_dim": 0, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 16,
    },
    "glm5_next_vision": {"out_hidden_size": 32, "projection_intermediate_size": 48},
    "glm_ocr_text": _MROPE,
    "glm_ocr_vision": {"out_hidden_size": 32},
    "glmga_text": {"rope_parameters": {**_SECTIONS, "partial_rotary_factor": 1.0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {
        "downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1],
        "vision_config": {"hidden_size": 64},
    },
    "granite_docling_vision": {"out_hidden_size": 32, "deepstack_visual_indexes": [0, 1]},
    "granite_speech_encoder": _CONFORMER,
    "granite_speech_plus_encoder": _CONFORMER,
    "granitemoehybrid": {
        "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "layer_types": ["mamba", "attention"],
    },
    "hunyuan_vl_text": _MROPE,
    "idefics2_perceiver": {
        "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4, "resampler_head_dim": 8,
    },
    "inkling2_vision": {"text_hidden_size": 32, "projection_hidden_dim": 32},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "janus_vision_model": {"projection_dim": 32},
    "janus_vqgan": {**_VQ, "num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32},
    "kimi_linear": {**_KDA, "mlp_layer_types": ["dense", "sparse"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention", "sliding_attention"], "num_hidden_layers": 3},
    "longcat_flash": {"expert_ffn_hidden_size": 48, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "mimo_v2_flash": {"head_dim": 24, "num_key_value_heads": 2},
    "mistral4": {"head_dim": 16},
    "molmo2_adapter": {"vision_feature_layer": [1, 0], "text_hidden_size": 32},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "muse_glimmer": {"projector_hidden_size": 32, "out_hidden_size": 32},
    "muse_glimmer_text": {"layer_rope_theta": None},
    "muse_spark": {"projector_hidden_size": 32, "out_hidden_size": 32},
    "muse_spark_audio": {
        "patch_sizes": [4, 2], "hidden_sizes": [16, 32], "depths": [1, 1], "out_hidden_size": 32,
    },
    "muse_spark_text": {"layer_rope_theta": None, "moe_hidden_size": 32},
    "nemotron": {"num_key_value_heads": 4},
    "nemotron3_5_transcribe_word_timestamp": {"blank_token_id": 258},
    "nemotron3_diarization": {"head_config": {"audio_hidden_size": 32}},
    "nemotron_h_omni": {
        "vision_config": {"video_temporal_patch_size": 2, "max_img_size": 32}, "projector_hidden_size": 32,
        "vision_hidden_size": 32,
    },
    "paddleocr_vl_text": _MROPE,
    "paligemma": {"vision_config": {"projection_dim": 32}},
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_pe_core_tiny_patch16_384",
            "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 4, "attn_pool_num_heads": 4},
        },
    },
    "qwen2_5_omni_text": _MROPE,
    "qwen2_5_omni_thinker": {"vision_start_token_id": 253},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl_text": _MROPE,
    "qwen3_5_moe_text": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA,
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 253},
    "qwen4_exp_text": {
        **_DELTA, "hc_lowrank": 8, "ngram_vocab_size_base": 64, "split_ngram_parts": 4,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 32,
        "indexer_compress_ratio": 4, "layer_types": ["linear_attention", "indexed_attention"],
    },
    "recurrent_gemma": {"lru_width": 32, "num_hidden_layers": 3, "attention_window_size": 16},
    "reformer": {
        "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [16, 32], "attention_head_size": 8, "feed_forward_size": 48,
        "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16,
    },
    "step3p5": {
        "sliding_window": 32, "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "t5_gemma_module": {"cross_attention_hidden_size": 32},
    "vibevoice_acoustic_tokenizer_encoder": {"depths": [1, 1], "downsampling_ratios": [2], "num_filters": 8},
    "xlm": {"emb_dim": 32, "causal": True},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 2, "mamba_dt_rank": 4, "mamba_d_state": 8, "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1], "n_mamba_heads": 8,
        "mamba_headdim": 8, "mamba_d_state": 8, "adapter_rank": 4, "use_mamba_kernels": False,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip


def sized(config_class: Any, given: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A configuration of small sizes, its inner configurations too; `given` are settings above the tables'."""
    default = config_class()
    known = default.to_dict()
    taken = {
        name: value
        for name, value in SIZES.items()
        if name in known
        and not (isinstance(known[name], list | tuple) and isinstance(value, int))
        and not (known[name] is None and ("window" in name or "chunk" in name))
    }
    if "num_key_value_heads" in known and known.get("num_key_value_heads") is None:
        taken.pop("num_key_value_heads")
    rope = known.get("rope_parameters") or known.get("rope_scaling")
    if isinstance(rope, dict) and rope.get("mrope_section"):
        taken["rope_parameters"] = {**rope, "mrope_section": [1, 1, 2]}
    above = {**OF_TYPE.get(known.get("model_type") or "", {}), **given}
    for name, part in vars(default).items():
        if isinstance(part, PreTrainedConfig):
            taken[name] = sized(type(part), above.pop(name, {}))
    return config_class(**{**taken, **above})
