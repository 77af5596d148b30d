"""The parts of a run's time add up, and its operations are those of the model's equations."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import ARCHITECTURE

from jaxdistill.objectives import GRPO, Distill, ReferenceKL, sdpo
from jaxdistill.training import timing
from jaxdistill.training.batch import Batch, texts_of_ids
from jaxdistill.training.timing import PARTS, Clock, Work, peak_flops


class Hands:
    """The hands of a clock, moved by the test."""

    seconds = 100.0

    def __call__(self):
        return self.seconds


def test_each_second_counts_for_the_innermost_part_and_all_add_up():
    hands = Hands()
    clock = Clock(hands)
    hands.seconds += 1  # host
    with clock.part("sampling"):
        hands.seconds += 2
        with clock.part("grading"):
            hands.seconds += 4
        hands.seconds += 8
    with clock.part("update"):
        hands.seconds += 16
    first = clock.lap()
    assert {part: first[part] for part in PARTS if first[part]} == {
        "host": 1, "sampling": 10, "grading": 4, "update": 16}  # fmt: skip
    hands.seconds += 32
    with clock.part("evaluation"):
        hands.seconds += 64
    assert clock.lap()["host"] == 32
    assert sum(clock.total[part] for part in PARTS) == hands.seconds - 100
    assert clock.total["evaluation"] == 64


def test_a_part_of_another_thread_takes_no_time_from_the_main_ones():
    clock = Clock(hands := Hands())

    def beside():
        with clock.part("grading"):
            hands.seconds += 4

    with clock.part("update"):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(beside).result()
        hands.seconds += 1
    lap = clock.lap()
    assert (lap["update"], lap["grading"]) == (5, 0)


def test_a_part_that_fails_ends():
    clock = Clock(hands := Hands())

    def interrupted():
        with clock.part("update"):
            hands.seconds += 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    hands.seconds += 2
    lap = clock.lap()
    assert (lap["update"], lap["host"]) == (1, 2)


def test_it_tells_which_part_begins_and_when_a_program_is_compiled():
    clock, heard = Clock(), []
    clock.on_part = heard.append
    x = jnp.ones(3)
    with clock.compilations(), clock.part("update"):
        jax.jit(lambda x: x * 17 + 3)(x).block_until_ready()
    assert heard == ["update", "compiling", "update", "host"]
    assert clock.lap()["compiling"] > 0
    jax.jit(lambda x: x * 18 + 3)(x).block_until_ready()
    assert len(heard) == 4, "compilations are counted inside the context only"


@pytest.mark.parametrize(("part", "counts"), [("sampling", True), ("update", False)])
def test_what_the_samplers_thread_compiles_counts_where_it_is_waited_for(part, counts):
    """Beside the update it would make a step's compiling longer than the step."""
    clock, x, by = Clock(), jnp.ones(3), 19 + counts
    with ThreadPoolExecutor(1) as other, clock.compilations(), clock.part(part):
        other.submit(lambda: jax.jit(lambda x: x * by + 3)(x)).result()
    assert (clock.lap()["compiling"] > 0) == counts


LENGTHS = ((3, 5), (2, 9))  # (prompt, completion) of each row; the teacher's prompts have 4 more


def batch_of(lengths):
    prompts, completions = zip(*lengths)
    ids = lambda sizes: texts_of_ids([[1] * size for size in sizes], multiple=16)  # noqa: E731
    ones_B = np.ones(len(lengths), np.float32)
    return Batch(
        prompt=ids(prompts),
        completion=ids(completions),
        teacher=ids([size + 4 for size in prompts]),
        behaviour_logp_BT=np.zeros((len(lengths), 16), np.float32),
        advantage_B=ones_B,
        row_weight_B=ones_B,
        correct_B=ones_B,
    )


def forward(prompt, completion, vocab):
    """Two operations per multiplied parameter and position, and four per visible pair and head."""
    a = ARCHITECTURE
    tokens = prompt + completion
    attention = a.hidden_size * a.head_dim * 2 * (a.num_heads + a.num_kv_heads)
    matrices = a.num_layers * (attention + 3 * a.hidden_size * a.intermediate_size)
    pairs = sum(position + 1 for position in range(tokens))
    return (
        2 * matrices * tokens
        + 2 * a.hidden_size * vocab * completion
        + 4 * a.num_layers * a.num_heads * a.head_dim * pairs
    )


def test_the_operations_of_a_step_leave_out_padding_and_count_each_network_that_is_read():
    model = ARCHITECTURE.__class__(**{**vars(ARCHITECTURE), "vocab_size": 60})
    batch = batch_of(LENGTHS)

    def flops(objective, track=False):
        work = Work(model=model, objective=objective, track_reference=track, peak_flops=None)
        return work.flops(batch)

    student = sum(forward(p, t, 60) for p, t in LENGTHS)
    teacher = sum(forward(p + 4, t, 60) for p, t in LENGTHS)
    assert flops(sdpo()) == 3 * student + teacher
    assert flops(sdpo(), track=True) == 4 * student + teacher
    assert flops(Distill(terms=(ReferenceKL(),))) == 4 * student + teacher


def test_a_steps_facts_leave_out_what_came_before_it():
    lap = dict.fromkeys(PARTS, 0.0) | {"compiling": 0.5, "sampling": 2.0, "update": 1.5}
    lap |= {"host": 0.5, "evaluation": 100.0, "checkpoint": 10.0}
    model = ARCHITECTURE.__class__(**{**vars(ARCHITECTURE), "vocab_size": 60})
    work = Work(model=model, objective=GRPO(), track_reference=False, peak_flops=1e9)
    batch = batch_of(LENGTHS)
    facts = work.facts(lap, batch)
    assert set(facts) == set(timing.TIMINGS)
    assert facts["seconds"] == 4
    assert facts["seconds_evaluation"] == 100
    assert facts["tokens_per_second"] == 14 / 4
    assert facts["mfu"] == pytest.approx(work.flops(batch) / 1.5e9)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        # As `jax.experimental.topologies` names the devices of v4, v5e, v5p, v6e and tpu7x.
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", None),
    ],
)
def test_the_peak_is_known_for_bfloat16_on_known_devices_only(monkeypatch, kind, peak):
    assert peak_flops("bfloat16", 1) is None  # a CPU

    class Device:
        device_kind = kind

    monkeypatch.setattr(jax, "local_devices", lambda: [Device])
    assert peak_flops(jnp.dtype("bfloat16"), 8) == (None if peak is None else 8 * peak)
    assert peak_flops("float32", 8) is None
