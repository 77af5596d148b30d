"""Without a word about the mesh all visible devices are used, with the results of one."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from command_line import call
from tiny_run import tiny

import jaxdistill as jd
from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.models import attention, quantized_weights
from jaxdistill.models.presets import preset
from jaxdistill.run import devices
from jaxdistill.run.devices import start_line
from jaxdistill.run.loop import run
from jaxdistill.run.programs import meshes_of
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks.questions import Question
from jaxdistill.training.compute import Compute
from jaxdistill.training.schedules import OneStepOff
from jaxdistill.training.timing import TIMINGS

pytestmark = pytest.mark.long

PROMPTS = ["20 15 1 -> 34", "9 4 2 -> 7", "3 8 6 -> 30"]  # not one for each device


def greedy(model):
    """Rollouts in float32, as `jaxdistill sample --temperature 0` draws them."""
    policy = Policy(
        config=model.config,
        params=model.params,
        tokenizer=model.tokenizer,
        stop_ids=model.stop_ids,
        tokenizer_folder=model.folder,
    )
    questions = [Question(f"prompt:{i}", prompt, "") for i, prompt in enumerate(PROMPTS)]
    return Engine(policy, mesh=model.mesh, dtype="float32").rollouts(
        model.params,
        questions,
        Sampling(temperature=0, max_new_tokens=64),
        1,
        Address(seed=0, purpose="sample"),
    )


def top_two_gap(model, rollouts, row, index):
    """Between the two largest logits of a row's token `index`."""
    prompt = rollouts.prompt_ids_BP[row][rollouts.prompt_mask_BP[row] > 0]
    tokens = np.concatenate([prompt, rollouts.tokens_BT[row, :index]])
    low, high = np.sort(np.asarray(model.logits(tokens[None], dtype="float32")[0, -1]))[-2:]
    return high - low


@pytest.mark.slow
def test_all_eight_devices_sample_greedily_what_one_does():
    everywhere, alone = jd.load("toy:main"), jd.load("toy:main", mesh="fsdp=1")
    leaves = jax.tree.leaves(everywhere.params)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in leaves)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert held < sum(leaf.nbytes for leaf in leaves) / 7  # an eighth, and the norms
    found, expected = greedy(everywhere), greedy(alone)
    assert found.lengths_B.min() > 5
    for row, (ours, theirs) in enumerate(zip(found.tokens_BT, expected.tokens_BT, strict=True)):
        if (differs := ours != theirs).any():
            # Sums in another order may choose the other one of two equal tokens.
            assert top_two_gap(alone, expected, row, int(differs.argmax())) < 1e-4
    # The command uses them too, says so and prints these very responses.
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    flags = ["--temperature", 0, "--max-new-tokens", 64, "--dtype", "float32"]
    code, out, err = call("sample", "toy:main", *prompts, *flags)
    assert code == 0
    assert err.startswith("8 of 8 devices (cpu); mesh data=1, fsdp=8, tensor=1; float32; ")
    assert [out.count(response) > 0 for response in found.responses] == [True] * 3


def metrics_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_with_all_devices_as_with_the_one_that_it_began_on(tmp_path, capsys):
    """Four rows a step: four of eight devices have an empty one."""

    def upto(steps, mesh):
        return tiny(steps=steps, mesh=mesh, evaluation=Evaluation(), export=False, rollouts_every=0)

    run(upto(1, MeshConfig(fsdp=1)), tmp_path / "alone", quiet=True)
    shutil.copytree(tmp_path / "alone", tmp_path / "everywhere")
    assert "devices" not in capsys.readouterr().err, "quiet"
    for name, mesh in (("alone", MeshConfig(fsdp=1)), ("everywhere", MeshConfig())):
        run(upto(3, mesh), tmp_path / name, resume=True)
    _, *lines = [line for line in capsys.readouterr().err.splitlines() if "of 8 devices" in line]
    assert lines == [
        "8 of 8 devices (cpu); mesh data=1, fsdp=8, tensor=1; float32; attention xla; "
        "rematerialisation none; memory of the host; 4 rows at a time over 8 devices, with 4 empty "
        "rows"
    ]
    found, expected = metrics_of(tmp_path / "everywhere"), metrics_of(tmp_path / "alone")
    assert [line["step"] for line in found] == [1, 2, 3]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - set(TIMINGS):
            # float32 sums in another order, after updates that Adam divides by their size.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), name


