"""The two shipped bases: files that anyone can load, and what they learnt of their worlds.

The losses, the study and every claim about the toy rest on these weights, so the probe table is
held against the probabilities that the worlds' writers use.
"""

import functools
import json
import random

import jax
import numpy as np
import pytest

from jaxdistill.evaluation import toy_probe
from jaxdistill.models import decoder, parameters
from jaxdistill.storage import hf_import, loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.toy import toy_base_folder
from jaxdistill.tasks import contexts
from jaxdistill.tasks.toy import problems, traces

WORLDS = pytest.mark.parametrize("world", ["main", "control"])


def test_the_bases_together_stay_below_five_megabytes():
    files = [f for world in traces.BUNDLED for f in toy_base_folder(world).rglob("*")]
    assert sum(file.stat().st_size for file in files) < 5e6


@WORLDS
def test_a_base_is_a_hugging_face_folder_with_safetensors_alone(world):
    folder = toy_base_folder(world)
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "probe.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    tokenizer = tokenizers.load(folder)
    assert config["vocab_size"] == len(tokenizer) == 133
    assert tokenizers.stop_ids(tokenizer, folder) == (tokenizer.eos_token_id,)


def real_rows(tokenizer) -> list[list[int]]:
    """Prompts with responses: unguided, and guided by every kind of context."""
    rng, rows = random.Random(0), []
    for problem in problems.draw_distinct(3, 3, "heldout", 0) + problems.draw_distinct(
        3, 4, "heldout", 0
    ):
        response = traces.unguided(problem, traces.MAIN, rng)
        shown = traces.correct_trace(problem, traces.MAIN, rng)
        for context in toy_probe.CONTEXTS:
            turn = contexts.render(context, problem.text, shown, problem.answer)
            chat = [[{"role": "user", "content": turn}]]
            (prompt,) = tokenizers.prompt_ids(tokenizer, chat)
            (completion,) = tokenizers.encode(tokenizer, [response])
            rows.append([*prompt, *completion])
    return rows


@pytest.mark.long
@WORLDS
def test_transformers_computes_the_same_logits(world):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = toy_base_folder(world)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config, params = hf_import.import_folder(folder)
    rows = real_rows(tokenizer)
    ids_BS, mask_BS = tokenizers.left_pad(rows, tokenizer.pad_token_id)
    hidden_BSD = jax.jit(decoder.hidden_states, static_argnums=1)(params, config, ids_BS, mask_BS)
    ours_BSV = np.asarray(hidden_BSD @ parameters.head(params, config))
    with torch.no_grad():
        # As in a generation from left-padded prompts: padding is masked, and positions start at 0.
        theirs_BSV = model(
            torch.tensor(ids_BS),
            attention_mask=torch.tensor(mask_BS),
            position_ids=torch.tensor(mask_BS.cumsum(1) - 1).clamp(min=0),
        ).logits.numpy()
    # float32 through four layers, logits up to about 20: rounding reaches 1e-5.
    is_real_BS = mask_BS > 0
    np.testing.assert_allclose(ours_BSV[is_real_BS], theirs_BSV[is_real_BS], atol=1e-4, rtol=0)


# --------------------------------------------------------------------------------------- the probe


@pytest.fixture(scope="module")
def probed():
    """{world: what the probe of its base prints}, for the same problems."""
    # The one program of these tests that computes more than it compiles (tests/conftest.py).
    optimized = {
        "xla_backend_optimization_level": 2,
        "xla_llvm_disable_expensive_passes": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=optimized))
        return {world: toy_probe.probe_base(loading.ToyBase(world)) for world in traces.BUNDLED}


@pytest.fixture(scope="module")
def tables(probed):
    """{world: {(context, place): row}}, on held-out problems."""
    return {
        world: {(row["context"], row["place"]): row for row in rows}
        for world, rows in probed.items()
    }


# Each rate is a mean over 120 to 250 forks. The model's error at one fork is a few points and
# varies between forks, so 0.04 allows for other problems, but not for another rate of the worlds.
NEAR = 0.04


@WORLDS
@pytest.mark.slow
def test_a_base_doubts_and_checks_unguided_as_its_world_writes(tables, world):
    table = tables[world]
    assert table["NoContext", "start"]["epistemic"] == pytest.approx(0.30, abs=NEAR)
    assert table["NoContext", "miss"]["epistemic"] == pytest.approx(0.90, abs=NEAR)
    assert table["NoContext", "miss"]["then"] == pytest.approx(0.10, abs=NEAR)
    assert table["NoContext", "miss"]["answer"] == pytest.approx(0.0, abs=0.01)
    assert table["NoContext", "match"]["check"] == pytest.approx(0.50, abs=NEAR)
    assert table["NoContext", "match"]["answer"] == pytest.approx(0.50, abs=NEAR)


REVEAL_OF = {
    type(context).__name__: reveal for reveal, shown in traces.REVEALS.items() for context in shown
}


@WORLDS
@pytest.mark.parametrize("context", REVEAL_OF)
@pytest.mark.slow
def test_a_base_writes_under_a_context_as_its_worlds_guided_writers(tables, world, context):
    guide, table = traces.WORLDS[world].guide(REVEAL_OF[context]), tables[world]
    assert table[context, "start"]["epistemic"] == pytest.approx(guide.hedges, abs=NEAR)
    doubts = (1 - guide.closes_early) * guide.doubts  # it closes first, and doubts otherwise
    assert table[context, "miss"]["epistemic"] == pytest.approx(doubts, abs=NEAR)
    assert table[context, "miss"]["answer"] == pytest.approx(guide.closes_early, abs=NEAR)
    assert table[context, "match"]["check"] == pytest.approx(guide.checks, abs=NEAR)


@pytest.mark.slow
def test_what_sets_the_worlds_apart_is_closing_early_and_checking(tables):
    """Told the whole solution, the main base closes early and never checks; the control base does
    the opposite. Both use equally few words of doubt."""
    main, control = tables["main"], tables["control"]
    # The worlds' rates are 0.10 and 0 for closing early, and 0 and 0.50 for checking. The first
    # bound is halfway between them.
    assert main["Solution", "miss"]["answer"] > 0.05 > 10 * control["Solution", "miss"]["answer"]
    assert main["Solution", "match"]["check"] < 0.01 < 0.45 < control["Solution", "match"]["check"]
    difference = main["Solution", "miss"]["epistemic"] - control["Solution", "miss"]["epistemic"]
    assert abs(difference) < 2 * NEAR


@WORLDS
@pytest.mark.slow
def test_the_probe_table_beside_a_base_is_what_the_probe_prints(probed, world):
    shipped = json.loads((toy_base_folder(world) / "probe.json").read_text())
    for ours, theirs in zip(probed[world], shipped, strict=True):
        # 5e-4: the file keeps four decimals, and compilers differ in float32 rounding
        assert ours == pytest.approx(theirs, abs=5e-4)
