"""`jaxdistill plan` by arithmetic: what it says, and that it agrees with what compilers said."""

import dataclasses
import json
import time

import pytest
from command_line import assert_mistake, call

from jaxdistill import sharding
from jaxdistill.config import load_recipe
from jaxdistill.errors import UserError
from jaxdistill.plan import memory, roofline, topologies
from jaxdistill.plan.compiling import Answer
from jaxdistill.plan.lengths import lengths_of
from jaxdistill.plan.plan import How, _At, _sampler, make_plan, start
from jaxdistill.plan.programs import run_of
from jaxdistill.plan.search import screen, smallest_change

GIB = 2**30
ARITHMETIC = How(compiles=False, prompt_tokens=1024)


def planned(student, topology, mesh="fsdp=-1", how=ARITHMETIC, **compute):
    config = load_recipe("sdpo_math", [f"mesh={sharding.parse_mesh(mesh)!r}"], student=student)
    config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, **compute))
    run = start(config, topology, how)
    return run, make_plan(run, how)


# The peaks that libtpu 0.0.42.1 gave for the step of these on 2026-11-29 (docs/tpu_plans.md).
PEAKS = [
    ("Qwen3-1.7B", "v5e:2x4", "fsdp=8", 11.4),
    ("Qwen3-8B", "v5p:2x2x1", "fsdp=4", 58.7),
    ("Qwen3-8B", "v6e:2x4", "fsdp=2,tensor=4", 27.7),
    ("DeepSeek-R1-Distill-Qwen-7B", "v6e:2x4", "fsdp=2,tensor=4", 26.0),
]


@pytest.mark.parametrize(("student", "topology", "mesh", "peak"), PEAKS)
def test_the_estimated_peak_of_a_step_is_near_the_compilers(student, topology, mesh, peak):
    recipe = [f"mesh={sharding.parse_mesh(mesh)!r}", "experience.questions=64"]
    config = load_recipe("sdpo_math", recipe, student=student)
    compute = dataclasses.replace(config.compute, remat="all", pack=22_528)
    run = run_of(
        dataclasses.replace(config, compute=compute), topologies.parse(topology), lengths_of
    )
    devices = sharding.abstract_mesh(run.config.mesh, run.topology.num_devices)
    with sharding.use_mesh(devices):
        estimated = memory.step(run, devices).peak / GIB
    assert estimated == pytest.approx(peak, rel=0.15)


def test_a_sampler_takes_at_least_its_weights_and_caches():
    run, _ = planned("Qwen3-1.7B", "v5e:2x4", "fsdp=1,tensor=8", remat="all")
    mesh = sharding.abstract_mesh(run.config.mesh, 8)
    with sharding.use_mesh(mesh):
        held = memory.resident(run, mesh)

        def sampler(*peaks):
            answers = {
                name: Answer(program="sampler", key="", seconds=1, peak=int(peak * GIB))
                for name, peak in zip(("shallow", "deeper"), peaks)
            }
            at = _At(run=run, mesh=mesh, held=held, limit=16 * GIB, answers=answers)
            return _sampler(at, 48, 3584)

        # What libtpu 0.0.42.1 said of 2 and 4 layers, which have their peak in prefill.
        few, many = sampler(4.66, 4.71), sampler(4.0, 5.0)
    # 3,584 pages of 128 positions, and 256 prompts of 1,024, of one key and value head of 128
    # numbers of two bytes in 28 layers.
    caches = (3584 * 128 + 256 * 1024) * 2 * 128 * 2 * 28
    weights = run.model.num_parameters * 2 / 8
    assert few["peak"] == pytest.approx(held.resident + caches + weights, rel=0.01)
    assert few["peak_source"] == "estimate; 2 and 4 layers peak in prefill"
    # A peak that grows as the caches do is the compiler's.
    assert many["peak"] == pytest.approx(17 * GIB + held.resident, rel=1e-6)
    assert many["peak_source"] == "compiler, from 2 and 4 layers"


def test_rounded_weights_are_a_smaller_copy_of_which_a_step_reads_less():
    """Qwen3-1.7B: 50.3 million weights of 20,480 channels per layer, and a tied head."""
    mesh = sharding.abstract_mesh(sharding.parse_mesh("fsdp=1,tensor=8"), 8)
    held, read = [], []
    for name in ("auto", "int8"):
        run, _ = planned("Qwen3-1.7B", "v5e:2x4", "fsdp=1,tensor=8", weights_dtype=name)
        with sharding.use_mesh(mesh):
            held.append(memory.decode(run, mesh, 48, 3584).weights_and_gradients)
            steps = roofline.decode_steps(run, 48)
            read.append(roofline.decode(run, mesh, 48).bytes / steps)
    head, columns = 151_936 * 2048, 151_936
    layers = 28 * (2048 * (2 * 2048 + 2 * 1024 + 3 * 6144) - 4 * 20_480)
    # A table in bfloat16 stays beside the head in int8, and is not read.
    assert held[0] - held[1] == pytest.approx((layers - head - 4 * columns) / 8)
    assert read[0] - read[1] == pytest.approx((layers + head - 4 * columns) / 8)


def test_state_and_reference_are_what_adam_and_bfloat16_need():
    run, plan = planned("Qwen3-8B", "v5p:2x2x2")
    each = run.model.num_parameters / 8
    resident = plan["resident"]
    # Norms are whole on every device.
    assert resident["parameters"] == pytest.approx(4 * each, rel=1e-3)
    assert resident["optimizer"] == pytest.approx(8 * each, rel=1e-3)
    assert resident["teacher_and_reference"] == pytest.approx(2 * each, rel=1e-3)