def test_the_line_says_what_auto_chooses(monkeypatch):
    model = preset("Qwen3-1.7B")
    mesh = sharding.make_mesh("data=2,tensor=2")
    line = start_line(mesh, model, Compute())
    assert line == (
        "8 of 8 devices (cpu); mesh data=2, fsdp=2, tensor=2; float32; attention xla; memory of "
        "the host"
    )
    monkeypatch.setattr(devices, "memory_limit", lambda: 139 * 2**30)
    compute = Compute(dtype="bfloat16", micro_batches=2)
    line = start_line(mesh, model, compute, rows=20)
    assert line.partition("; bfloat16; ")[2] == (
        "attention xla; rematerialisation auto (the least that fits); 139 GiB per device; "
        "10 rows at a time over 4 devices, with 2 empty rows"
    )
    packed = dataclasses.replace(compute, micro_batches=1, pack=64, remat="mlp")
    assert start_line(mesh, model, packed, rows=20).endswith("mlp; 139 GiB per device")
    with pytest.raises(UserError, match="attention 'cudnn' needs an NVIDIA GPU"):
        start_line(mesh, model, Compute(attention="cudnn"))


def test_the_line_says_what_decode_steps_read_in_8_bits_and_by_what(monkeypatch):
    """A format that no kernel reads may be slower than none."""
    mesh = sharding.make_mesh("data=8,fsdp=1")

    def said(model="Qwen3-1.7B", weights="int8_dynamic", cache="int8", mesh=mesh, **compute):
        compute = Compute(dtype="bfloat16", weights_dtype=weights, cache_dtype=cache, **compute)
        line = start_line(mesh, preset(model), compute)
        return line.split("; attention ")[1].split("; ")[1:-1]

    assert said(weights="auto", cache="auto") == []
    weights = "int8_dynamic weights in decode steps, read by"
    no_gpu = [f"{weights} XLA (kernels need a Hopper GPU)", "int8 cache, read by XLA"]
    assert said() == no_gpu
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    monkeypatch.setattr(quantized_weights, "platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_compute_capability", lambda: 9.0)
    assert said() == [f"{weights} kernels", "int8 cache, read by a kernel"]
    assert said(attention="xla")[1] == "int8 cache, read by XLA"
    for model, reason in (
        ("SmolLM2-135M", "multiples of 128, not hidden_size=576, num_heads * head_dim=576, "
                         "(num_heads + 2 * num_kv_heads) * head_dim=960"),
        ("Olmo-3-7B", "a family without norms or biases after products"),
    ):  # fmt: skip
        assert said(model)[0] == f"{weights} XLA (kernels need {reason})"
    tensor = sharding.make_mesh("data=4,fsdp=1,tensor=2")
    assert said(mesh=tensor)[0] == f"{weights} XLA (kernels need tensor=1)"
    (float8,) = said(weights="float8_dynamic", cache="auto")
    assert float8 == "float8_dynamic weights in decode steps, read by XLA (kernels need int8)"


def test_the_lines_of_runs_and_studies_name_the_devices_that_draw():
    """A mesh for the devices that are left need not fit all of them."""
    experience = dataclasses.replace(
        tiny().experience, schedule=OneStepOff(sampler_devices=5, sampler_tensor=5)
    )
    config = tiny(mesh=MeshConfig(tensor=3, fsdp=1), experience=experience)
    expected = (
        "3 of 8 devices (cpu); mesh data=1, fsdp=1, tensor=3; float32; "
        "5 others draw rollouts one step ahead, in mesh data=1, fsdp=1, tensor=5"
    )
    assert devices.study_line([config], 1) == f"1 run(s); {expected}"
    mesh, sampler = meshes_of(config)
    line = start_line(mesh, preset("Qwen3-1.7B"), Compute(), sampler=sampler)
    assert line.startswith(f"{expected}; attention xla")


def test_a_study_takes_the_mesh_for_its_base_too():
    from jaxdistill.cli.train import mesh_override
    from jaxdistill.configs.toy.toy_study import toy_study
    from jaxdistill.run.study import with_overrides

    options = type("Options", (), {"mesh": "data=2,fsdp=1"})
    chosen = with_overrides(toy_study(), mesh_override(options))
    assert {arm.config.mesh for arm in chosen.arms} == {MeshConfig(data=2, fsdp=1)}
