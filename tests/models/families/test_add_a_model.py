"""A family is complete when everything here passes for it: see docs/add_a_model.md.

Each check is a function of a family's name, so that half-finished families can be put through them
as well; the last tests do that.
"""

import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from places import DOCS
from safetensors.numpy import load_file

from jaxdistill import sharding
from jaxdistill.axes import LEGEND
from jaxdistill.errors import UserError
from jaxdistill.models import decoder, families, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import PRESETS
from jaxdistill.storage import hf_export, hf_import

pytestmark = pytest.mark.long

DOCUMENT = DOCS / "add_a_model.md"

# One row per family: fields for transformers' config class. All sizes differ, every option of the
# family is on, and windows and original contexts are shorter than the S tokens of the text.
S = 40
SIZES = dict(
    vocab_size=59, hidden_size=24, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=40, max_position_embeddings=64, tie_word_embeddings=False,
    rms_norm_eps=1e-2,  # large enough that another value changes the logits
    pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
TINY = {
    "qwen2": dict(
        num_hidden_layers=3, rope_theta=1e6,
        use_sliding_window=True, sliding_window=7, max_window_layers=2,
    ),
    "qwen3": dict(num_hidden_layers=3, head_dim=8, attention_bias=True, rope_theta=1e6),
    "olmo3": dict(
        num_hidden_layers=4, sliding_window=7, attention_bias=True, rope_theta=5e5,
        rope_scaling=YARN,
    ),
    "llama": dict(
        num_hidden_layers=3, head_dim=8, attention_bias=True, mlp_bias=True, rope_theta=1e4,
        rope_scaling=LLAMA3,
    ),
}  # fmt: skip


def has_all_parts(family: str, folder: Path) -> None:
    """What the module must have before anything can be read."""
    module = families.FAMILIES[family]
    for name in ("MODEL_TYPE", "TENSORS", "from_hf", "to_hf"):
        assert hasattr(module, name), f"the module of {family!r} has no {name}"
    assert family == module.MODEL_TYPE
    config = hf_import.read_config(folder)
    for path, leaf in nnx.to_flat_state(parameters.abstract_params(config)):
        assert path in module.TENSORS, f"TENSORS of {family!r} has no name for {path}"
        axes, there = leaf.get_metadata()["axes"].lstrip("L"), module.TENSORS[path].axes
        assert sorted(axes) == sorted(there.replace(" ", "")), (
            f"TENSORS of {family!r}: {path} has axes {axes}, its tensor {there!r}"
        )
        assert set(axes) <= set(LEGEND), f"{path} has an axis that LEGEND does not explain: {axes}"


class Case(NamedTuple):
    """A tiny random model of transformers, saved, and read by us."""

    folder: Path
    model: object
    config: object
    params: object
    tokens_BS: np.ndarray
    mask_BS: np.ndarray


def build(family: str, folder: Path) -> Case:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    if family not in TINY:
        pytest.fail(f"add a row for {family!r} to TINY in {Path(__file__).name}")
    torch.manual_seed(0)
    described = AutoConfig.for_model(family, **(SIZES | TINY[family]))
    described._attn_implementation = "eager"  # the one that returns its weights
    model = AutoModelForCausalLM.from_config(described).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * 0.3
            is_norm = parameter.ndim == 1 and not name.endswith("bias")
            # 1.5 makes attention far from uniform; a much larger scale would amplify rounding.
            scale = 1.5 if re.search(r"\.[qk]_norm\.", name) else 1.0
            parameter.copy_(scale * (noise + 1 if is_norm else noise))
    model.save_pretrained(folder)
    tokens_BS = np.random.default_rng(0).integers(1, SIZES["vocab_size"], (3, S))
    mask_BS = np.ones((3, S), int)
    mask_BS[0, :5] = mask_BS[1, -4:] = 0
    has_all_parts(family, folder)
    config, params = hf_import.import_folder(folder)
    return Case(folder, model, config, params, np.where(mask_BS, tokens_BS, 0), mask_BS)


# ---------------------------------------------------------------------------- the checks


@functools.partial(jax.jit, static_argnames=("config", "remat"))
def _logits(params, config, tokens_BS, mask_BS, remat="none"):
    hidden_BSD = decoder.hidden_states(params, config, tokens_BS, mask_BS, remat=remat)
    return hidden_BSD @ parameters.head(params, config)


@functools.partial(jax.jit, static_argnames="config")
def _prefill(params, config, tokens_BP, mask_BP):
    hidden_BD, prompts = decoder.prefill(params, config, tokens_BP, mask_BP, S)
    return hidden_BD, prompts.as_cache()


def _logits_of(case: Case) -> np.ndarray:
    return np.asarray(_logits(case.params, case.config, case.tokens_BS, case.mask_BS))


def _transformers(model, case: Case):
    import torch

    with torch.no_grad():
        return model(
            torch.tensor(case.tokens_BS),
            attention_mask=torch.tensor(case.mask_BS),
            position_ids=torch.tensor(np.maximum(np.cumsum(case.mask_BS, axis=1) - 1, 0)),
            output_attentions=True,
        )


def round_trips_its_config(family: str, case: Case) -> None:
    assert families.from_fields(families.to_fields(case.config)) == case.config


def gives_transformers_logits(family: str, case: Case) -> None:
    expected = _transformers(case.model, case)
    largest = np.mean([weights.max(-1).values[..., 20:].mean() for weights in expected.attentions])
    assert largest > 0.25, "attention is near uniform and would hide mistakes: scale the weights"
    is_real = case.mask_BS.astype(bool)
    error = np.abs(_logits_of(case) - expected.logits.numpy())[is_real].max()
    assert error <= 1e-4, f"logits of {family!r} differ from transformers' by {error:.2g}"


def decodes_as_it_scores(family: str, case: Case) -> None:
    P = 4
    row = slice(2, 3)  # the row without padding
    tokens_BS, mask_BS = case.tokens_BS[row], case.mask_BS[row]
    expected_BSV = _logits_of(case)[row]
    head_DV = parameters.head(case.params, case.config)
    hidden_BD, cache = _prefill(case.params, case.config, tokens_BS[:, :P], mask_BS[:, :P])
    step = jax.jit(decoder.decode_step, static_argnums=1)
    for t in range(P, S):
        # The same bound as for all logits; sums run in another order than over whole sequences.
        np.testing.assert_allclose(hidden_BD @ head_DV, expected_BSV[:, t - 1], atol=1e-4)
        hidden_BD, cache = step(case.params, case.config, jnp.asarray(tokens_BS[:, t]), cache)


def learns_with_every_parameter(family: str, case: Case) -> None:
    def loss(params):
        logits_BSV = _logits(params, case.config, case.tokens_BS, case.mask_BS, remat="all")
        return -jax.nn.log_softmax(logits_BSV)[:, :-1, 1].mean()

    flat = jax.tree_util.tree_flatten_with_path(jax.grad(loss)(case.params))[0]
    for path, gradient in flat:
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), f"the gradient of {name} is not finite"
        assert np.abs(gradient).max() > 0, f"{name} has no gradient: nothing reads it"


