# shellcheck shell=bash
# A slice and its workers, for both services: queued resources of the Cloud TPU API (API=queued) and
# managed instance groups of Compute Engine (API=group). README.md cites a page for every flag.
# shellcheck disable=SC2034 # the scripts read what is set here

source "${BASH_SOURCE[0]%/*}/settings.sh"

readonly FOLDER=jaxdistill_tpu # on the workers, below the home folder
# A connection that is silent for two minutes is dropped and tried again, instead of hanging.
readonly SSH_FLAGS=(--ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4 --ssh-flag=-oConnectTimeout=30)

where() { WHERE=(--project="$PROJECT" --zone="$ZONE"); }

# Sets STATE to none, empty, waiting, ready, leaving, gone or failed, and DETAIL to the service's
# own words. Ends the script if the service cannot be asked TRIES times in a row.
look_at_slice() {
    local try
    for ((try = 1; ; try++)); do
        STATE="" DETAIL=""
        if "look_at_$API"; then return; fi
        explain "$FAILURE"
        if ((CODE == USER_MISTAKE || try >= ${PATIENCE:-$TRIES})); then die "$CODE" "$REASON"; fi
        pause
    done
}

is_absent() { [[ $FAILURE == *NOT_FOUND* || $FAILURE == *"was not found"* || $FAILURE == *"HTTP 404"* ]]; }
# A zone or project that does not exist is "not found" as well.
names_no_slice() { [[ $FAILURE != *"/$NAME"* ]]; }

look_at_queued() {
    where
    if ! ask "ACTIVE|$ACCELERATOR" gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" \
        --format='value[separator="|"](state.state,tpu.nodeSpec[0].node.acceleratorType,state.failedData.error.message)'; then
        if ! is_absent || names_no_slice; then return 1; fi
        STATE=none
        return
    fi
    local state error
    IFS='|' read -r state KIND error <<<"$ANSWER"
    DETAIL="$state${error:+: $error}"
    case $state in
    ACTIVE) look_at_node ;;
    FAILED) STATE=failed ;;
    SUSPENDED) STATE=gone ;;
    SUSPENDING | DELETING) STATE=leaving ;;
    *) STATE=waiting ;; # CREATING, ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING
    esac
}

look_at_node() {
    if ! ask READY gcloud compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" --format='value(state)'; then
        # The node goes before its request becomes SUSPENDED.
        is_absent && STATE=gone DETAIL="ACTIVE, but without its node"
        return
    fi
    DETAIL="ACTIVE, node $ANSWER"
    case $ANSWER in
    READY) STATE=ready ;;
    PREEMPTED | TERMINATED | STOPPED | HIDDEN) STATE=gone ;;
    STOPPING | DELETING | HIDING) STATE=leaving ;;
    *) STATE=waiting ;; # CREATING, STARTING, RESTARTING, REIMAGING, REPAIRING, UNHIDING, UNKNOWN
    esac
}

