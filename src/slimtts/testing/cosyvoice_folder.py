"""A folder as CosyVoice 2 is published, tiny: llm.pt with every tensor name of Qwen2LM, and Qwen's own folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from slimtts.teachers.cosyvoice2_checkpoint import LLM, QWEN
from slimtts.teachers.cosyvoice2_model import PROMPT_ROWS, ROWS_AFTER_CODES
from slimtts.testing.tokenizers import LETTERS

TEXT_ROWS = 290


def qwen_config(num_layers: int, width: int) -> dict[str, Any]:
    """config.json of the text model; its published head is tied."""
    return {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": width,
        "intermediate_size": width * 3 // 2,
        "num_hidden_layers": num_layers, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": TEXT_ROWS,
        "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 256,
        "max_window_layers": num_layers, "use_sliding_window": False, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }  # fmt: skip


def write_qwen_folder(folder: Path, config: dict[str, Any]) -> None:
    """As CosyVoice-BlankEN: config.json, weights, vocab.json and merges.txt with Qwen's three special tokens."""
    folder.mkdir(parents=True)
    specials = {
        str(256 + i): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
                       "single_word": False}
        for i, token in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    }  # fmt: skip
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": specials, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "unk_token": None, "bos_token": None, "add_prefix_space": False,
    }  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps(LETTERS))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights of the text model")


def write_cosyvoice_folder(folder: Path, num_codes: int, num_layers: int = 4, width: int = 32) -> Path:
    """All of CosyVoice2-0.5B's files that matter here, with random weights; gives the folder back."""
    config = qwen_config(num_layers, width)
    write_qwen_folder(folder / QWEN, config)
    torch.manual_seed(0)
    body = Qwen2ForCausalLM(Qwen2Config(**config))
    state = {f"llm.model.{name}": tensor * (5 if tensor.ndim == 2 else 1) for name, tensor in body.state_dict().items()}
    state["llm.model.lm_head.weight"] = state["llm.model.model.embed_tokens.weight"]
    rows = num_codes + ROWS_AFTER_CODES
    state = {
        "llm_embedding.weight": torch.randn(PROMPT_ROWS, width), **state,
        "llm_decoder.weight": torch.randn(rows, width), "llm_decoder.bias": torch.randn(rows),
        "speech_embedding.weight": torch.randn(rows, width),
    }  # fmt: skip
    torch.save(state, folder / LLM)
    for name in ("cosyvoice2.yaml", "flow.pt", "hift.pt", "llm.text_encoder.fp16.zip"):
        (folder / name).write_text(name)
    (folder / "asset").mkdir()
    (folder / "asset" / "note.txt").write_text("as it is")
    return folder