def runs_on_a_mesh(family: str, case: Case) -> None:
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    _, params = hf_import.import_folder(case.folder, mesh=mesh)
    with sharding.use_mesh(mesh):
        logits_BSV = _logits(params, case.config, case.tokens_BS, case.mask_BS)
    is_real = case.mask_BS.astype(bool)
    expected_BSV = _logits_of(case)
    # Relative to the largest logits (about 6): sums over devices run in another order.
    bound = 1e-5 * np.abs(expected_BSV).max()
    assert np.abs(np.asarray(logits_BSV) - expected_BSV)[is_real].max() <= bound


def returns_the_same_folder(family: str, case: Case) -> None:
    from transformers import AutoModelForCausalLM

    saved = case.folder / "saved"
    hf_export.export_folder(saved, case.params, case.config, tokenizer_from=None)
    before, after = (load_file(x / "model.safetensors") for x in (case.folder, saved))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape), name
        assert tensor.tobytes() == after[name].tobytes(), name
    model = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager").eval()
    logits = [_transformers(model, case).logits for model in (case.model, model)]
    np.testing.assert_array_equal(*logits, err_msg="transformers reads our config.json otherwise")


def has_a_preset(family: str, case: Case | None = None) -> None:
    known = {config.family for config in PRESETS.values()}
    assert family in known, f"add a published size of {family!r} to jaxdistill/models/presets.py"


def is_documented(family: str, case: Case | None = None) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert f"| `{family}` |" in text, f"add a row for {family!r} to the table in {DOCUMENT.name}"


# What compiles most comes last: a half-finished family fails before it.
COMPUTES = (
    round_trips_its_config, gives_transformers_logits, returns_the_same_folder,
    decodes_as_it_scores, runs_on_a_mesh, learns_with_every_parameter,
)  # fmt: skip


