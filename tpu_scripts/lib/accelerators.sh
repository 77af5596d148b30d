# shellcheck shell=bash
# The one table of TPU generations: what an accelerator type is made of, and how it is asked for.
# `tpu_scripts/create --list` prints it. Sources and what was measured: README.md, "The table".
# shellcheck disable=SC2034 # the scripts read what is set here

# Topologies by the number in the accelerator type's name. v4, v5p and tpu7x count TensorCores (two
# per chip), v5e and v6e count chips.
readonly CUBES="8:2x2x1 16:2x2x2 32:2x2x4 64:2x4x4 128:4x4x4 256:4x4x8 512:4x8x8"
readonly SQUARES="1:1x1 4:2x2 8:2x4 16:4x4 32:4x8 64:8x8 128:8x16 256:16x16"
readonly GENERATIONS="v4 v5litepod v5p v6e tpu7x"

# The all-gathers of fsdp run beside the matrix products instead of before them.
readonly ASYNC_ALL_GATHERS="--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true \
--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true"

# Sets what all slices of a generation share. HBM_GIB is per device, as the compiler reports it.
describe_generation() {
    CORES_PER_NAME=1 DEVICES_PER_CHIP=1 SIZES=$CUBES APIS="queued group" FLAGS="" MACHINE="" IMAGE=""
    local accel_2204=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
    case $1 in
    v4) # No flags: none are published for it.
        CORES_PER_NAME=2 HBM_GIB=30.75 RUNTIME_DEFAULT=tpu-ubuntu2204-base APIS=queued
        ;;
    v5litepod)
        SIZES=$SQUARES HBM_GIB=15.75 RUNTIME_DEFAULT=v2-alpha-tpuv5-lite APIS=queued
        FLAGS=$ASYNC_ALL_GATHERS
        ;;
    v5p) # Its two cores work as one (megacore); all-gathers fused into products would block both.
        CORES_PER_NAME=2 HBM_GIB=95.74 RUNTIME_DEFAULT=v2-alpha-tpuv5 IMAGE=$accel_2204
        MACHINE=ct5p-hightpu-4t
        FLAGS="$ASYNC_ALL_GATHERS --xla_tpu_megacore_fusion_allow_ags=false \
--xla_enable_async_collective_permute=true --xla_tpu_enable_ag_backward_pipelining=true"
        ;;
    v6e) # 96 of the 128 MiB of VMEM for one operation: larger tiles in dense models.
        SIZES=$SQUARES HBM_GIB=31.25 RUNTIME_DEFAULT=v2-alpha-tpuv6e IMAGE=$accel_2204
        MACHINE=ct6e-standard-4t
        FLAGS="--xla_tpu_scoped_vmem_limit_kib=98304 $ASYNC_ALL_GATHERS"
        ;;
    tpu7x) # Its SparseCores take the collectives by default; the flags above would take them back.
        CORES_PER_NAME=2 DEVICES_PER_CHIP=2 HBM_GIB=94.75 RUNTIME_DEFAULT="" APIS=group
        MACHINE=tpu7x-standard-4t IMAGE=ubuntu-accel-2404-amd64-tpu-tpu7x
        ;;
    *) return 1 ;;
    esac
}

# Sets GENERATION, TOPOLOGY, CHIPS, HOSTS, DEVICES and what describe_generation sets.
describe_accelerator() {
    local number=${1##*-} entry
    GENERATION=${1%-*} TOPOLOGY=""
    describe_generation "$GENERATION" || return 1
    for entry in $SIZES; do
        [[ ${entry%%:*} == "$number" ]] && TOPOLOGY=${entry#*:}
    done
    [[ $TOPOLOGY ]] || return 1
    CHIPS=$((number / CORES_PER_NAME))
    # A host has 4 chips; up to 8 chips of v5e and v6e are one host.
    HOSTS=$(((CHIPS + 3) / 4))
    if [[ $SIZES == "$SQUARES" && $CHIPS -le 8 ]]; then
        HOSTS=1
        [[ $GENERATION == v6e ]] && MACHINE=ct6e-standard-${CHIPS}t
    fi
    DEVICES=$((CHIPS * DEVICES_PER_CHIP))
}

accelerator_table() {
    local generation entry
    echo "| accelerator type | topology | chips | hosts | devices | memory, GiB per device | in all |" \
        "runtime version | machine type | APIs |"
    echo "|---|---|---:|---:|---:|---:|---:|---|---|---|"
    for generation in $GENERATIONS; do
        describe_generation "$generation"
        for entry in $SIZES; do
            describe_accelerator "$generation-${entry%%:*}"
            printf '| %s | %s | %d | %d | %d | %s | %.0f | %s | %s | %s |\n' \
                "$generation-${entry%%:*}" "$TOPOLOGY" "$CHIPS" "$HOSTS" "$DEVICES" "$HBM_GIB" \
                "$(awk "BEGIN { print $HBM_GIB * $DEVICES }")" "${RUNTIME_DEFAULT:--}" "${MACHINE:--}" "$APIS"
        done
    done
}
