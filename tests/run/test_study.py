"""A study: what it writes, how it resumes, and what happens if a run fails."""

import collections
import dataclasses
import json
import os

import pytest
from broken_workers import dies, faulty
from places import ROOT
from tiny_run import tiny, tree_of

from jaxdistill import report
from jaxdistill.config import load_study_recipe
from jaxdistill.errors import UserError
from jaxdistill.evaluation import toy_probe
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.objectives import GRPO, Distill
from jaxdistill.own_classes import load_source
from jaxdistill.run import study as studies
from jaxdistill.run import workers
from jaxdistill.run.arms import Arm, is_finished
from jaxdistill.run.study import Study, run_study, with_overrides
from jaxdistill.run.workers import share_out, work
from jaxdistill.sampling import Sampling
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage.loading import ToyBase
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.teachers import EMA

# The columns that the report and other readers of summary.json rely on.
COLUMNS = {
    "world", "method", "seed", "step", "split", "accuracy", "length", "epistemic_per_response",
    "check_rate", "copy_fidelity", "n",
}  # fmt: skip


def three_arms() -> tuple[Arm, ...]:
    """The base is a bundled model, which the probe requires; the others are tiny to save time."""
    evaluation = Evaluation(
        splits=tuple(Split(pool, ToyTask(pool, count=2)) for pool in ("train", "heldout")),
        every=1,
        at_start=False,
        samples=2,
        sampling=Sampling(max_new_tokens=16),
    )
    config = tiny(steps=2, evaluation=evaluation, export=False, save_checkpoints=False)
    grpo = dataclasses.replace(config, objective=GRPO())
    return (
        Arm(
            world="main",
            method="base",
            config=dataclasses.replace(config, model=ToyBase(), steps=0),
        ),
        Arm(world="main", method="sdpo", config=config),
        Arm(world="main", method="grpo", config=grpo, labels=(("coverage", 5),)),
    )


def small(workers=1, arms=None) -> Study:
    return Study(name="small", profile="quick", arms=arms or three_arms(), workers=workers)


@pytest.fixture(scope="module", autouse=True)
def _probe_of_few_problems():
    """Probe the base on 8 problems instead of 128, which takes a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_probe, "ToyTask", lambda pool, count: ToyTask(pool=pool, count=8))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _probe_of_few_problems):
    folder = tmp_path_factory.mktemp("study") / "one"
    return folder, run_study(small(), folder, quiet=True)


@pytest.fixture(autouse=True)
def _pictures_once(finished, monkeypatch):
    """Draw the first study's figures only; the others are compared by their rows."""
    monkeypatch.setattr("jaxdistill.report.figures.draw_all", lambda study, cells: {})


def rows_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_study_writes_a_row_per_arm_step_and_split(finished):
    rows = rows_of(finished[0])
    found = [(row["method"], row["step"], row["split"]) for row in rows]
    splits = ("train", "heldout")
    wanted = [("base", 0, s) for s in splits]
    wanted += [(method, step, s) for method in ("sdpo", "grpo") for step in (1, 2) for s in splits]
    assert found == wanted
    for row in rows:
        extra = {"coverage"} if row["method"] == "grpo" else set()
        assert row.keys() == COLUMNS | extra
        assert (row["world"], row["seed"], row["n"]) == ("main", 0, 4)
    assert {row.get("coverage") for row in rows} == {None, 5}


def test_a_row_says_what_the_runs_own_evaluation_says(finished):
    folder, _ = finished
    for row in rows_of(folder):
        suffix = "-coverage5" if row["method"] == "grpo" else ""
        run_dir = folder / "runs" / f"main-{row['method']}{suffix}-s0"
        path = run_dir / "evals" / f"step_{row['step']:06d}" / f"{row['split']}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert row["accuracy"] == sum(record["correct"] for record in records) / 4
        assert row["length"] == sum(record["num_tokens"] for record in records) / 4


def test_a_study_keeps_probe_facts_and_page(finished):
    folder, page = finished
    probe = json.loads((folder / "probe.json").read_text())
    assert list(probe) == ["main"]
    assert all(
        row.keys() == {"context", "place", "epistemic", "answer", "then", "check", "n"}
        for row in probe["main"]
    )
    facts = json.loads((folder / "study.json").read_text())
    assert facts.keys() >= {"name", "profile", "command", "date", "seconds", "versions", "device"}
    assert facts["command"] == "jaxdistill study small --profile quick"
    assert page == folder / "report.html"
    assert "<html" in page.read_text()


def test_a_study_keeps_no_weights_where_it_was_told_so(finished):
    assert not any(name.endswith(".safetensors") for name in tree_of(finished[0] / "runs"))


def test_a_finished_study_only_writes_its_page_anew(finished):
    folder, _ = finished
    before = tree_of(folder)
    seconds = json.loads(before["study.json"])["seconds"]
    run_study(small(), folder, quiet=True)
    after = tree_of(folder)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"study.json", "report.html"}
    assert json.loads(after["study.json"])["seconds"] >= seconds  # they add up