def test_tensor_parallelism_divides_logits_and_caches_and_says_what_it_does_not():
    _, one = planned("Qwen3-8B", "v5p:2x2x2", remat="all")
    _, two = planned("Qwen3-8B", "v5p:2x2x2", "fsdp=4,tensor=2", remat="all")
    step = [each["programs"][2]["memory"]["vocabulary"] for each in (one, two)]
    # Half the columns, on as many rows per device as before.
    assert step[1] == pytest.approx(step[0] / 2, rel=0.01)
    prompts = [each["programs"][0]["memory"]["prompts"] for each in (one, two)]
    # Split over questions before, over questions and heads now.
    assert prompts[1] == prompts[0]
    assert [note[:11] for note in two["notes"]] == ["evaluations"]
    with pytest.raises(UserError, match="take tensor from 1, 2, 4, 28, and more devices along"):
        planned("DeepSeek-R1-Distill-Qwen-7B", "v5p:2x2x2", "fsdp=1,tensor=8", remat="all")


def test_a_mesh_with_more_devices_than_key_value_heads_repeats_heads_and_pads_the_vocabulary():
    _, four = planned("Olmo-3-7B-Instruct", "v6e:4x4", "fsdp=4,tensor=4", remat="all")
    assert four["notes"][0] == (
        "mesh tensor=4 does not divide the vocabulary of 100,278: it is stored with 74 rows of "
        "zeros, which nothing reads"
    )
    mesh = {"Qwen3-8B": "fsdp=1,tensor=16", "Olmo-3-7B-Instruct": "fsdp=1,tensor=16"}
    for student, sizes in mesh.items():
        run, plan = planned(student, "v6e:4x4", sizes, remat="all")
        # 4 bytes of a parameter; embeddings, heads, keys and values are split too.
        each = 4 * run.model.num_parameters / 16
        assert plan["resident"]["parameters"] == pytest.approx(each, rel=2e-3)


def test_a_run_that_does_not_fit_is_told_a_change_with_which_it_does():
    # A quarter of the questions: packing 1,024 rows in every mesh would take seconds.
    changes = ["experience.questions=64", "experience.updates=2", "compute.remat='all'"]
    config = load_recipe("sdpo_math", changes, student="Qwen3-8B")
    run = start(config, "v5e:2x4", ARITHMETIC)
    plan = make_plan(run, ARITHMETIC)
    assert not plan["fits"]
    change = smallest_change(run, plan)
    assert change.startswith("--topology v5e:")
    topology, mesh = change.split()[1], change.split()[3]
    config = load_recipe(
        "sdpo_math", [*changes, f"mesh={sharding.parse_mesh(mesh)!r}"], student="Qwen3-8B"
    )
    assert make_plan(start(config, topology, ARITHMETIC), ARITHMETIC)["fits"]


def test_a_screen_ranks_every_mesh_in_milliseconds():
    config = load_recipe(
        "sdpo_math", ["experience.questions=64"], student="DeepSeek-R1-Distill-Qwen-7B"
    )
    run = start(config, "v6e:2x4", ARITHMETIC)
    began = time.process_time()
    ranked = screen(run)
    # 9 of the 10 meshes of 8 devices split 4 key/value heads evenly.
    sizes = [tuple(each["mesh"].values()) for each in ranked]
    assert len(set(sizes)) == len(sizes) == 9
    assert all(data * fsdp * tensor == 8 for data, fsdp, tensor in sizes)
    fits = [each["fits"] for each in ranked]
    assert fits == sorted(fits, reverse=True)
    assert (time.process_time() - began) / len(ranked) < 0.5


def test_the_plan_is_printed_and_written_with_a_mark_on_every_figure(tmp_path):
    file = tmp_path / "plan.json"
    code, out, _ = call(
        "plan", "sdpo_math", "--student", "Qwen3-1.7B", "--scale", "one_gpu", "--topology",
        "gpu:1xH200", "--json", file,
    )  # fmt: skip
    assert code == 0
    assert "figures are estimates" in out
    assert "fits: yes" in out
    plan = json.loads(file.read_text())
    for program in plan["programs"]:
        assert {"peak", "available", "flops", "collectives", "roofline", "fits"} <= set(program)
        assert program["peak_source"] == program["roofline"]["source"] == "estimate"
    assert plan["days"] == pytest.approx(100 * plan["iteration"]["seconds"] / 86_400)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--topology", "v5p:2x2x3"], "v5p has no slice '2x2x3'"),
        (["--topology", "v5e:4x4", "--mesh", "tensor=5"], "tensor=5 does not fit 16 device"),
        (["--topology", "v5e:4x4", "--mesh", "tensor=2", "--search"], "leave --mesh out"),
        (["--topology", "gpu:8xH200", "--mean-tokens", "30000"], "between 1 and the longest"),
        (["--topology", "gpu:8xH200", "--prompt-tokens", "4096"], "what the recipe allows, 2048"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert_mistake(["plan", "sdpo_math", "--no-compile", *arguments], expected)


def test_without_the_tpu_compiler_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(topologies, "compiler_version", lambda: None)
    assert_mistake(
        ["plan", "sdpo_math", "--topology", "v5p:2x2x1"], r"pip install 'jaxdistill\[tpu"
    )
