"""What is read off the text of a program for a slice."""

from types import SimpleNamespace

from benchmark_scripts import script

TEXT = """
%all-reduce-scatter.1 (x: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %s = f32[8,4]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}
ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %r = f32[2,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %a = bf16[3]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  %b = f32[1]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  %wide = f32[16,8]{1,0} all-gather(%x), dimensions={0}
  %narrow = bf16[32,8]{1,0} all-gather(%x), dimensions={0}
  %pair = (bf16[4,8]{1,0}, bf16[64,8]{1,0}) all-gather-start(%x), dimensions={0}
  %both = (f32[4,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%x), dimensions={0}
}
"""


def made(vocabulary, fsdp, tensor):
    """A run and its mesh: 8 rows in the head, 3 layers."""
    model = SimpleNamespace(
        hidden_size=8, vocab_size=vocabulary, intermediate_size=40, num_layers=3
    )
    run = SimpleNamespace(model=model, config=SimpleNamespace(compute=SimpleNamespace(chunk=5)))
    return run, SimpleNamespace(shape={"fsdp": fsdp, "tensor": tensor})


def test_sums_that_arrive_split_are_no_all_reduces_and_gathers_are_told_apart_by_dtype():
    found = script("slice_figures").of_collectives(*made(1000, 1, 2), TEXT)
    assert found["kinds"]["reduce-scatter"] == {"in_text": 1, "executed": 1, "bytes": 8 * 4 * 4}
    assert found["kinds"]["all-reduce"]["bytes"] == 6 + 4
    assert (found["largest_all_reduce"], found["largest_float32_all_reduce"]) == (6, 4)
    assert found["float32_gathers"] == (16 * 8 + 64 * 8) * 4
    assert found["kinds"]["all-gather"]["bytes"] == (32 * 8 + 64 * 8) * 2 + (16 * 8 + 64 * 8) * 4
    assert found["head_gathers"] == [0, 0]


def test_gathers_of_the_head_are_told_by_their_columns_whole_or_on_a_device():
    of_collectives = script("slice_figures").of_collectives
    # 64 columns: two gathers, of a pair the result. 128: half of them on each of two devices.
    assert of_collectives(*made(64, 4, 1), TEXT)["head_gathers"] == [2, 64 * 8 * (2 + 4)]
    assert of_collectives(*made(128, 4, 2), TEXT)["head_gathers"] == [2, 64 * 8 * (2 + 4)]


def test_an_array_that_the_mesh_could_split_is_found_by_two_of_its_dimensions():
    of_arrays = script("slice_figures").of_arrays
    of_texts = lambda run_and_mesh, *arrays: of_arrays(  # noqa: E731
        *run_and_mesh, " ".join(arrays), has_rows=False
    )["whole"]
    split, padded = "bf16[8,2,20] f32[8,128] f32[3,4,20] f32[5,128]", made(250, 2, 2)
    assert of_texts(padded, split) == 0
    assert of_texts(padded, split, "bf16[8,2,40]") == 8 * 2 * 40 * 2
    assert of_texts(padded, split, "f32[1,8,256]", "f32[8,250]") == 8 * 256 * 4
    assert of_texts(padded, split, "f32[5,256]") == 5 * 256 * 4
    assert of_texts(padded, split, "bf16[3,8,20]") == 3 * 8 * 20 * 2
    # Without a second device along tensor each has whole heads and products.
    assert of_texts(made(250, 2, 1), "f32[8,250] bf16[8,2,40] f32[5,250]") == 0
    assert of_texts(made(250, 1, 2), "bf16[3,8,20]") == 0


def test_the_largest_array_has_both_numbers_among_its_axes():
    text = "f32[1,43008,96] bf16[43008,2,96] f32[43008,4096] bf16[1,22528,2,96] s32[43008,96]"
    largest_array = script("slice_figures").largest_array
    assert largest_array(text, {43008, 96}) == 43008 * 96 * 4
    assert largest_array(text, {22528, 96}) == 22528 * 2 * 96 * 2
    assert largest_array(text, {8192, 96}) == 0