@pytest.mark.slow
def test_two_processes_find_what_one_found(finished, tmp_path):
    """Each has one core; samples are the same up to rounding in the weights' last bits."""
    base, _, grpo = three_arms()  # one per process: a third arm would compile another program
    study = small(workers=2, arms=(base, grpo))
    assert len(share_out(list(study.arms), 2)) == 2
    run_study(study, tmp_path / "two", quiet=True)
    one = [row for row in rows_of(finished[0]) if row["method"] != "sdpo"]
    two = rows_of(tmp_path / "two")
    names = ("method", "step", "split", "n")
    assert [[row[name] for name in names] for row in one] == [
        [row[name] for name in names] for row in two
    ]
    bases = [[row for row in rows if row["method"] == "base"] for rows in (one, two)]
    assert bases[0] == bases[1]
    assert json.loads((tmp_path / "two" / "probe.json").read_text()).keys() == {"main"}
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.long
def test_an_interrupted_study_goes_on_where_it_stood(finished, tmp_path, monkeypatch):
    folder, calls = tmp_path / "study", []

    def counted(config, run_dir, **options):
        calls.append(run_dir.name)
        if len(calls) == 2:  # in its second run, after the folder was created
            untouched(dataclasses.replace(config, steps=1), run_dir, **options)
            (run_dir / "finished.json").unlink()
            (run_dir / "config.json").write_text(
                (finished[0] / "runs" / run_dir.name / "config.json").read_text()
            )
            raise KeyboardInterrupt
        return untouched(config, run_dir, **options)

    untouched = workers.run
    monkeypatch.setattr(workers, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(small(), folder, quiet=True)
    assert not (folder / "summary.json").exists()
    kept = (folder / "runs" / "main-base-s0" / "finished.json").stat().st_mtime_ns
    run_study(small(), folder, quiet=True)
    assert calls[2:] == ["main-sdpo-s0", "main-grpo-coverage5-s0"]
    assert (folder / "runs" / "main-base-s0" / "finished.json").stat().st_mtime_ns == kept
    assert rows_of(folder) == rows_of(finished[0])


def test_a_study_says_what_its_runs_run_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(studies, "run_arms", lambda *_: None)
    monkeypatch.setattr(report, "write_study_report", lambda folder: folder)
    arms = [arm for arm in three_arms() if arm.method == "sdpo"]
    arms = [
        dataclasses.replace(arms[0], config=dataclasses.replace(arms[0].config, steps=0, **changes))
        for changes in ({"seed": 1}, {"seed": 2, "mesh": MeshConfig(data=2, fsdp=1)})
    ]
    run_study(small(arms=tuple(arms)), tmp_path / "study")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "devices" in line]
    assert line == (
        "2 run(s); 1 of 8 devices (cpu); mesh data=1, fsdp=1, tensor=1; float32; "
        "2 of 8 devices (cpu); mesh data=2, fsdp=1, tensor=1; float32"
    )


@pytest.mark.parametrize(
    ("gpus", "expected"), [(("0",), "--xla_gpu_enable_triton_gemm=false"), ((), "")]
)
def test_a_toy_study_compiles_fast_on_gpus_unless_the_user_says_otherwise(
    tmp_path, monkeypatch, gpus, expected
):
    """XLA takes the last of flags that contradict one another."""
    seen = []
    monkeypatch.setattr(studies, "run_arms", lambda *_: seen.append(os.environ.get("XLA_FLAGS")))
    monkeypatch.setattr(studies, "conclude", lambda *_: tmp_path)
    monkeypatch.setattr(studies, "find_gpus", lambda: gpus)
    users = "--xla_gpu_enable_triton_gemm=true"
    monkeypatch.setenv("XLA_FLAGS", users)
    base, other, _ = three_arms()
    for number, arms in enumerate([(base,), (base, other)]):
        study = dataclasses.replace(small(arms=arms), one_device=True)
        run_study(study, tmp_path / f"{number}", quiet=True)
    assert seen == [f"{expected} {users}".strip(), users]  # the second has a model of another kind
    assert os.environ["XLA_FLAGS"] == users


def test_a_study_of_another_recipe_text_is_another_study(tmp_path):
    text = (ROOT / "tests" / "own_recipe.py").read_text()

    def study_of(text):
        own = load_source(text.encode(), "mine.py").classes["FadeIn"](4)
        config = tiny(objective=Distill(weights=(own,)))
        return Study(
            name="mine",
            profile="quick",
            workers=1,
            arms=(Arm(world="main", method="m", config=config),),
        )

    studies.prepare(study_of(text), tmp_path / "one")
    studies.prepare(study_of(text), tmp_path / "one")  # may be resumed
    with pytest.raises(UserError, match="holds another study"):
        studies.prepare(study_of(text + "\n"), tmp_path / "one")


def test_another_study_does_not_go_on_in_the_same_folder(finished):
    before = tree_of(finished[0])
    other = with_overrides(small(), ["steps=3"])
    with pytest.raises(UserError, match=r"holds another study"):
        run_study(other, finished[0], quiet=True)
    assert tree_of(finished[0]) == before


