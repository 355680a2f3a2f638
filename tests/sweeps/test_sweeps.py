"""What a sweep may say, which variants it has, and what their folders record; no worker is
started.
"""

import io
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf
from rich.console import Console

from incontext_linear.config import ModelConfig
from incontext_linear.parameters import Parameters
from incontext_linear.sweeps.config import SweepConfig, SweepError, check_sweep
from incontext_linear.sweeps.display import describe, failures_table, open_display, summarize
from incontext_linear.sweeps.project import branches_read
from incontext_linear.sweeps.state import SweepFolder, VariantFolder, standing
from incontext_linear.sweeps.variants import DECISIVE, cross, group

PARAMETERS = OmegaConfigLoader(
    str(Path(__file__).parents[2] / "conf"), base_env="base", default_run_env="base"
)["parameters"]


def read_parameters(overrides: dict[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(PARAMETERS, overrides)))


def variants_of(**fields):
    return cross("some", SweepConfig.model_validate(fields), read_parameters)


def transformer_of(parameters: Parameters) -> ModelConfig:
    return cast(ModelConfig, parameters.model)


def test_axes_and_seeds_are_crossed_the_seed_fastest():
    variants = variants_of(
        axes={"model.num_layers": [1, 2], "task.noise_std": [0.0, 0.5]}, seeds=[0, 7]
    )
    assert [v.name for v in variants][:3] == [
        "model.num_layers=1,task.noise_std=0.0,seed=0",
        "model.num_layers=1,task.noise_std=0.0,seed=7",
        "model.num_layers=1,task.noise_std=0.5,seed=0",
    ]
    assert len(variants) == 8
    last = variants[-1].parameters
    assert (transformer_of(last).num_layers, last.task.noise_std, last.seed) == (2, 0.5, 7)


def test_folders_name_the_values_and_escape_what_no_folder_should_hold():
    (variant, *_) = variants_of(
        axes={"task.inputs": ["normal*2+1", "uniform"], "model.mlp_width": [None]}
    )
    assert str(variant.folder) == "task.inputs=normal%2A2+1/model.mlp_width=null/seed=0"


def test_parameters_of_the_sweep_lie_over_the_environments_and_axes_over_both():
    parameters = {"training": {"num_steps": 7}, "model": {"width": 8, "num_layers": 9}}
    (variant,) = variants_of(axes={"model.num_layers": [3]}, parameters=parameters)
    assert variant.parameters.training.num_steps == 7
    model = transformer_of(variant.parameters)
    assert (model.width, model.num_layers) == (8, 3)
    assert variant.parameters.training.batch_size == PARAMETERS["training"]["batch_size"]


def test_without_axes_a_sweep_is_a_run_over_seeds():
    variants = variants_of(seeds=[0, 3])
    assert [(variant.name, str(variant.folder)) for variant in variants] == [
        ("seed=0", "seed=0"),
        ("seed=3", "seed=3"),
    ]


def test_a_parameter_may_follow_an_axis():
    variants = variants_of(
        axes={"model.width": [8, 16]},
        follow={"model.width": {"training.learning_rate": [0.1, 0.2]}},
    )
    assert [v.parameters.training.learning_rate for v in variants] == [0.1, 0.2]
    assert [v.name for v in variants] == ["model.width=8,seed=0", "model.width=16,seed=0"]
    assert variants[0].record["follow"] == {"training.learning_rate": 0.1}


def test_an_axis_of_settings_lays_its_parameters_over_the_sweeps():
    variants = variants_of(
        axes={"task.noise_std": [0.5]},
        parameters={"model": {"width": 8}, "training": {"num_steps": 9}},
        settings={
            "form": {
                "bare": {"model": {"norm": "none", "mlp_width": 0}},
                "gru": {"model": {"type": "gru", "width": 5}, "training": {"batch_size": 3}},
            }
        },
        seeds=[0, 1],
    )
    assert [v.name for v in variants[1:3]] == [
        "task.noise_std=0.5,form=bare,seed=1",
        "task.noise_std=0.5,form=gru,seed=0",
    ]
    bare, gru = variants[0].parameters, variants[2].parameters
    assert (transformer_of(bare).norm, transformer_of(bare).width) == ("none", 8)
    assert (gru.model.type, gru.model.model_dump()["width"]) == ("gru", 5)
    assert (gru.training.num_steps, gru.training.batch_size) == (9, 3)
    assert variants[0].record["axes"] == {"task.noise_std": 0.5, "form": "bare"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"a.b": {"one": {}}}, "'a.b' cannot name an axis"),
        ({"form": {}}, "settings.form: no names given"),
    ],
)
def test_settings_that_are_no_axis_are_refused(settings, says):
    with pytest.raises(SweepError, match=says):
        check_sweep("some", {"settings": settings})


