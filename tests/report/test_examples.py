"""The responses that a page shows, and the words marked in them."""

from synthetic_study import ENDS, build_study
from written_study import records_path, rewrite_records

from jaxdistill.report.examples import examples_of
from jaxdistill.report.load import load_study_results


def test_the_examples_are_problems_the_base_has_right_and_sdpo_wrong(study_dir):
    chosen = examples_of(load_study_results(study_dir))
    assert len(chosen.examples) == 3
    for example in chosen.examples:
        by_method = {answer.method: answer for answer in example.answers}
        assert set(by_method) == {"base", *ENDS["main"]}
        assert by_method["base"].is_right
        assert not by_method["sdpo"].is_right
    assert examples_of(load_study_results(study_dir)) == chosen


def test_without_such_problems_the_examples_are_the_first_ones_and_say_so(tmp_path):
    folder = build_study(tmp_path / "s", ends={"main": {"sdpo": ENDS["main"]["sdpo"]}})
    rewrite_records(records_path(folder, "sdpo"), correct=True)
    chosen = examples_of(load_study_results(folder))
    assert "wrong on 0" in chosen.how_chosen
    assert [e.question for e in chosen.examples] == [
        "20 0 -> 20 go",
        "20 1 -> 19 go",
        "20 2 -> 18 go",
    ]
