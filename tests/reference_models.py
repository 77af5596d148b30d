"""Tiny models of `transformers`, the reference for everything here."""

import numpy as np
import pytest

SIZES = dict(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=512,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
# Beside these: a head of 8 is not hidden_size / num_attention_heads.
OF_FAMILY = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "olmo3": {"num_hidden_layers": 4, "sliding_window": 6},
    "llama": {},
}


@pytest.fixture(scope="session")
def reference():
    """reference(folder, dtype, family, **fields) -> a random model, saved to the folder."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    def build(folder, dtype="float32", family="qwen3", **fields):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **(SIZES | OF_FAMILY[family] | fields))
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Large enough that logits are far from uniform and a wrong norm would show.
                noise = torch.randn_like(parameter) * 0.3
                is_norm = parameter.ndim == 1 and not name.endswith("bias")
                parameter.copy_(noise + 1 if is_norm else noise)
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