def test_settings_of_what_nothing_reads_are_refused():
    with pytest.raises(SweepError, match=r"some\.settings\.form\.one\.probing: no pipeline"):
        variants_of(settings={"form": {"one": {"probing": {}}}})


def test_variants_of_one_shape_form_a_group_of_sixteen_at_most():
    variants = variants_of(
        axes={"task.noise_std": [0.0, 0.5], "model.num_layers": [1, 2]}, seeds=range(9)
    )
    groups = group(variants, stacked=True)
    assert [len(members) for members in groups] == [16, 2, 16, 2]
    for members in groups:
        assert len({member.parameters.model.depth for member in members}) == 1
    assert sorted(v.name for members in groups for v in members) == sorted(v.name for v in variants)
    assert [len(members) for members in group(variants, stacked=False)] == [1] * 36


def test_an_architecture_that_cannot_be_stacked_is_left_alone():
    variants = variants_of(
        parameters={"model": {"type": "gru"}}, axes={"model.type": ["gru", "delta"]}, seeds=range(3)
    )
    assert [len(members) for members in group(variants, stacked=True)] == [1, 1, 1, 3]


def test_a_fingerprint_covers_what_the_named_pipelines_read():
    assert set(branches_read("some", ("behavioral_comparison",))) == set(DECISIVE)
    read = branches_read("some", ("behavioral_comparison", "probing"))
    assert set(read) == {*DECISIVE, "probing"}
    assert "alignment" in branches_read("some", ("alignment",))
    plain, other = (
        cross("some", SweepConfig(parameters=changes), read_parameters, read)[0].fingerprint
        for changes in ({}, {"probing": {"fit": {"num_steps": 3}}})
    )
    assert plain != other


@pytest.mark.parametrize("pipeline", ["prbing", "phase_diagram", "data_generation"])
def test_a_pipeline_that_does_not_measure_one_learner_is_refused(pipeline):
    with pytest.raises(SweepError, match=r"some.pipelines: .*allowed: .*probing"):
        branches_read("some", (pipeline,))


def test_an_axis_may_go_through_a_key_that_holds_dots():
    variants = variants_of(axes={"baselines.ridge_0.1.penalty": [0.1, 0.2]})
    assert [v.parameters.baselines.active["ridge_0.1"]["penalty"] for v in variants] == [0.1, 0.2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"parameters": {"training": {"learning_rate": 1e-4}}}, True),
        ({"parameters": {"baselines": {"ridge_7": {"type": "Ridge", "penalty": 7.0}}}}, True),
        ({"seeds": [1]}, True),
        ({"num_threads": 2}, True),
        ({"num_threads": 1}, False),
        ({"parameters": {"probing": {"fit": {"num_steps": 3}}}}, False),
        ({"parameters": {"construction": {"num_steps": 3}}}, False),
        ({"parameters": {"training": {"checkpoint_every": 3}}}, False),
        ({"parameters": {"device": "cpu"}}, False),
        ({"parameters": {"task": {"noise_std": 0}}}, False),  # as it is, but an integer
    ],
)
def test_the_fingerprint_changes_with_what_the_results_depend_on(fields, changes):
    axes = {"model.num_layers": [2]}
    (plain,), (other,) = variants_of(axes=axes), variants_of(**({"axes": axes} | fields))
    assert (plain.fingerprint != other.fingerprint) == changes


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ({"pipelines": []}, "some.pipelines: tuple should have at least 1 item"),
        (
            {"axes": {"model.width": [8, 16]}, "follow": {"model.width": {"seed": [1]}}},
            "follow.model.width.seed: 1 values given; allowed: 2, one for each value of the axis",
        ),
        (
            {"axes": {"model.width": [8]}, "follow": {"task.dim": {"seed": [1]}}},
            "follow: 'task.dim' is not an axis; allowed: model.width",
        ),
        ({"axes": {"model.width": []}}, "model.width: no values given; allowed: at least one"),
        ({"axes": {"model.width": [8, 8.0]}}, "model.width: 8.0 is given twice"),
        ({"axes": {"seed": [0, 1]}}, "seed is no axis; allowed: list the seeds under seeds"),
        ({"axes": {"model.width": [8]}, "seeds": [1, 1]}, "seeds: 1 is given twice"),
        ({"axes": {"model.width": [8]}, "seeds": [-1]}, "greater than or equal to 0; given -1"),
        (
            {"axes": {"model.width": [8]}, "steps": 3},
            "some.steps: unknown parameter (given 3); allowed here",
        ),
        ({"axes": {"model.width": [8]}, "parameters": {"seed": 1}}, "seed is set for each variant"),
    ],
)
def test_a_sweep_that_is_not_well_formed_is_refused(sweep, says):
    with pytest.raises(SweepError) as caught:
        check_sweep("some", sweep)
    assert says in str(caught.value)


