"""Stands in for gcloud on PATH: records its calls and plays a world in which slices come and go.

`$WORLD/world.json` is the plan. A life is what one `create` makes: the states that describing it
shows, one after another, and when it is preempted. ssh runs its command for real, in a home folder
per worker, so that the scripts' worker side runs as it would on a slice. The texts of errors are
gcloud's and the service's own.
"""

# Modules are imported where they are needed: a rehearsal starts this program dozens of times.
import json
import os
import sys

WORLD = os.environ["WORLD"]
PREEMPTED = (
    'ERROR: (gcloud.compute.tpus.tpu-vm.ssh) This TPU has terminal state "PREEMPTED", so it '
    "cannot be used anymore."
)


def main(words):
    with open(f"{WORLD}/calls", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    words = [word for word in words if word not in ("alpha", "beta", "--quiet")]
    plan = json.loads(read(f"{WORLD}/world.json"))
    told = json.loads(read(f"{WORLD}/told.json"))
    flags = {w.split("=", 1)[0]: w.split("=", 1)[-1] for w in words if w.startswith("--")}
    names = [word for word in words if not word.startswith("--")]
    verb = next(v for v in VERBS if names[: len(v.split())] == v.split())
    try:
        return VERBS[verb](World(plan, told), names[len(verb.split()) :], flags)
    finally:
        with open(f"{WORLD}/told.json", "w") as file:
            json.dump(told, file)


def read(path):
    with open(path) as file:
        return file.read()


class World:
    def __init__(self, plan, told):
        self.plan, self.told = plan, told

    @property
    def life(self):
        return self.plan["lives"][self.told["life"]]

    def homes(self):
        return [f"{WORLD}/worker{i}" for i in range(self.plan["hosts"])]

    def end(self):
        """The slice is preempted: its processes and disks are gone."""
        import contextlib
        import glob
        import shutil
        import signal

        self.told["ended"] = True
        for home in self.homes():
            for pid in glob.glob(f"{home}/jaxdistill_tpu/attempts/*/pid"):
                with contextlib.suppress(ProcessLookupError, ValueError):
                    # The attempt leads a session of its own (setsid), with the run in it.
                    os.killpg(os.getpgid(int(read(pid))), signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)


def fail(text, code=1):
    print(text, file=sys.stderr)
    return code


def take_error(world, verb):
    """The next error planned for a verb; each is told once."""
    number = world.told["errors"].get(verb, 0)
    planned = world.plan.get("errors", {}).get(verb, [])
    world.told["errors"][verb] = number + 1
    return planned[number] if number < len(planned) else None


def describe(world, names, flags):
    if error := take_error(world, "describe"):
        return fail(error)
    if not world.told["exists"]:
        return fail(
            "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource "
            f"'projects/p/locations/us-east5-a/queuedResources/{names[0]}' was not found"
        )
    states = world.life["states"]
    state = states[min(world.told["looks"], len(states) - 1)]
    world.told["looks"] += 1
    if world.told["ended"]:
        state = world.life.get("after", "SUSPENDED")
    print(f"{state}|{world.plan['type']}|{world.life.get('message', '')}")
    return 0


def describe_node(world, names, flags):
    print("PREEMPTED" if world.told["ended"] else "READY")
    return 0


def create(world, names, flags):
    if error := take_error(world, "create"):
        return fail(error)
    if world.told["exists"]:
        return fail(
            "ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource "
            f"'projects/p/locations/us-east5-a/queuedResources/{names[0]}' already exists"
        )
    import shutil

    world.told.update(exists=True, ended=False, looks=0, life=world.told["life"] + 1, asked=0)
    for home in world.homes():
        shutil.rmtree(home, ignore_errors=True)
        os.mkdir(home)
    return 0


def delete(world, names, flags):
    if not world.told["exists"]:
        return fail("ERROR: NOT_FOUND: Resource was not found")
    world.end()
    world.told["exists"] = False
    return 0


def ssh(world, names, flags):
    command = flags["--command"]
    if world.told["ended"]:
        return fail(PREEMPTED)
    what = next((w for w in ("prepare", "start", "status") if f"worker/{w}" in command), "")
    world.told["asked"] += what == "status"
    preempted = world.life.get("preempted")
    at = f"status {world.told['asked']}" if what == "status" else what
    if preempted == at:
        world.end()
        return fail("client_loop: send disconnect: Broken pipe", 255)
    codes = [run_on(home, i, command) for i, home in enumerate(world.homes())]
    if take_error(world, f"drop {what}"):
        return fail("Connection to 10.0.0.2 closed by remote host.", 255)
    return next((code for code in codes if code), 0)


def run_on(home, number, command):
    environment = {
        "HOME": home,
        "WORKER": str(number),
        "WORLD": WORLD,
        "PATH": f"{WORLD}/worker_bin:/usr/bin:/bin",
        "TPU_DEVICES": f"{WORLD}/tpu",
        "TPU_LOCK": f"{home}/libtpu_lockfile",
        "RELEASE_SECONDS": "2",
    }
    words = ["bash", "-c", f"cd {home} && {{ {command}\n}}"]
    process = os.posix_spawn("/bin/bash", words, environment)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def scp(world, names, flags):
    if world.told["ended"]:
        return fail(PREEMPTED)
    if error := take_error(world, "scp"):
        return fail(error, 255)
    import shutil

    *sources, destination = names
    if ":" in destination:
        for home in world.homes():
            for source in sources:
                shutil.copy(source, f"{home}/{destination.split(':')[1]}")
        return 0
    source = f"{world.homes()[int(flags['--worker'])]}/{sources[0].split(':')[1]}"
    shutil.copytree(source, f"{destination}/{os.path.basename(source)}", dirs_exist_ok=True)
    return 0


def in_bucket(address):
    return f"{WORLD}/bucket/{address.removeprefix('gs://')}"


def storage_cat(world, names, flags):
    if error := take_error(world, "storage"):
        return fail(error)
    if not os.path.exists(in_bucket(names[0])):
        return fail(f"ERROR: (gcloud.storage.cat) The following URLs matched no objects: {names}")
    print(read(in_bucket(names[0])))
    return 0


def storage_rsync(world, names, flags):
    import shutil

    source = in_bucket(names[0])
    if not os.path.exists(source):
        return fail("ERROR: (gcloud.storage.rsync) Did not find existing container")
    without = shutil.ignore_patterns("checkpoints") if "--exclude" in flags else None
    shutil.copytree(source, names[1], ignore=without, dirs_exist_ok=True)
    return 0


def list_instances(world, names, flags):
    if not world.told["exists"]:
        return fail(
            "ERROR: (gcloud.compute.instance-groups.managed.list-instances) Could not fetch "
            f"resource:\n - The resource 'projects/p/zones/us-east5-a/instanceGroupManagers/"
            f"{names[0]}' was not found"
        )
    if world.told["sized"]:
        states = world.life["states"]
        state = states[min(world.told["looks"], len(states) - 1)]
        world.told["looks"] += 1
        # The VMs are listed a moment after the group was resized.
        for i in range(0 if state == "NO VMS" else world.plan["hosts"]):
            print(f"{names[0]}-{i}|{'TERMINATED' if world.told['ended'] else state}|NONE|")
    return 0


def resize(world, names, flags):
    world.told["sized"] = True
    return 0


def ssh_to_vm(world, names, flags):
    number = int(names[0].rsplit("-", 1)[1])
    if world.told["ended"]:
        return fail("ssh: connect to host 10.0.0.2 port 22: Connection timed out", 255)
    return run_on(world.homes()[number], number, flags["--command"])


def scp_to_vm(world, names, flags):
    import shutil

    *sources, destination = names
    vm, folder = destination.split(":")
    for source in sources:
        shutil.copy(source, f"{world.homes()[int(vm.rsplit('-', 1)[1])]}/{folder}")
    return 0


def nothing(world, names, flags):
    return 0


QUEUED, GROUP = "compute tpus queued-resources", "compute instance-groups managed"
VERBS = {
    f"{QUEUED} describe": describe,
    f"{QUEUED} create": create,
    f"{QUEUED} delete": delete,
    "compute tpus tpu-vm describe": describe_node,
    "compute tpus tpu-vm ssh": ssh,
    "compute tpus tpu-vm scp": scp,
    "compute resource-policies": nothing,
    "compute instance-templates": nothing,
    f"{GROUP} create": create,
    f"{GROUP} delete": delete,
    f"{GROUP} resize": resize,
    f"{GROUP} list-instances": list_instances,
    "compute ssh": ssh_to_vm,
    "compute scp": scp_to_vm,
    "storage cat": storage_cat,
    "storage rsync": storage_rsync,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
