# shellcheck shell=bash
# The run on the workers: its command, what the workers say of it, and whether it is finished.
# shellcheck disable=SC2034 # the scripts read what is set here

source "${BASH_SOURCE[0]%/*}/slices.sh"

read_job() {
    HF_TOKEN_SECRET=${HF_TOKEN_SECRET:-} LIBTPU_INIT_ARGS=${LIBTPU_INIT_ARGS-$FLAGS}
    # A host whose neighbour has died is ended by JAX within two minutes (heartbeats of 100 s).
    STRAGGLER_SECONDS=${STRAGGLER_SECONDS:-300}
    whole_number STRAGGLER_SECONDS
    check_run_dir
    [[ $HF_TOKEN_SECRET =~ ^[A-Za-z0-9_/-]*$ && $HF_TOKEN_SECRET != hf_* ]] || die "$USER_MISTAKE" \
        "HF_TOKEN_SECRET must be the name of a secret in Secret Manager, never the token"
    ((${#ARGUMENTS[@]})) || die "$USER_MISTAKE" "no recipe; try: tpu_scripts/$SCRIPT sdpo_math --student Qwen3-8B"
    local argument
    for argument in "${ARGUMENTS[@]}"; do
        case $argument in
        --ru*) die "$USER_MISTAKE" "set RUN_DIR instead of --run-dir: watch and fetch need it too" ;;
        # --show ends with 0 and trains nothing: watch would start it again and again. Flags may be cut short.
        --sh*) die "$USER_MISTAKE" "--show trains nothing; run it on this machine: jaxdistill train ${ARGUMENTS[*]}" ;;
        *hf_[A-Za-z0-9][A-Za-z0-9][A-Za-z0-9][A-Za-z0-9][A-Za-z0-9][A-Za-z0-9][A-Za-z0-9][A-Za-z0-9]* | *API_KEY=* | *TOKEN=*)
            die "$USER_MISTAKE" "an argument looks like a secret; put it into Secret Manager and set HF_TOKEN_SECRET to its name"
            ;;
        esac
    done
    find_recipe_file
    if ((HOSTS > 1)) && [[ $RUN_DIR != gs://* && " ${ARGUMENTS[*]} " != *" --checkpoints"* ]]; then
        say "# RUN_DIR=$RUN_DIR must be a folder that all $HOSTS hosts share; a disk of the workers is lost with the slice"
    fi
}

# A recipe in a file is copied to the workers, into the folder in which the command runs. Sets
# RECIPE_FILE to it ("" for a recipe's name), and COMMAND to the arguments there.
find_recipe_file() {
    local rule='^(.*\.(py|json))(:[A-Za-z_][A-Za-z0-9_]*)?$'
    RECIPE_FILE="" COMMAND=("${ARGUMENTS[@]}")
    [[ ${ARGUMENTS[0]} =~ $rule ]] || return 0
    local file=${BASH_REMATCH[1]} function=${BASH_REMATCH[3]}
    if [[ -f $file ]]; then
        RECIPE_FILE=$file COMMAND[0]=${file##*/}$function
    elif [[ $file != /* ]]; then # a path of the workers, such as a disk that they share
        die "$USER_MISTAKE" "the recipe $file does not exist on this machine"
    fi
}

# The file that every worker reads; --resume starts a run or continues it.
job_text() {
    local words
    words=$(quoted train "${COMMAND[@]}" --run-dir "$RUN_DIR" --resume)
    printf 'job_run_dir=%s\njob_secret=%s\nexport LIBTPU_INIT_ARGS=%s\njob_arguments=(%s)\n' \
        "$(quoted "$RUN_DIR")" "$(quoted "$HF_TOKEN_SECRET")" "$(quoted "$LIBTPU_INIT_ARGS")" "$words"
    # A changed recipe is another command.
    [[ ! $RECIPE_FILE ]] || printf '# cksum of the recipe: %s\n' "$(cksum <"$RECIPE_FILE")"
}

# shellcheck disable=SC2016 # the worker expands it
readonly NOT_SET_UP='echo "worker $(hostname) setup=none attempt=none state=none code=- finished=no"'
readonly ASK_STATUS="if [ -x $FOLDER/worker/status ]; then $FOLDER/worker/status; else $NOT_SET_UP; fi"

# Sets WORKERS to a line per worker; 1 if a worker cannot be asked.
ask_workers() {
    WORKERS=""
    if [[ $DRY_RUN ]]; then on_all "$ASK_STATUS" && return; fi
    local errors status=0
    errors=$(mktemp)
    WORKERS=$(QUIET=1 on_all "$ASK_STATUS" 2>"$errors") || status=$?
    FAILURE=$(<"$errors")
    rm -f "$errors"
    WORKERS=$(grep '^worker ' <<<"$WORKERS" | sort) || true
    [[ $status == 0 && $WORKERS ]] || return 1
    read_workers
}

words_of() { grep -o " $1=[^ ]*" <<<"$WORKERS" | cut -d= -f2 | sort -u; }

# Sets SETUP, ATTEMPT_SEEN, RUN_STATE (none, running, ended, partial), RUN_CODE of what has ended, and
# STUCK: partial, and not because some hosts have finished a little earlier.
read_workers() {
    SETUP=$(words_of setup | paste -sd, -)
    ATTEMPT_SEEN=$(words_of attempt | paste -sd, -)
    local codes wanted states
    states=$(words_of state | paste -sd, -)
    case $states in
    none | running | ended) RUN_STATE=$states ;;
    *) RUN_STATE=partial ;;
    esac
    [[ $ATTEMPT_SEEN != *,* ]] || RUN_STATE=partial
    STUCK=""
    codes=$(words_of code)
    if [[ $RUN_STATE == partial ]] && [[ $ATTEMPT_SEEN == *,* || $states == *none* || $codes =~ [1-9l] ]]; then
        STUCK=yes
    fi
    RUN_CODE=0
    # The host whose mistake or fault it was, not those that it took along.
    for wanted in 2 3 130; do
        if grep -qx "$wanted" <<<"$codes"; then RUN_CODE=$wanted && return; fi
    done
    codes=$(grep -vx -e 0 -e - <<<"$codes" | head -1) || true
    RUN_CODE=${codes:-0}
}

report_workers() { sed 's/ setup=[^ ]*//; s/^/  /' <<<"$WORKERS"; }

# Sets FINISHED to yes or no; 1 if it cannot be told. Only finished.json says it, not the exit code.
is_finished() {
    FINISHED=no
    if [[ $RUN_DIR != gs://* ]]; then
        [[ ${WORKERS:-} != *finished=yes* ]] || FINISHED=yes
        return
    fi
    if ask "" gcloud storage cat "$RUN_DIR/finished.json" --project="$PROJECT"; then
        FINISHED=yes
        return
    fi
    case $FAILURE in
    *"bucket"*"not exist"* | *BucketNotFound* | *"does not have"*"access"* | *[Pp]ermission*)
        die "$USER_MISTAKE" "RUN_DIR=$RUN_DIR: $(head -1 <<<"$FAILURE")" ;;
    *"matched no objects"* | *"not found"* | *404*) return 0 ;;
    *"active account"* | *"auth login"* | *[Rr]eauthenticat*)
        explain "$FAILURE"
        die "$CODE" "$REASON"
        ;;
    esac
    return 1
}

# Stops what is left of an attempt that has failed on one host, after it has had time to end itself.
stop_stragglers() {
    PARTIAL_SINCE=${PARTIAL_SINCE:-$SECONDS}
    ((SECONDS - PARTIAL_SINCE >= STRAGGLER_SECONDS)) || return 1
    say "not all hosts take part in the run since $STRAGGLER_SECONDS s; the others are stopped"
    report_workers
    on_all "$FOLDER/worker/stop" || true
    PARTIAL_SINCE=""
}
