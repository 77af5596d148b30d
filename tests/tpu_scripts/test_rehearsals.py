"""Every script against a gcloud that plays what a service does: the worker side runs for real."""

import signal
import subprocess
import time

import pytest
from tpu_transcripts import SCRIPTS

pytestmark = pytest.mark.long

ACTIVE = {"states": ["ACTIVE"]}
COMMAND = ("sdpo_math", "--student", "Qwen3-8B")


def test_watch_takes_two_hosts_from_nothing_to_a_finished_run(make_world):
    world = make_world(hosts=2, accelerator="v5p-16")
    world.plan({"states": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]})
    code, said, _ = world.run("watch", *COMMAND, "--set", "a=B('x y')", DATA="aime24")
    assert code == 0
    assert "the run is finished: gs://bucket/run" in said
    wanted = (
        "train sdpo_math --student Qwen3-8B --set a=B('x y') --run-dir gs://bucket/run --resume"
    )
    assert sorted(world.trained()) == [f"0 {wanted}", f"1 {wanted}"]
    assert said.count("jaxdistill data prepare aime24") == 2
    assert len(world.calls("queued-resources create")) == 1
    assert "xla_tpu_megacore_fusion_allow_ags=false" in (world.folder / "environment.1").read_text()


def test_a_slice_that_is_preempted_in_setup_is_replaced_and_set_up_from_the_same_wheel(make_world):
    world = make_world()
    world.plan(ACTIVE | {"preempted": "prepare"}, ACTIVE)
    code, _, errors = world.run("watch", *COMMAND)
    assert code == 0
    assert "installing: the slice is no longer ready (gone: SUSPENDED" in errors
    deleted, created = (world.calls(f"queued-resources {verb}") for verb in ("delete", "create"))
    assert (len(deleted), len(created)) == (1, 2)
    assert "--force" in deleted[0]
    assert (
        len({call.split("worker/prepare")[1] for call in world.calls("worker/prepare jaxdistill-")})
        == 1
    )
    assert len(world.trained()) == 1


def test_a_run_that_is_preempted_is_resumed_on_a_new_slice(make_world):
    world = make_world(hosts=2, accelerator="v5p-16")
    world.made(ACTIVE | {"preempted": "status 4"}, ACTIVE, ends=("stay", "finish"))
    code, said, _ = world.run("watch", *COMMAND)
    assert code == 0
    assert [line.split()[0] for line in sorted(world.trained())] == ["0", "0", "1", "1"]
    assert all(line.endswith("--resume") for line in world.trained())
    assert "attempt 1 of 20" in said


def test_a_connection_that_drops_while_the_run_starts_starts_it_once(make_world):
    world = make_world(hosts=2, accelerator="v5p-16")
    world.made(errors={"drop start": ["dropped", "dropped"], "drop status": [None, "dropped"]})
    code, said, errors = world.run("run", *COMMAND)
    assert code == 0, errors
    assert len(world.calls("worker/start")) == 3
    assert len(world.trained()) == 2
    assert said.count("was started before") == 4
    assert "the run is finished" in said


def test_a_request_without_capacity_stays_in_the_queue_and_is_waited_for_again(make_world):
    world = make_world()
    world.plan({"states": ["WAITING_FOR_RESOURCES"] * 3 + ["ACTIVE"]})
    code, _, errors = world.run("create", WAIT_MINUTES="0")
    assert code == 75
    assert "still WAITING_FOR_RESOURCES after 0 minutes; the request stays" in errors
    code, said, _ = world.run("create")
    assert code == 0
    assert "sdpo exists (WAITING_FOR_RESOURCES)" in said
    assert len(world.calls("queued-resources create")) == 1


def test_a_request_that_failed_is_deleted_before_the_next_one(make_world):
    world = make_world()
    full = 'There is no more capacity in the zone "us-east5-a"; you can try in another zone'
    world.plan({"states": ["FAILED"], "message": full}, ACTIVE)
    code, _, errors = world.run("create")
    assert code == 75
    assert "no capacity for v6e-8 in us-east5-a at the moment" in errors
    assert world.run("create")[0] == 0
    verbs = [call.split()[4] for call in world.calls("queued-resources")]
    assert verbs.index("delete") < len(verbs) - 1 - verbs[::-1].index("create")