def test_a_sweep_whose_name_is_no_folder_is_refused():
    with pytest.raises(SweepError, match="'a/b' cannot name a sweep; allowed: letters"):
        check_sweep("a/b", {"axes": {"model.width": [8]}})


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        (
            "model.depth",
            r"axes.model.depth: no such parameter; allowed here: model.num_layers, model.num_heads",
        ),
        ("mode", "axes.mode: no such parameter; allowed here: task, model"),
        ("model.width.x", "no such parameter; allowed here: nothing below it"),
        (
            "probing.fit.num_steps",
            "no pipeline of a sweep depends on it; allowed: parameters below task, model",
        ),
    ],
)
def test_an_axis_must_be_a_parameter_that_matters(axis, says):
    with pytest.raises(SweepError, match=says):
        variants_of(axes={axis: [1]})


def test_every_variant_that_is_not_valid_is_named_before_any_runs():
    with pytest.raises(SweepError) as caught:
        variants_of(axes={"model.width": [16, 15, -1]})
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "variant model.width=15: model: num_heads=4 does not divide width=15" in lines[0]
    assert (
        "variant model.width=-1: model.width: input should be greater than 0; given -1" in lines[1]
    )


def test_a_state_is_replaced_as_a_whole_and_a_broken_one_is_none(tmp_path):
    folder = VariantFolder(tmp_path, Path("variant"))
    folder.write({"status": "running"})
    folder.write({"status": "done"})
    assert folder.read() == {"status": "done"}
    assert [path.name for path in (tmp_path / "variant").iterdir()] == ["variant.json"]
    (tmp_path / "variant/variant.json").write_text("{")
    assert folder.read() == {}
    assert VariantFolder(tmp_path, Path("nowhere")).read() == {}


