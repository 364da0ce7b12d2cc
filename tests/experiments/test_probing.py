"""What a probe command reads before any model is loaded."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mechprobe.errors import CheckpointError, PromptFileError, RunDirectoryError, SpecError
from mechprobe.experiments.probe_setup import ProbeRequest, make_setup
from mechprobe.experiments.probing import run_probes
from mechprobe.models.quantize import quantize
from mechprobe.probes.battery import PROBES

ORGANISM = "organism:llama-s"
LABELS = ("harmful", "harmless")


def sets(*splits):
    return {f"{split}/{label}" for split in splits for label in LABELS}


@pytest.fixture
def write(tmp_path):
    """A prompt file that has these splits alone."""

    def make(*splits):
        rows = [
            {"text": f"{label} {split} {i}", "label": label, "split": split}
            for i in range(3)
            for label in LABELS
            for split in splits
        ]
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return make


@pytest.fixture
def request_of(tmp_path):
    return lambda *probes, **more: ProbeRequest(
        model=ORGANISM, out=tmp_path / "out", probes=probes, **more
    )


@pytest.mark.parametrize("probe", ["entropy", "calibration"])
def test_what_reads_no_fitting_prompts_needs_none(request_of, write, probe):
    setup = make_setup(request_of(probe, prompts=write("validation", "test")))
    assert set(setup.prompts) == sets("select", "evaluate")
    given = make_setup(request_of(probe, prompts=write("test"), refusal_tokens=("I",)))
    assert set(given.prompts) == sets("evaluate")


@pytest.mark.parametrize("probe", PROBES)
def test_the_study_mode_needs_the_evaluation_prompts_alone(request_of, write, probe):
    setup = make_setup(request_of(probe, prompts=write("test"), study=True))
    assert set(setup.prompts) == sets("evaluate")


@pytest.mark.parametrize("probe", ["refusal_direction", "safety_neurons"])
def test_what_fits_needs_all_three(request_of, write, probe):
    setup = make_setup(request_of(probe, prompts=write("train", "validation", "test")))
    assert set(setup.prompts) == sets("fit", "select", "evaluate")
    with pytest.raises(PromptFileError, match="train"):
        make_setup(request_of(probe, prompts=write("validation", "test")))


def test_a_named_place_and_named_tokens_leave_nothing_to_select(request_of, write):
    asked = request_of(
        "refusal_direction", prompts=write("train", "test"), layer=2, refusal_tokens=("I",)
    )
    assert set(make_setup(asked).prompts) == sets("fit", "evaluate")


def test_fewer_prompt_sets_are_enough_to_run(request_of, write):
    found = run_probes(
        request_of("entropy", prompts=write("test"), refusal_tokens=("I",), evaluate=3)
    )
    assert found["entropy"].harmful.n == 3
    assert found["entropy"].harmful.log_odds is not None


@pytest.mark.parametrize("study", [True, False])
@pytest.mark.parametrize("probes", [PROBES, ("calibration",), ("entropy",)])
def test_a_question_file_that_is_not_there_is_an_error(request_of, tmp_path, probes, study):
    missing = str(tmp_path / "missing.jsonl")
    with pytest.raises(PromptFileError, match=r"missing\.jsonl"):
        make_setup(request_of(*probes, questions=missing, study=study))


def test_the_study_mode_asks_no_questions_that_it_was_given(request_of, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"id": "q", "prompt": "1 + 1?", "options": ["1", "2"], "answer": 1}\n')
    assert make_setup(request_of("calibration", questions=str(file), study=True)).questions is None
    _, asked = make_setup(request_of("calibration", questions=str(file))).questions
    assert [question.id for question in asked] == ["q"]


def test_a_native_gguf_says_why_it_cannot_be_probed(request_of, tmp_path):
    file = quantize(ORGANISM, "Q8_0", tmp_path / "model.gguf")
    for more in ({"baseline": str(file)}, {"baseline": ORGANISM}):
        model = ORGANISM if more["baseline"] != ORGANISM else str(file)
        asked = ProbeRequest(model=model, out=tmp_path / "out", kernel="native", **more)
        with pytest.raises(CheckpointError, match=r"model\.gguf.*llama\.cpp.*dense kernel"):
            run_probes(asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("baseline", [None, ORGANISM])
def test_a_second_command_on_the_same_folder_is_refused_and_harms_nothing(
    request_of, write, baseline
):
    asked = request_of(
        "entropy", prompts=write("test"), refusal_tokens=("I",), evaluate=3, baseline=baseline
    )
    refused = []

    def meddle(what):
        if "entropy" in what:  # the observation lies there and is about to be read
            with pytest.raises(RunDirectoryError, match=f"out: in use by process {os.getpid()} on"):
                run_probes(replace(asked, evaluate=2))
            refused.append(what)

    found = run_probes(asked, meddle)
    assert len(refused) == (1 if baseline is None else 2)
    assert found["entropy"].harmful.n == 3
    assert run_probes(asked)["entropy"].to_dict() == found["entropy"].to_dict()


def test_what_cannot_be_probed_leaves_no_folder(request_of, write):
    with pytest.raises(SpecError, match="layer 9"):
        run_probes(
            request_of("refusal_direction", prompts=write("train", "validation", "test"), layer=9)
        )
    rows = [{"text": "the same", "label": label, "split": "test"} for label in LABELS]
    file = Path(write("test"))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = request_of("entropy", prompts=str(file), refusal_tokens=("I",), evaluate=2)
    with pytest.raises(PromptFileError, match="a prompt is both in"):
        run_probes(asked)
    assert not asked.out.exists()