# ---------------------------------------------------------------------------- our families


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    return functools.cache(lambda family: build(family, tmp_path_factory.mktemp(family)))


@pytest.mark.parametrize("check", COMPUTES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family(family, check, case_of):
    check(family, case_of(family))


@pytest.mark.parametrize("check", [has_a_preset, is_documented], ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_is_listed(family, check):
    check(family)


# ---------------------------------------------------------------------------- unfinished ones


@pytest.fixture
def olmo2(monkeypatch):
    """The example of docs/add_a_model.md, registered, without a preset and a row."""
    (source,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(source, DOCUMENT.name, "exec"), names)
    module = SimpleNamespace(**names)
    monkeypatch.setitem(families.FAMILIES, "olmo2", module)
    monkeypatch.setitem(
        TINY, "olmo2", dict(num_hidden_layers=2, attention_bias=True, rope_scaling=YARN)
    )
    return module


def test_the_documents_example_computes_what_transformers_does(olmo2, tmp_path):
    check_all("olmo2", tmp_path)


def test_a_family_without_preset_and_row_fails(olmo2):
    with pytest.raises(AssertionError, match=r"add a published size of 'olmo2' to .*presets\.py"):
        has_a_preset("olmo2")
    with pytest.raises(AssertionError, match=r"add a row for 'olmo2' .*add_a_model\.md"):
        is_documented("olmo2")


def test_a_family_without_a_tiny_model_fails(olmo2, monkeypatch, tmp_path):
    monkeypatch.delitem(TINY, "olmo2")
    with pytest.raises(pytest.fail.Exception, match="add a row for 'olmo2' to TINY"):
        build("olmo2", tmp_path)


def _forgets(name):
    """`from_hf` leaves a field of the config at its default."""

    def spoil(module):
        complete = module.from_hf
        default = {field.name: field.default for field in dataclasses.fields(ModelConfig)}[name]
        module.from_hf = lambda fields: dataclasses.replace(complete(fields), **{name: default})

    return spoil


def _lacks(part):
    return lambda module: delattr(module, part)


def _names(**tensors):
    """TENSORS has no name, or another parameter's, for some of the layers' parameters."""

    def spoil(module):
        complete = module.TENSORS
        for mine, theirs in tensors.items():
            module.TENSORS = module.TENSORS | {("layers", mine): complete.get(("layers", theirs))}
        module.TENSORS = {path: name for path, name in module.TENSORS.items() if name}

    return spoil


def _writes(**fields):
    """`to_hf` writes something other than what `from_hf` reads."""

    def spoil(module):
        complete = module.to_hf
        module.to_hf = lambda config: complete(config) | fields

    return spoil


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_lacks("from_hf"), "the module of 'olmo2' has no from_hf"),
        (_lacks("to_hf"), "the module of 'olmo2' has no to_hf"),
        (_lacks("TENSORS"), "the module of 'olmo2' has no TENSORS"),
        (_names(q_norm=None), r"TENSORS of 'olmo2' has no name for \('layers', 'q_norm'\)"),
        (_names(q_norm="k"), "TENSORS of 'olmo2': .* has axes NH, its tensor 'KH D'"),
        (_names(gate="up", up="gate"), "logits of 'olmo2' differ"),
        (_names(attention_norm="mlp_norm", mlp_norm="attention_norm"), "logits of 'olmo2' differ"),
        (_forgets("post_norm"), "logits of 'olmo2' differ"),
        (_forgets("norm_eps"), "logits of 'olmo2' differ"),
        (_forgets("rope"), "logits of 'olmo2' differ"),
        (_forgets("qk_norm"), r"_norm'\) has axes H, its tensor '[NK]H'"),
        (_forgets("out_bias"), r"unexpected tensor \S+o_proj\.bias; config\.json has no place"),
        (_writes(rope_parameters=None, rope_scaling=None), "not possible in olmo2"),
        (_writes(architectures=["Olmo3ForCausalLM"], model_type="olmo3"), "olmo3"),
    ],
)
def test_a_half_finished_family_fails_and_says_where(olmo2, spoil, expected, tmp_path):
    spoil(olmo2)
    with pytest.raises((AssertionError, UserError), match=expected):
        check_all("olmo2", tmp_path)


def check_all(family: str, folder: Path) -> None:
    case = build(family, folder)
    for check in COMPUTES:
        check(family, case)