look_at_group() {
    where
    local vm state action error made="" i
    for ((i = 0; i < HOSTS; i++)); do made+="$NAME-vm$i|RUNNING|NONE"$'\n'; done
    if ! ask "$made" gcloud compute instance-groups managed list-instances "$NAME" "${WHERE[@]}" \
        --format='value[separator="|"](instance.basename(),instanceStatus,currentAction,lastAttempt.errors.errors[0].message)'; then
        if ! is_absent || names_no_slice; then return 1; fi
        STATE=none
        return
    fi
    KIND=$ACCELERATOR VMS=()
    local running=0 down=0 coming=0
    while IFS='|' read -r vm state action error; do
        [[ $vm ]] || continue
        VMS+=("$vm")
        DETAIL+="${DETAIL:+, }$vm $state${error:+ ($error)}"
        case $state in
        RUNNING) running=$((running + 1)) ;;
        STOP* | TERMINATED | SUSPEND* | DEPROVISIONING) down=$((down + 1)) ;;
        *) coming=$((coming + 1)) ;;
        esac
        case $error in *[Qq]uota*exceeded* | *QUOTA_EXCEEDED*) STATE=failed ;; esac
    done <<<"$ANSWER"
    # A VM of a slice that was whole and now lacks one was deleted: the slice is of no use.
    if [[ $STATE == failed ]]; then return; fi
    if ((${#VMS[@]} == 0)); then
        STATE=empty DETAIL="a group without VMs"
    elif ((down > 0)); then
        STATE=gone
    elif ((running == HOSTS)); then
        STATE=ready
    elif ((running > 0 && coming == 0)); then
        STATE=gone DETAIL="$running of $HOSTS VMs: $DETAIL"
    else
        STATE=waiting
    fi
}

internal() { INTERNAL=(); [[ $INTERNAL_IPS == no ]] || INTERNAL=(--internal-ip); }

# on_all COMMAND: on every worker at once. 0 if all succeed.
on_all() {
    where && internal
    if [[ $API == queued ]]; then
        call gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker=all --quiet "${INTERNAL[@]}" "${SSH_FLAGS[@]}" --command="$1"
        return
    fi
    on_vms ssh_to_vm "$1"
}

ssh_to_vm() { # VM COMMAND
    call gcloud compute ssh "$1" "${WHERE[@]}" --quiet "${INTERNAL[@]}" "${SSH_FLAGS[@]}" --command="$2"
}

scp_to_vm() { # VM FOLDER FILE...
    local vm=$1 folder=$2
    shift 2
    call gcloud compute scp "$@" "$vm:$folder/" "${WHERE[@]}" --quiet "${INTERNAL[@]}"
}

# on_vms FUNCTION ARGUMENT...: for every VM of the group at once. A worker's own verdict (2) is
# returned rather than another's broken connection.
on_vms() {
    local function=$1 vm job jobs=() status=0 code
    shift
    for vm in "${VMS[@]}"; do
        # Without a key, gcloud makes one and adds it to the project; not several at once.
        if [[ $DRY_RUN || ! -e $HOME/.ssh/google_compute_engine ]]; then
            code=0
            "$function" "$vm" "$@" || code=$?
            ((code == 0 || status == USER_MISTAKE)) || status=$code
            continue
        fi
        "$function" "$vm" "$@" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do
        code=0
        wait "$job" || code=$?
        ((code == 0 || status == USER_MISTAKE)) || status=$code
    done
    return "$status"
}

copy_to_all() { # FOLDER FILE...
    where && internal
    local folder=$1
    shift
    if [[ $API == queued ]]; then
        call gcloud compute tpus tpu-vm scp "$@" "$NAME:$folder/" "${WHERE[@]}" --worker=all --quiet "${INTERNAL[@]}"
        return
    fi
    on_vms scp_to_vm "$folder" "$@"
}

# copy_from INDEX SOURCE DESTINATION: one worker's file to this machine.
copy_from() {
    where && internal
    if [[ $API == queued ]]; then
        call gcloud compute tpus tpu-vm scp "$NAME:$2" "$3" "${WHERE[@]}" --worker="$1" --quiet "${INTERNAL[@]}" --recurse
        return
    fi
    call gcloud compute scp "${VMS[$1]}:$2" "$3" "${WHERE[@]}" --quiet "${INTERNAL[@]}" --recurse
}

# insist WHAT COMMAND...: tries again, as ssh and scp fail now and then; everything that is run this
# way may be repeated. A worker's own verdict (2) and a slice that has gone end the trying.
insist() {
    local what=$1 try status
    shift
    for ((try = 1; ; try++)); do
        status=0
        "$@" || status=$?
        if ((status == 0)); then return 0; fi
        if ((status == USER_MISTAKE)); then return "$USER_MISTAKE"; fi
        look_at_slice
        [[ $STATE == ready ]] || die "$TRY_AGAIN" "$what: the slice is no longer ready ($STATE: $DETAIL)"
        if ((try >= TRIES)); then
            say "$what failed $TRIES times, the last time with code $status" >&2
            return 1
        fi
        say "$what failed with code $status; try $((try + 1)) of $TRIES" >&2
        pause
    done
}

require_ready() {
    look_at_slice
    case $STATE in
    ready) ;;
    none) die "$USER_MISTAKE" "there is no slice $NAME in $ZONE; run tpu_scripts/create first" ;;
    *) die "$TRY_AGAIN" "the slice $NAME is not ready ($STATE: $DETAIL); run tpu_scripts/create" ;;
    esac
}