def test_what_the_service_refuses_for_good_is_one_line_and_exit_code_2(make_world):
    denied = "ERROR: (x) PERMISSION_DENIED: "
    zone = f"{denied}Permission denied on 'locations/us-east5-a' (or it may not exist)."
    project = f"{denied}Cloud TPU API has not been used in project p before or it is disabled"
    nobody = "ERROR: (x) NOT_FOUND: The resource 'projects/p' was not found: project not found"
    quota = "Quota limit 'TPUV6EPreemptiblePerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0"
    kind = 'CloudTpu received an invalid AcceleratorType. "v6e-8" for zone "us-east5-a" is not'
    login = "ERROR: (x) You do not currently have an active account selected."
    world = make_world()
    for verb, text, reason in (
        ("describe", zone, "ZONE=us-east5-a does not exist"),
        ("describe", project, "gcloud services enable tpu.googleapis.com"),
        ("describe", nobody, "PROJECT=p does not exist"),
        ("describe", login, "gcloud auth login"),
        ("create", quota, "the quota of PROJECT=p does not suffice"),
        ("create", kind, "ZONE=us-east5-a has no ACCELERATOR=v6e-8"),
    ):
        world.plan(ACTIVE, errors={verb: [text] * 9})
        code, _, errors = world.run("create")
        assert code == 2, text
        assert reason in errors.splitlines()[-1]
        assert not world.told()["exists"]


def test_a_slice_of_this_name_is_kept_and_another_kind_is_refused(make_world):
    world = make_world()
    world.made()
    code, said, _ = world.run("create")
    assert (code, "sdpo exists (ACTIVE, node READY)" in said) == (0, True)
    code, _, errors = world.run("create", ACCELERATOR="v6e-4")
    assert (code, "sdpo exists as v6e-8, not ACCELERATOR=v6e-4" in errors) == (2, True)
    assert not world.calls("queued-resources create")


def test_a_run_that_stopped_itself_is_not_resumed_until_the_command_changes(make_world):
    world = make_world()
    world.made(ends=("3", "finish"))
    for _ in range(2):
        code, said, _ = world.run("watch", *COMMAND)
        assert code == 3
        assert "ended with exit code 3, which resuming would repeat" in said
        assert "w-0: step 1 of 2" in said
    assert len(world.trained()) == 1
    # The exit code of the first attempt is not taken for that of the second.
    assert world.run("watch", *COMMAND, "--set", "optimizer.peak_lr=1e-6")[0] == 0
    assert len(world.trained()) == 2


def test_watch_gives_up_after_faults_in_a_row_and_says_why(make_world):
    world = make_world()
    world.made(ends=("1", "1", "1", "finish"))
    code, said, _ = world.run("watch", *COMMAND, MAX_FAILURES="2")
    assert code == 1
    assert "ended with exit code 1, 2 times in a row (MAX_FAILURES)" in said
    assert "costs money" in said
    assert len(world.trained()) == 2


def test_watch_gives_up_when_every_slice_is_preempted(make_world):
    world = make_world()
    world.plan(*[ACTIVE | {"preempted": "status 1"}] * 3)
    code, said, _ = world.run("watch", *COMMAND, MAX_ATTEMPTS="2", TRIES="1")
    assert code == 1
    assert "all 2 attempts are used (MAX_ATTEMPTS)" in said
    assert len(world.calls("queued-resources create")) == 2


def test_watch_makes_no_slice_while_it_cannot_tell_whether_the_run_is_finished(make_world):
    world = make_world()
    world.plan(ACTIVE, errors={"storage": ["ERROR: 503 Service Unavailable"] * 9})
    code, said, _ = world.run("watch", *COMMAND, WATCH_TRIES="2")
    assert code == 1
    assert "gs://bucket/run cannot be read" in said
    assert not world.calls("create")


def test_an_interrupted_watch_leaves_the_run_and_the_next_one_takes_it_up(make_world):
    world = make_world()
    world.made(ends=("stay", "finish"))
    first = world.start("watch", *COMMAND)
    wait_for(lambda: world.trained() and world.calls("worker/start"))
    code, _, errors = world.run("watch", *COMMAND)
    assert (code, "watches sdpo already" in errors) == (2, True)
    code, _, errors = world.run("delete", CONFIRM="sdpo")
    assert (code, "would make it again; end it first" in errors) == (2, True)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=30)[0]
    assert (first.returncode, "the run continues" in said) == (130, True)
    second = world.start("watch", *COMMAND)
    asked = len(world.calls("worker/status"))
    wait_for(lambda: len(world.calls("worker/status")) > asked + 1)
    assert len(world.trained()) == 1
    # SIGTERM to the run: it saves, ends with 0 and is not finished, so that watch resumes it.
    home = world.folder / "worker0" / "jaxdistill_tpu"
    (pid,) = home.glob("attempts/*/child")
    subprocess.run(["kill", pid.read_text().strip()], check=True)
    said = second.communicate(timeout=30)[0]
    assert (second.returncode, len(world.trained())) == (0, 2)
    assert "the run was stopped and has saved; resuming" in said