def test_a_study_that_has_got_more_arms_goes_on_in_its_folder(finished, tmp_path):
    """Whoever adds a method runs that alone; one arm less, or changed, is another study."""
    first, second, third = three_arms()
    folder = tmp_path / "study"
    studies.prepare(small(arms=(first, third)), folder)
    before = (folder / "arms.json").read_bytes()
    with pytest.raises(UserError, match="holds another study"):
        studies.prepare(small(arms=(first, second)), folder)
    changed = with_overrides(small(), ["steps=3"])
    with pytest.raises(UserError, match="holds another study"):
        studies.prepare(changed, folder)
    assert (folder / "arms.json").read_bytes() == before
    studies.prepare(small(), folder)
    assert (folder / "arms.json").read_bytes() == (finished[0] / "arms.json").read_bytes()
    with pytest.raises(UserError, match="holds another study"):
        studies.prepare(small(arms=(first, third)), folder)


def broken(config):
    return dataclasses.replace(config, model=ToyBase("mars"))


# Arms of one objective share one process; starting processes takes most of these tests' time.
def one_process() -> tuple[Arm, Arm]:
    return three_arms()[:2]


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_fails_is_reported_and_the_others_stay(workers, tmp_path):
    base, sdpo = one_process()
    failing = dataclasses.replace(sdpo, config=broken(sdpo.config))
    # The base's programs are already compiled in this process, so it may finish first.
    study = small(workers, (base, failing) if workers == 1 else (failing, base))
    with pytest.raises(UserError, match="toy base 'mars'") as caught:
        run_study(study, tmp_path / "study", quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study" / "summary.json").exists()
    assert not (tmp_path / "study" / "runs" / "main-sdpo-s0").exists()
    if workers == 1:
        assert is_finished(base, tmp_path / "study")
    else:
        assert "Traceback" in "".join(caught.value.__notes__)  # the worker's, for --debug


@pytest.mark.long
def test_a_worker_that_dies_is_reported(tmp_path, monkeypatch):
    """As if killed by the system for lack of memory: no exception reaches the parent."""
    monkeypatch.setattr(workers, "worker", dies)
    with pytest.raises(RuntimeError, match="ended with exit code 7"):
        run_study(small(2, one_process()), tmp_path / "study", quiet=True)


@pytest.mark.long
def test_a_worker_with_a_fault_of_ours_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "worker", faulty)
    with pytest.raises(RuntimeError, match="a worker of the study failed: TypeError: oh") as caught:
        run_study(small(2, one_process()), tmp_path / "study", quiet=True)
    assert "Traceback" in "".join(caught.value.__notes__)


# ------------------------------------------------------------------------------ without running


@pytest.mark.parametrize("profile", ["quick", "full"])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_shares_are_whole_balanced_and_compile_each_objective_once(profile, workers):
    study = load_study_recipe("toy_study", profile)
    shares = share_out(list(study.arms), workers)
    count = collections.Counter(arm.name for share in shares for arm in share)
    assert count == collections.Counter(arm.name for arm in study.arms)
    assert 1 <= len(shares) <= workers
    homes = collections.defaultdict(set)
    for index, share in enumerate(shares):
        for arm in share:
            homes[arm.config.objective, arm.config.teacher].add(index)
    if workers <= len(homes):
        assert all(len(places) == 1 for places in homes.values())
    else:  # a group is divided rather than leave a core idle
        assert len(shares) == workers
    if workers == 2:
        # No share outweighs the other by more than one group of equal objective.
        groups = collections.defaultdict(list)
        for arm in study.arms:
            groups[arm.config.objective, arm.config.teacher].append(arm)
        light, heavy = sorted(work(share) for share in shares)
        assert heavy - light <= max(work(group) for group in groups.values())


def test_two_arms_of_one_name_would_share_a_folder():
    base, sdpo, _ = three_arms()
    with pytest.raises(UserError, match="several arms have the same name, such as main-sdpo-s0 "):
        small(arms=(base, sdpo, sdpo))
    with pytest.raises(UserError, match="several arms"):
        with_overrides(load_study_recipe("toy_study", "full"), ["seed=5"])


def test_overrides_reach_trained_arms_and_the_evaluation_of_all():
    study = with_overrides(small(), ["optimizer.peak_lr=0.5", "evaluation.samples=3"])
    assert {arm.config.evaluation.samples for arm in study.arms} == {3}
    assert [arm.config.optimizer.peak_lr for arm in study.arms[1:]] == [0.5, 0.5]
    assert with_overrides(small(), ["steps=9"]).arms[0].config.steps == 0
    assert with_overrides(small(), ["teacher=EMA(0.1)"]).arms[1].config.teacher == EMA(0.1)


def test_workers_inherit_one_core_and_the_parent_keeps_its_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    first, second, third = workers.places(3, (), [4, 6])
    assert [place.cores for place in (first, second, third)] == [(4,), (6,), (4,)]
    with workers.environment(first.environment):
        assert "intra_op_parallelism_threads=1" in os.environ["XLA_FLAGS"]
        assert "--xla_dump_to=x" in os.environ["XLA_FLAGS"]
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    monkeypatch.delenv("XLA_FLAGS")
    with workers.environment(first.environment):
        pass
    assert "XLA_FLAGS" not in os.environ
