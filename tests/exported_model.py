"""A random model, exported as a Hugging Face folder."""

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.storage.hf_files import WEIGHTS

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=3,
    num_heads=8,
    num_kv_heads=8,
    head_dim=8,
    intermediate_size=48,
)


def random_params(config=CONFIG, dtype=np.float32):
    """Normal numbers in every parameter, norms included, so that no two tensors are alike."""
    rng = np.random.default_rng(0)
    abstract = parameters.abstract_params(config, dtype)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), abstract)


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def tensors_of(folder):
    """{name: (dtype, shape, bytes)} of all files, as the safetensors library reads them."""
    files = [load_file(file) for file in folder.glob("*.safetensors")]
    found = {name: value for file in files for name, value in file.items()}
    assert len(found) == sum(map(len, files))
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in found.items()}


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