def wait_for(happened):
    for _ in range(600):
        if happened():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_hosts_that_outlive_a_failed_one_are_stopped_and_its_code_is_reported(make_world):
    world = make_world(hosts=2, accelerator="v5p-16")
    world.made(ends=(("stay", "3"),))
    code, said, _ = world.run("run", *COMMAND, STRAGGLER_SECONDS="0")
    assert code == 3
    assert "worker w-0 attempt=" in said
    assert [line.split()[3:5] for line in said.splitlines() if line.startswith("  worker")][
        -2:
    ] == [
        ["state=ended", "code=0"],
        ["state=ended", "code=3"],
    ]
    assert "w-1: step 1 of 2" in said


def test_a_token_reaches_the_run_and_no_command_line_or_file(make_world):
    world = make_world()
    world.made()
    assert world.run("run", *COMMAND, HF_TOKEN_SECRET="hub")[0] == 0
    assert "HF_TOKEN=a-token-of-the-hub" in (world.folder / "environment.0").read_text()
    assert not world.calls("a-token")
    home = world.folder / "worker0"
    texts = [path.read_text() for path in home.rglob("*") if path.is_file()]
    assert not any("a-token-of" in text for text in texts)


def test_a_recipe_in_a_file_runs_on_every_worker_and_a_changed_one_is_another_command(make_world):
    world = make_world(hosts=2, accelerator="v5p-16")
    world.made(ends=("2", "finish"))
    recipe = world.folder / "my recipes" / "mine.py"
    recipe.parent.mkdir()
    command = ("my recipes/mine.py:grpo", "--set", "steps=2")
    for text, code in (("a mistake", 2), ("a mistake", 2), ("a recipe", 0)):
        recipe.write_text(text)
        assert world.run("watch", *command)[0] == code
    wanted = "train mine.py:grpo --set steps=2 --run-dir gs://bucket/run --resume"
    assert sorted(world.trained()) == [f"{worker} {wanted}" for worker in (0, 0, 1, 1)]
    for worker in range(2):
        copy = world.folder / f"worker{worker}/jaxdistill_tpu/mine.py"
        assert copy.read_text() == "a recipe"


def test_a_strange_process_that_holds_the_tpu_is_named_and_left_alone(make_world):
    world = make_world()
    world.made()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        world.write("holders", f" {stranger.pid}")
        code, said, _ = world.run("run", *COMMAND)
        assert code == 2
        assert f"w-0: process {stranger.pid} holds the TPU: sleep 60" in said
        assert stranger.poll() is None
        stranger.kill()
    assert not world.trained()


def test_delete_wants_the_name(make_world):
    world = make_world()
    world.made()
    code, _, errors = world.run("delete", answer="spdo\n")
    assert (code, "'spdo' is not sdpo; nothing was deleted" in errors) == (2, True)
    assert not world.calls("delete")
    assert world.run("delete", answer="sdpo\n")[0] == 0
    assert not world.told()["exists"]
    assert world.run("delete")[0] == 0


def test_fetch_brings_the_run_without_checkpoints_and_the_logs_of_all_workers(make_world):
    world = make_world(hosts=2, accelerator="v5p-16")
    world.made()
    run = world.folder / "bucket/bucket/run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}")
    for worker in range(2):
        logs = world.folder / f"worker{worker}/jaxdistill_tpu/attempts/one"
        logs.mkdir(parents=True)
        (logs / "log").write_text(f"of {worker}")
    code, _, errors = world.run("fetch")
    assert code == 0, errors
    assert (world.folder / "runs/sdpo/metrics.jsonl").exists()
    assert not (world.folder / "runs/sdpo/checkpoints").exists()
    for worker in range(2):
        log = world.folder / f"runs/sdpo/logs/worker{worker}/attempts/one/log"
        assert log.read_text() == f"of {worker}"


def test_an_instance_group_is_made_used_and_deleted_in_the_order_of_its_parts(make_world):
    world = make_world(hosts=2, accelerator="v5p-16")
    world.plan({"states": ["NO VMS", "STAGING", "RUNNING"]})
    settings = {"API": "group"}
    assert world.run("create", **settings)[0] == 0
    assert world.run("setup", **settings)[0] == 0
    code, *_ = world.run("run", *COMMAND, **settings)
    assert (code, len(world.trained())) == (0, 2)
    assert world.run("delete", CONFIRM="sdpo", **settings)[0] == 0
    deleted = [call.split()[2] for call in world.calls(" delete ")]
    assert deleted[-3:] == ["instance-groups", "instance-templates", "resource-policies"]