def test_a_state_that_cannot_be_written_leaves_the_old_one_and_no_temporary_file(tmp_path):
    folder = VariantFolder(tmp_path, Path("variant"))
    folder.write({"status": "running"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # as on a disk that is full
    try:
        with pytest.raises(OSError, match=r"variant\.json"):
            folder.write({"status": "done", "error": "x" * 20_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folder.read() == {"status": "running"}
    assert [path.name for path in folder.path.iterdir()] == ["variant.json"]


@pytest.mark.parametrize(
    ("status", "fingerprint", "at_work", "expected"),
    [
        ("done", "same", False, "done"),
        ("done", "other", False, "changed"),
        ("failed", "same", False, "failed"),
        ("running", "same", True, "running"),
        ("running", "same", False, "interrupted"),
        ("interrupted", "same", True, "interrupted"),
        ("failed", "other", False, "changed"),
    ],
)
def test_where_a_variant_stands(status, fingerprint, at_work, expected):
    assert standing({"status": status, "fingerprint": fingerprint}, "same", at_work) == expected
    assert standing({}, "same", at_work) == "missing"


@pytest.mark.slow
def test_two_drivers_cannot_work_on_one_sweep_and_a_killed_one_leaves_no_lock(tmp_path):
    folder = SweepFolder(tmp_path, Path("sweep"))
    holder = (
        "import sys; from pathlib import Path; from incontext_linear.sweeps.state import "
        "SweepFolder\n"
        "with SweepFolder(Path(sys.argv[1]), Path('sweep')).sole_driver(): "
        "print('held', flush=True); sys.stdin.read()"
    )
    assert not folder.is_at_work()
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert folder.is_at_work()
        says = rf"another `kedro sweep run` is at work: .*process {process.pid} on"
        with pytest.raises(SweepError, match=says), folder.sole_driver():
            pass
        process.kill()
    assert not folder.is_at_work()
    with folder.sole_driver():
        pass


@pytest.mark.slow
def test_a_status_that_is_asked_for_while_a_driver_starts_does_not_refuse_it(tmp_path):
    folder, stop = SweepFolder(tmp_path, Path("sweep")), threading.Event()

    def ask():
        while not stop.is_set():
            folder.is_at_work()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            with folder.sole_driver():
                pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_terminal_shows_a_bar_for_the_sweep_and_for_each_variant_that_runs():
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with open_display(console, "depth", 3) as display:
        for variant in ("first", "second"):
            display.report(variant, {"stage": "starting"})
        report = {
            "stage": "training",
            "step": 5,
            "num_steps": 10,
            "loss": 0.25,
            "spd_to_ols": 0.125,
        }
        display.report("second", report)
        display.end("first", {"status": "done", "seconds": 12.3, "spd_to_ols": 0.5})
        display.report("first", report)  # overtaken by its end
        console.file.truncate(0)
    last_frame = console.file.getvalue()
    assert "1/3" in last_frame
    assert "1 running" in last_frame
    assert "second" in last_frame
    assert "training step 5 of 10: loss 0.25" in last_frame
    assert "first" not in last_frame


def test_a_line_that_was_overtaken_by_the_end_is_left_out_and_lines_of_two_threads_do_not_mix():
    console = Console(file=io.StringIO(), width=160)
    report = {"step": 5, "num_steps": 10, "loss": 1.0, "spd_to_ols": 1.0}
    with open_display(console, "depth", 40) as display:

        def work(number):
            for variant in range(number, 40, 4):
                display.report(str(variant), {"stage": "starting"})
                display.end(str(variant), {"status": "failed", "error": "why"})
                display.report(str(variant), report)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = console.file.getvalue().splitlines()
    ends = [line for line in lines if "failed" in line]
    assert [line.partition("]")[0] for line in ends] == [f"depth: [{n}/40" for n in range(1, 41)]
    assert len(lines) == 80


def test_what_was_interrupted_has_no_error_and_is_shown_all_the_same():
    interrupted = {"status": "interrupted", "error": None}
    assert summarize("seed=0", interrupted) == "seed=0: interrupted"
    console = Console(file=io.StringIO(), width=160)
    console.print(failures_table([("seed=0", Path("a/run.log"), "interrupted")]))
    assert "a/run.log" in console.file.getvalue()


def test_where_no_terminal_is_every_tenth_of_the_training_gets_a_line():
    console = Console(file=io.StringIO(), width=160)
    with open_display(console, "depth", 1) as display:
        display.report("only", {"stage": "starting"})
        for step in range(0, 101):
            display.report("only", {"step": step, "num_steps": 100, "loss": 1.0, "spd_to_ols": 1.0})
        display.end("only", {"status": "failed", "error": "why"})
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "depth: only: starts"
    assert lines[-1] == "depth: [1/1] only: failed: why"
    assert len(lines) == 2 + 11


def test_reports_and_ends_are_put_in_words():
    report = {"stage": "training", "step": 5, "num_steps": 10, "loss": 0.25, "spd_to_ols": 0.125}
    assert describe(report) == "training step 5 of 10: loss 0.25, SPD to OLS 0.125"
    stack = describe(report | {"together": 16})
    assert (
        stack
        == "training step 5 of 10 (with 15 more in the same step): loss 0.25, SPD to OLS 0.125"
    )
    assert describe({"stage": "measure_spd"}) == "measure_spd"
    done = {"status": "done", "seconds": 12.3, "spd_to_ols": 0.5}
    assert summarize("seed=0", done) == "seed=0: done in 12 s, SPD to OLS 0.5"
    assert summarize("seed=0", {"status": "failed", "error": "why"}) == "seed=0: failed: why"
