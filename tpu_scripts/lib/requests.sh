# shellcheck shell=bash
# Asking for a slice and giving it back, for both services.

# watch has it already.
declare -F look_at_slice >/dev/null || source "${BASH_SOURCE[0]%/*}/slices.sh"

read_request() {
    CAPACITY=${CAPACITY:-spot} RESERVATION=${RESERVATION:-} MAX_RUN=${MAX_RUN:-} VALID_UNTIL=${VALID_UNTIL:-}
    RUNTIME=${RUNTIME:-$RUNTIME_DEFAULT} NETWORK=${NETWORK:-} SUBNETWORK=${SUBNETWORK:-}
    SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-} WAIT_MINUTES=${WAIT_MINUTES:-720} DISK_GB=${DISK_GB:-200}
    one_of CAPACITY spot reserved on-demand flex-start
    whole_number WAIT_MINUTES
    whole_number DISK_GB
    if [[ $CAPACITY == flex-start && ! $MAX_RUN ]]; then
        die "$USER_MISTAKE" "CAPACITY=flex-start needs MAX_RUN, at most 7d, such as MAX_RUN=12h"
    fi
    if [[ $RESERVATION && $CAPACITY != reserved ]]; then
        die "$USER_MISTAKE" "RESERVATION=$RESERVATION needs CAPACITY=reserved, got '$CAPACITY'"
    fi
    if [[ $API == group && $CAPACITY == reserved && ! $RESERVATION ]]; then
        die "$USER_MISTAKE" "CAPACITY=reserved needs RESERVATION, the name of a reservation in $ZONE"
    fi
}

# The scope lets workers read the bucket and the secret; what they may do is the account's roles.
request_queued() {
    local track=() flags=()
    case $CAPACITY in
    spot) flags=(--spot) ;;
    reserved) flags=(--reserved) ;;
    flex-start) track=(alpha) flags=(--provisioning-model=flex-start --max-run-duration="$MAX_RUN") ;;
    esac
    # A reservation by name is known to the alpha command alone.
    [[ ! $RESERVATION ]] || { track=(alpha) && flags+=(--reservation="$RESERVATION"); }
    [[ ! $VALID_UNTIL ]] || flags+=(--valid-until-duration="$VALID_UNTIL")
    [[ ! $NETWORK ]] || flags+=(--network="$NETWORK")
    [[ ! $SUBNETWORK ]] || flags+=(--subnetwork="$SUBNETWORK")
    [[ $INTERNAL_IPS == no ]] || flags+=(--internal-ips)
    [[ ! $SERVICE_ACCOUNT ]] || flags+=(--service-account="$SERVICE_ACCOUNT")
    submit gcloud "${track[@]}" compute tpus queued-resources create "$NAME" "${WHERE[@]}" --node-id="$NAME" \
        --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" --scopes=cloud-platform "${flags[@]}"
}

request_group() {
    local policy=()
    # One host is no multi-host slice: it needs neither policy nor all-or-nothing creation.
    if ((HOSTS > 1)); then
        remove_leftover "resource-policies delete"
        submit gcloud compute resource-policies create workload-policy "$NAME" --project="$PROJECT" --region="$REGION" \
            --type=HIGH_THROUGHPUT --accelerator-topology="$TOPOLOGY" --accelerator-topology-mode=AUTO_CONNECT
        # The full path: a bare name is "malformed".
        policy=(--target-size-policy-mode=bulk --workload-policy="projects/$PROJECT/regions/$REGION/resourcePolicies/$NAME")
    fi
    request_template
    # Repairing one VM of a slice alone is of no use, so that the group does nothing by itself.
    submit gcloud beta compute instance-groups managed create "$NAME" "${WHERE[@]}" --size=0 \
        --template="projects/$PROJECT/regions/$REGION/instanceTemplates/$NAME" \
        --default-action-on-vm-failure=do-nothing "${policy[@]}"
    resize_group
}

request_template() {
    # A VM of a slice cannot move to another machine: TERMINATE. Preempted ones stay visible: STOP.
    local track=() flags=() kind=STANDARD
    case $CAPACITY in
    spot) kind=SPOT flags=(--instance-termination-action=STOP) ;;
    reserved) flags=(--reservation-affinity=specific --reservation="$RESERVATION") ;;
    flex-start)
        track=(beta) kind=FLEX_START
        flags=(--max-run-duration="$MAX_RUN" --instance-termination-action=DELETE)
        ;;
    esac
    # tpu7x boots from Hyperdisk alone.
    [[ $GENERATION != tpu7x ]] || flags+=(--boot-disk-type=hyperdisk-balanced)
    [[ ! $NETWORK ]] || flags+=(--network="$NETWORK")
    [[ ! $SUBNETWORK ]] || flags+=(--subnet="$SUBNETWORK" --region="$REGION")
    [[ $INTERNAL_IPS == no ]] || flags+=(--no-address)
    [[ ! $SERVICE_ACCOUNT ]] || flags+=(--service-account="$SERVICE_ACCOUNT")
    remove_leftover "instance-templates delete"
    submit gcloud "${track[@]}" compute instance-templates create "$NAME" --project="$PROJECT" \
        --instance-template-region="$REGION" --machine-type="$MACHINE" --provisioning-model="$kind" \
        --maintenance-policy=TERMINATE --image-project=ubuntu-os-accelerator-images --image-family="$IMAGE" \
        --boot-disk-size="${DISK_GB}GB" --scopes=cloud-platform "${flags[@]}"
}

# What an earlier request of this name has left may be of another capacity or topology.
remove_leftover() {
    # shellcheck disable=SC2086 # two words
    [[ $DRY_RUN ]] || remove gcloud compute $1 "$NAME" --project="$PROJECT" --region="$REGION" --quiet
}

resize_group() {
    submit gcloud compute instance-groups managed resize "$NAME" "${WHERE[@]}" --size="$HOSTS"
}

# submit COMMAND...: what exists already is left as it is (an earlier try may have made it).
submit() {
    change "$@" && return
    if [[ $FAILURE == *ALREADY_EXISTS* || $FAILURE == *"already exists"* ]]; then return; fi
    explain "$FAILURE"
    die "$CODE" "$REASON"
}

# remove COMMAND...: what does not exist needs no removal.
remove() {
    if change "$@" || is_absent; then return; fi
    explain "$FAILURE"
    die "$CODE" "$REASON"
}

# Like call, and sets FAILURE to what the command says when it fails.
change() {
    [[ $DRY_RUN ]] || printf '+ %s\n' "$(quoted "$@")" >&2
    if ask "" "$@"; then return; fi
    printf '%s\n' "$FAILURE" >&2
    return 1
}

# --force deletes the nodes first; without it only a request that has none may go.
give_back_queued() {
    remove gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
}

# The group before its VMs (it would make them again), and before the template and policy it uses.
give_back_group() {
    remove gcloud compute instance-groups managed delete "$NAME" "${WHERE[@]}" --quiet
    remove gcloud compute instance-templates delete "$NAME" --project="$PROJECT" --region="$REGION" --quiet
    ((HOSTS == 1)) || remove gcloud compute resource-policies delete "$NAME" --project="$PROJECT" --region="$REGION" --quiet
}