def test_bad_parameters_are_one_line_before_anything_is_asked(make_world):
    world = make_world()
    world.plan(ACTIVE)
    token = "hf_" + "a1B2" * 8
    for script, arguments, settings, wanted in (
        ("create", (), {"NAME": "my run"}, "NAME must be lower-case letters"),
        ("create", (), {"NAME": None}, "NAME is not set"),
        ("create", (), {"PROJECT": None}, "PROJECT is not set"),
        ("create", (), {"ZONE": "us-east5"}, "ZONE must be a zone such as us-east5-a"),
        ("create", (), {"ACCELERATOR": "v6e-12"}, "ACCELERATOR must be a row of"),
        ("create", (), {"CAPACITY": "cheap"}, "CAPACITY must be one of: spot reserved"),
        ("create", (), {"CAPACITY": "flex-start"}, "needs MAX_RUN"),
        ("create", (), {"ACCELERATOR": "tpu7x-8", "API": "queued"}, "API must be one of: group"),
        ("create", ("--force",), {}, "unknown argument '--force'"),
        ("setup", (), {"WHEEL": "dist/no.whl"}, "WHEEL=dist/no.whl does not exist"),
        ("run", (), {}, "no recipe"),
        ("run", COMMAND, {"RUN_DIR": None}, "RUN_DIR is not set"),
        ("run", COMMAND, {"RUN_DIR": "runs/x"}, "RUN_DIR must be gs://BUCKET/RUN or"),
        ("run", COMMAND, {"RUN_DIR": "gs://Bucket/run"}, "a bucket's name is lower-case"),
        ("watch", COMMAND, {"RUN_DIR": "gs://bucket/run*"}, "RUN_DIR must be gs://BUCKET/RUN or"),
        ("fetch", (), {"RUN_DIR": "gs://bucket/a/../b"}, "RUN_DIR must be gs://BUCKET/RUN"),
        ("fetch", (), {"RUN_DIR": "gs://bucket//"}, "RUN_DIR must be gs://BUCKET/RUN"),
        ("run", COMMAND, {"STRAGGLER_SECONDS": "08"}, "STRAGGLER_SECONDS must be a whole number"),
        ("create", (), {"POLL_SECONDS": "."}, "POLL_SECONDS must be a number"),
        ("run", ("mine.py:grpo",), {}, "the recipe mine.py does not exist on this machine"),
        ("watch", (*COMMAND, "--show"), {}, "--show trains nothing; run it on this machine"),
        ("run", (*COMMAND, "--run-dir", "x"), {}, "set RUN_DIR instead of --run-dir"),
        ("run", (*COMMAND, f"x={token}"), {}, "looks like a secret"),
        ("run", COMMAND, {"HF_TOKEN_SECRET": token}, "the name of a secret"),
        ("watch", COMMAND, {"MAX_ATTEMPTS": "many"}, "MAX_ATTEMPTS must be a whole number"),
    ):
        code, _, errors = world.run(script, *arguments, **settings)
        assert code == 2, (script, settings, errors)
        assert errors.count("\n") == 1
        assert wanted in errors
        assert token not in errors
    assert not world.calls()


def test_a_start_that_reached_one_host_only_is_started_again_on_all(make_world):
    world = make_world(hosts=2, accelerator="v5p-16")
    world.made(ends=(("stay", "finish"), ("finish", "finish")))
    job = "job_run_dir=x\njob_secret=''\njob_arguments=(train)\n"
    alone = world.folder / "worker0/jaxdistill_tpu"
    (alone / "job.old").write_text(job)
    program = f"{alone}/worker/start old"
    settings = world.environment(HOME=str(world.folder / "worker0"), WORKER="0")
    settings["PATH"] = f"{world.folder}/worker_bin:/usr/bin:/bin"
    subprocess.run(["bash", "-c", program], env=settings, cwd=alone.parent, check=True)
    code, said, errors = world.run("watch", *COMMAND, STRAGGLER_SECONDS="0")
    assert code == 0, errors
    assert "not all hosts take part in the run" in said
    assert [line[0] for line in sorted(world.trained())] == ["0", "0", "1"]


def test_a_slurm_job_requeues_itself_after_a_stop_and_not_after_an_end(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@" >>srun.calls\neval "$AS_SRUN"\n')
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >>requeued\n')
    for program in ("srun", "scontrol"):
        (tmp_path / program).chmod(0o755)
    own = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)}
    own |= {"SLURM_JOB_NAME": "sdpo", "SLURM_JOB_ID": "7"}
    script = SCRIPTS / "slurm.sbatch"
    finish = "mkdir -p runs/sdpo && touch runs/sdpo/finished.json"
    codes = [
        subprocess.run(
            ["bash", script, *COMMAND], env=own | {"AS_SRUN": end}, cwd=tmp_path
        ).returncode
        for end in ("exit 0", "exit 3", finish, "exit 1")
    ]
    assert codes == [0, 3, 0, 0]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    calls = (tmp_path / "srun.calls").read_text().splitlines()
    assert len(calls) == 3  # the fourth found a finished run
    assert calls[0].endswith(
        f"train sdpo_math --student Qwen3-8B --run-dir {tmp_path}/runs/sdpo --resume"
    )
