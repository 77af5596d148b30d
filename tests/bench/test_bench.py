"""The arithmetic of `jaxdistill bench`, and the agreement of what it prints and writes."""

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxdistill import cli
from jaxdistill.bench import decode as bench
from jaxdistill.bench import iteration, measure
from jaxdistill.bench import step as bench_step
from jaxdistill.bench.decode import Decode
from jaxdistill.bench.work import Iteration, Step
from jaxdistill.errors import UserError
from jaxdistill.models import presets
from jaxdistill.models.flops import forward_flops
from jaxdistill.models.quantized_weights import decoding_bytes
from jaxdistill.objectives import grpo, rlcsd, sdpo
from jaxdistill.run.provenance import current_provenance
from jaxdistill.sampling import engine
from jaxdistill.training import memory, step
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer

pytestmark = pytest.mark.long

TINY = dataclasses.replace(
    presets.PRESETS["Qwen3-1.7B"],
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=32,
)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)
    monkeypatch.setattr(measure, "copy_bytes_per_second", lambda: 1e9)
    monkeypatch.setattr(measure, "matmul_flops_per_second", lambda dtype: 1e9)


def test_the_verb_prints_and_writes_one_result(tmp_path, capsys):
    out = tmp_path / "decode.json"
    arguments = "bench decode --model tiny --rows 4 --prompt 5 --new 20 --repeats 2 --top-p 0.9"
    assert cli.main([*arguments.split(), "--mesh", "fsdp=1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    ours = current_provenance()
    assert result["jaxdistill"] == ours["packages"]["jaxdistill"]
    assert result["git"] == ours["git"]
    assert result["work"]["sampling"]["top_p"] == 0.9
    assert result["tokens"] == 80
    assert result["tokens_per_second"] == pytest.approx(80 / result["seconds"])
    low, high = result["seconds_spread"]
    assert low <= result["seconds"] <= high
    assert list(tmp_path.iterdir()) == [out]


def test_step_bytes_are_the_weights_and_the_filled_part_of_the_cache():
    # 18 tokens: after the 16th, rows attend to 5 + 16 and then 5 + 17 positions, 21.5 on average.
    # A position is a key and a value for 2 heads of 8 numbers in each of 2 layers.
    found = bench._per_step(Decode(rows=3, prompt=5, new=18), TINY, np.float32, seconds=0.5)
    assert found["step_bytes"] == 4 * (TINY.num_parameters + 3 * 21.5 * (2 * 2 * 2 * 8))
    assert found["step_tokens_per_second"] == 6
    assert found["share_of_copy"] == pytest.approx(found["step_bytes"] / 0.5 / 1e9)


def test_a_position_of_an_int8_cache_is_its_numbers_and_a_scale_of_four_bytes_per_head():
    work = Decode(rows=3, prompt=5, new=18, cache_dtype="int8")
    found = bench._per_step(work, TINY, np.float32, seconds=0.5)
    assert found["step_bytes"] == 4 * TINY.num_parameters + 3 * 21.5 * (2 * 2 * 2 * (8 + 4))


@pytest.mark.parametrize(
    "what",
    [
        "decode --rows 4 --prompt 5 --new 20",
        "train --questions 2 --rollouts 1 --prompt 5 --new 9 --context 7",
    ],
)
def test_the_cache_is_int8_where_the_flag_says_so(what, monkeypatch, capsys):
    def refuse(*_, cache_dtype, **__):
        raise UserError(f"asked for {cache_dtype}")

    monkeypatch.setattr(engine, "make_sampler", refuse)
    arguments = f"bench {what} --mesh fsdp=1 --model tiny --repeats 1 --cache-dtype int8"
    assert cli.main(arguments.split()) == 2
    _, refusal = capsys.readouterr().err.splitlines()  # after what it runs on
    assert refusal == "jaxdistill: asked for int8"


def test_an_int8_cache_is_sampled_from_and_named_in_the_result():
    result = bench.bench_decode(
        Decode(model="tiny", mesh="fsdp=1", rows=4, prompt=5, new=20, repeats=1, cache_dtype="int8")
    )
    assert result["work"]["cache_dtype"] == "int8"
    assert result["tokens"] == 80


def test_the_first_iteration_alone_is_timed_without_its_compilation(monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def tick():
        clock.now += 1e-3  # nothing but compilation takes longer by this clock
        return clock.now

    def compiled_step(*arguments):
        remat, compiled, _ = bench_step.compiled_step(*arguments)
        clock.now += 100
        return remat, compiled, 100.0

    monkeypatch.setattr(iteration, "compiled_step", compiled_step)
    monkeypatch.setattr(iteration, "time", SimpleNamespace(perf_counter=tick))
    sizes = {"questions": 2, "rollouts": 1, "prompt": 5, "new": 9, "context": 7}
    result = iteration.bench_iteration(
        Iteration(model="tiny", mesh="fsdp=1", chunk=9, repeats=0, **sizes)
    )
    assert result["step_compile_seconds"] == 100
    assert 0 < result["seconds"] < 1
    # 2 rows: three passes of 14 positions and one of the teacher's 16, the head at 9 of them.
    student, teacher = (forward_flops(TINY, 0, tokens, 9) for tokens in (14, 16))
    assert result["model_flops"] == 2 * (3 * student + teacher)


def test_step_operations_are_those_of_the_weights_and_of_attention_over_the_filled_cache():
    # 3 rows; 2 layers of 3072 multiplied parameters and the head's 1024; 21.5 positions, each with
    # a product of 4 heads of 8 numbers for scores and one for values in each layer.
    found = bench._per_step(Decode(rows=3, prompt=5, new=18), TINY, np.float32, seconds=0.5)
    assert found["model_flops"] == 3 * 2 * (2 * 3072 + 1024 + 21.5 * (2 * 2 * 32))
    assert found["share_of_matmul"] == pytest.approx(found["model_flops"] / 0.5 / 1e9)


@pytest.mark.parametrize(
    ("pages", "steps"),
    [(0, 200 - 16), pytest.param(40, 208 - 16, marks=pytest.mark.slow), (2, None)],
)
def test_a_step_is_timed_by_the_loops_own_steps_where_no_row_waits(monkeypatch, pages, steps):
    # With pages the loop ends at a multiple of 16 steps, so 200 tokens take 208. With 2 pages only
    # one row runs at a time.
    timings = iter((1.0, 0.04))
    monkeypatch.setattr(measure, "timed", lambda run: (run(), next(timings))[1])
    work = Decode(model="tiny", mesh="fsdp=1", rows=8, prompt=5, new=200, pages=pages, repeats=1)
    result = bench.bench_decode(work)
    if steps is None:
        assert result["slots"]["mean_occupied"] < 8
        assert "step_seconds" not in result
    else:
        assert result["step_seconds"] == pytest.approx(0.96 / steps)


@pytest.mark.slow
def test_the_sampler_runs_on_a_mesh_with_every_parts_weights_counted():
    work = Decode(model="tiny", mesh="fsdp=1", rows=8, rollouts=2, prompt=5, new=20, repeats=1)
    alone = bench.bench_decode(work)
    split = bench.bench_decode(
        dataclasses.replace(work, mesh="data=2,fsdp=1,tensor=2", attention="xla")
    )
    assert split["tokens"] == alone["tokens"] == 160
    assert split["slots"] == alone["slots"]
    assert split["step_bytes"] - alone["step_bytes"] == 4 * TINY.num_parameters
    assert split["model_flops"] == alone["model_flops"]
    assert split["copy_bytes_per_second"] == 4e9
    assert split["memory"]["arguments"] < alone["memory"]["arguments"]


def test_an_embedding_beside_a_head_is_not_read_by_a_step():
    untied = dataclasses.replace(TINY, tie_embeddings=False)
    assert decoding_bytes(untied, "float32", "auto", held=False) == 4 * TINY.num_parameters
    assert untied.num_parameters > TINY.num_parameters


def test_long_tailed_lengths_have_about_the_mean_and_never_exceed_the_limit():
    lengths_B = bench.long_tailed(4000, 1000, 200)
    # The median of a log-normal is exp(-sigma^2 / 2) = 0.73 times its mean. The mean of 4000 draws
    # has a standard error of 1.5 %, and the cut at 1000 lowers it by another 1 %.
    assert lengths_B.mean() == pytest.approx(200, rel=0.06)
    assert np.median(lengths_B) == pytest.approx(145, rel=0.06)
    assert 1 <= lengths_B.min() < 40
    assert lengths_B.max() == 1000


def test_rows_of_different_lengths_go_through_fewer_slots():
    work = Decode(
        model="tiny", mesh="fsdp=1", rows=6, rollouts=2, slots=2, prompt=3, new=12, mean=5
    )
    result = bench.bench_decode(work)
    assert result["tokens"] == bench.long_tailed(6, 12, 5).sum()
    assert "step_seconds" not in result, "a step with few rows is not a step with all rows"
    assert "programs" not in result


def test_a_pool_of_pages_reports_preempted_rows_and_occupied_slots(tmp_path, capsys):
    out = tmp_path / "decode.json"
    arguments = (
        "bench decode --model tiny --rows 4 --rollouts 2 --slots 2 --pages 12 --prompt 5 --new 900 "
        "--mean 850 --busy --repeats 1 --mesh fsdp=1"
    )
    assert cli.main([*arguments.split(), "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    slots, busy = result["slots"], result["busy"]
    drawn = result["tokens"] + slots["redrawn_tokens"]
    assert slots["mean_occupied"] == pytest.approx(drawn / slots["steps"])
    assert 0 < slots["mean_occupied"] <= 2
    assert slots["preempted"] > 0, "12 pages admit two rows, but two of 900 tokens need 16"
    assert slots["redrawn_tokens"] > 0
    tokens_each = busy["mean_occupied"] * busy["steps"] / 2
    assert busy["steps"] == -(-round(tokens_each) // 16) * 16, "both to the end"
    assert result["share_of_busy"] == pytest.approx(
        result["tokens_per_second"] / busy["tokens_per_second"]
    )


def test_busy_slots_are_timed_around_the_mean_context():
    work = Decode(
        model="tiny", rows=6, slots=4, pages=400, prompt=101, new=9000, mean=2000, busy=True
    )
    short_B, long_B = bench._busy_limits(work, 4, mean_positions=5100.0)
    # A context of 5,100 is 100 of the prompt and 5,000 drawn tokens, between 3,750 and 6,250.
    assert (short_B == [3750] * 4 + [0] * 2).all()
    assert (long_B == [6250] * 4 + [0] * 2).all()


def test_busy_slots_stay_within_their_share_of_the_pages():
    work = Decode(
        model="tiny", rows=6, slots=4, pages=172, prompt=101, new=9000, mean=2000, busy=True
    )
    short_B, long_B = bench._busy_limits(work, 4, mean_positions=5100.0)
    assert long_B[0] == 43 * 128 - 101
    assert short_B[0] + long_B[0] == 2 * 5000
    with pytest.raises(UserError, match="--busy: 4 slots hold 5120 positions each"):
        bench._busy_limits(dataclasses.replace(work, pages=160), 4, mean_positions=5100.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "--rows must be at least 1, got 0"),
        ({"rows": 5, "rollouts": 2}, "--rows 5 must be a multiple of --rollouts 2"),
        ({"mean": 600}, "--mean 600 must lie between 0 and --new 512"),
        ({"slots": -1}, "--slots must be at least 0"),
        ({"pages": -1}, "--pages must be at least 0"),
        ({"pages": 5}, "--pages 5 are too few: .* takes 768 positions, 6 pages of 128"),
        ({"profile": -1}, "--profile must be at least 0"),
        ({"mesh": "rows=8"}, "mesh 'rows=8': expected devices along data, fsdp, tensor"),
        ({"temperature": float("nan")}, "--temperature nan: expected a value >= 0"),
        ({"top_p": 2.0}, "--top-p 2.0: expected a value in"),
        ({"top_k": -3}, "--top-k -3: expected a value >= 0"),
        ({"min_p": 2.0}, "--min-p 2.0: expected a value in"),
        ({"busy": True}, "--busy compares with rows of different lengths"),
        ({"cache_dtype": "int4"}, "--cache-dtype must be one of auto, int8, got 'int4'"),
    ],
)
def test_sizes_that_cannot_be_are_the_users_mistake(changes, message):
    with pytest.raises(UserError, match=message):
        Decode(**changes)


@pytest.mark.parametrize(
    "what",
    [
        "decode --rows 12",
        "decode --rows 16 --slots 12",
        "step --rows 12",
        "step --rows 24 --micro-batches 2",
        "train --questions 3 --rollouts 4",
    ],
)
def test_rows_that_do_not_split_over_all_devices_are_refused(what, capsys):
    assert cli.main(f"bench {what} --model tiny".split()) == 2
    assert "12 rows at a time do not split evenly over 8 devices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ({}, 8),
        ({"mesh": "fsdp=1"}, 4),
        ({"mesh": "fsdp=2", "micro_batches": 3}, 6),
        ({"mesh": "fsdp=1", "rows": 3}, 3),
    ],
)
def test_a_step_has_by_default_at_least_four_rows_that_split_evenly(flags, rows):
    assert bench_step.with_rows(Step(model="tiny", **flags)).rows == rows


def test_an_unknown_preset_and_a_missing_folder_end_in_one_line(tmp_path, capsys):
    assert cli.main(["bench", "decode", "--model", "Qwen3-1.8B"]) == 2
    assert "did you mean Qwen3-1.7B" in capsys.readouterr().err
    out = str(tmp_path / "none" / "x.json")
    assert cli.main(["bench", "decode", "--model", "tiny", "--out", out]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert cli.main(["bench", "decode", "--model", "nowhere", "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err


# ------------------------------------------------------------------------- step and iteration

SMALL = "--mesh fsdp=1 --model tiny --prompt 5 --chunk 8 --micro-batches 2 --repeats 2"


def test_the_step_is_timed_beside_the_matrix_product_and_written(tmp_path, capsys):
    out = tmp_path / "step.json"
    arguments = (
        f"bench step {SMALL} --rows 4 --tokens 21 --moments bfloat16 --remat mlp --mesh fsdp=2"
    )
    assert cli.main([*arguments.split(), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["tokens"] == 4 * 21
    assert result["tokens_per_second"] == pytest.approx(84 / result["seconds"])
    assert result["remat"] == "mlp"
    assert result["work"]["optimizer"]["moments"] == "bfloat16"
    assert result["model_flops"] == bench_step.step_flops(TINY, sdpo(), 4, 5, 21)
    assert result["share_of_matmul"] == result["model_flops_per_second"] / 2e9, "of two devices"
    # Bytes read and written: 4 per parameter and gradient, 2 per moment; only read: 4 of the base.
    assert result["step_bytes"] == (2 * (4 + 4 + 2 + 2) + 4) * TINY.num_parameters
    assert result["bytes_per_second"] == result["step_bytes"] / result["seconds"]
    assert result["memory"]["planned"] > result["memory"]["arguments"]
    assert 0 < result["loss_last"] < result["loss_first"]


def test_the_operations_of_a_step_by_hand():
    # A layer of the tiny model multiplies 16 x (32 + 16 + 16) + 32 x 16 = 1536 parameters for
    # attention and 3 x 16 x 32 = 1536 for the MLP; the head 16 x 64 = 1024, at 2 of 3 positions.
    products = 2 * (2 * 3072 * 3 + 1024 * 2)
    # 1 + 2 + 3 pairs of positions, each with a product of 32 numbers for scores and one for values.
    attention = 2 * (4 * 6 * 32)
    # Three forward passes for the student, one for the teacher, and one for a contrast.
    for objective, passes in ((grpo(), 3), (sdpo(), 4), (rlcsd(), 5)):
        flops = bench_step.step_flops(TINY, objective, 7, 1, 3)
        assert flops == passes * 7 * (products + attention)
    # Under a prompt of 2 tokens the teacher has 4 positions and 10 pairs.
    teacher = 2 * (2 * 3072 * 4 + 1024 * 2) + 2 * (4 * 10 * 32)
    flops = bench_step.step_flops(TINY, sdpo(), 7, 1, 3, context=2)
    assert flops == 7 * (3 * (products + attention) + teacher)
    sliding = dataclasses.replace(TINY, layer_pattern=("sliding", "full"), window=2)
    flops = bench_step.step_flops(sliding, sdpo(), 7, 1, 3)
    assert flops == 4 * 7 * (products + attention - 4 * 32)


def test_a_step_without_teacher_and_reference_moves_its_own_state_alone():
    compute, optimizer = Compute(dtype="bfloat16"), Optimizer()
    of = lambda objective: bench_step.step_bytes(TINY, objective, compute, optimizer)  # noqa: E731
    assert of(grpo()) == 2 * 16 * TINY.num_parameters
    assert of(sdpo()) == (2 * 16 + 2) * TINY.num_parameters


TWO_ROWS = "train --mesh fsdp=1 --questions 2 --rollouts 1 --new 9 --context 7"


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("step --rows 2 --tokens 21 --mesh fsdp=1", marks=pytest.mark.slow),
        TWO_ROWS + " --pack 64",
    ],
)
def test_an_objective_with_contrasts_moves_the_weights(what, capsys):
    arguments = f"bench {what} --model tiny --prompt 5 --repeats 1 --objective rlcsd"
    assert cli.main(arguments.split()) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["loss_last"] != result["loss_first"]
    if "--pack" in what:
        # Of each row's 64 positions few are used: 14 tokens for the student, 16 for the others.
        assert 0 < result["padding"] < 1
        assert result["work"]["compute"]["pack"] == 64


def test_an_objective_without_a_teacher_packs_the_students_rows_alone(capsys):
    arguments = f"bench {TWO_ROWS} --pack 64 --model tiny --prompt 5 --repeats 1 --objective grpo"
    assert cli.main(arguments.split()) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["padding"] == 1 - 2 * (5 + 9) / 64
    assert result["loss_last"] == pytest.approx(-1), "on policy: a ratio of 1 and advantages of 1"


@pytest.mark.slow
def test_an_iteration_samples_and_steps(capsys):
    arguments = f"bench train {SMALL} --questions 2 --rollouts 2 --new 9 --mean 5 --context 7"
    # One repeat: medians of several need not add up.
    assert cli.main([*arguments.split(), "--repeats", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == bench.long_tailed(4, 9, 5).sum()
    assert result["positions"] == 4 * 5 + result["tokens"]
    assert result["seconds"] == result["seconds_sampling"] + result["seconds_step"]
    assert result["sampler_compile_seconds"] > 0
    assert result["slots"] == 4
    assert result["remat"] == "none"  # auto, where memory has no limit


def test_a_profile_adds_up_the_kernels_of_the_first_device(monkeypatch):
    def event(name, start, microseconds):
        return SimpleNamespace(name=name, start_ns=1000 * start, duration_ns=1000 * microseconds)

    def line(name, *events):
        return SimpleNamespace(name=name, events=events)

    # The exchange from 3 to 9 runs beside products from 3 to 5 and from 7 to 8.
    device = [line("Stream #1", event("gemm", 0, 5), event("copy", 7, 1)),
              line("Stream #2", event("gemm", 10, 3)),
              line("Stream #3", event("ncclDevKernel_AllGather_RING_LL", 3, 6)),
              line("Steps", event("0", 0, 99))]  # fmt: skip
    planes = [SimpleNamespace(name="/host:CPU", lines=[line("Stream", event("host", 0, 99))]),
              SimpleNamespace(name="/device:GPU:0", lines=device)]  # fmt: skip

    @contextlib.contextmanager
    def trace(folder):
        yield
        (Path(folder) / "a.xplane.pb").touch()

    profiler = SimpleNamespace(trace=trace, ProfileData=SimpleNamespace(
        from_file=lambda file: SimpleNamespace(planes=planes)))  # fmt: skip
    monkeypatch.setattr(measure.jax, "profiler", profiler)
    monkeypatch.setattr(measure.jax, "default_backend", lambda: "gpu")
    found = measure.profile(lambda: None, 1)["profile"]
    assert found["kernels"] == [{"name": "gemm", "calls": 2, "seconds": pytest.approx(8e-6)}]
    assert found["busy_seconds"] == pytest.approx(15e-6)
    assert found["collectives"] == pytest.approx({"seconds": 6e-6, "hidden_seconds": 3e-6})


def test_auto_says_what_it_chose_where_memory_is_short(monkeypatch):
    # The second program of those that `tests/training/test_memory.py` goes through fits.
    monkeypatch.setattr(memory, "memory_limit", lambda: 2)
    planned = iter([2])
    monkeypatch.setattr(memory, "planned_bytes", lambda compiled: next(planned, 1))
    step.make_train_step.cache_clear()
    work = bench_step.Step(model="tiny", mesh="fsdp=1", rows=1, tokens=9, prompt=4, repeats=1)
    result = bench_step.bench_step(work)
    step.make_train_step.cache_clear()  # the limit was for this test
    assert result["remat"] == "mlp"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("step --tokens 256", "--tokens 256 must be more than --prompt 256"),
        ("step --rows 3 --micro-batches 2", "--micro-batches 2 must divide the 3 rows"),
        ("step --chunk 0", "--chunk must be at least 1, got 0"),
        (
            "train --pack 16 --micro-batches 2",
            "--pack 16 determines the number of micro-batches; leave --micro-batches at 1, got 2",
        ),
        ("step --objective sdop", "--objective 'sdop' is unknown"),
        ("train --questions 0", "--questions must be at least 1"),
        ("train --mean 5000", "--mean 5000 must lie between 0 and --new 1024"),
    ],
)
def test_a_step_that_cannot_be_is_refused_in_one_line(arguments, message, capsys):
    assert cli.main(["bench", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
