"""Tiny Qwen3 models of `transformers`, the reference for everything here."""

import numpy as np
import pytest

SIZES = dict(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,  # not hidden_size / num_attention_heads
    intermediate_size=40,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
)


@pytest.fixture(scope="session")
def reference():
    """reference(folder, **fields) -> a random Qwen3ForCausalLM, saved to the folder."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    def build(folder, dtype="float32", **fields):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(**(SIZES | fields))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Large enough that logits are far from uniform and a wrong norm would show.
                noise = torch.randn_like(parameter) * 0.3
                parameter.copy_(noise + 1 if parameter.ndim == 1 else noise)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        return model

    return build


@pytest.fixture(scope="session")
def reference_logits():
    """reference_logits(model, tokens, mask) -> NumPy [B, S, V], positions counting real tokens."""
    torch = pytest.importorskip("torch")

    def run(model, tokens_BS, mask_BS):
        positions_BS = np.maximum(np.cumsum(mask_BS, axis=1) - 1, 0)
        with torch.no_grad():
            return (
                model(
                    torch.tensor(tokens_BS),
                    attention_mask=torch.tensor(mask_BS),
                    position_ids=torch.tensor(positions_BS),
                )
                .logits.float()
                .numpy()
            )

    return run
