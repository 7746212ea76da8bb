from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import collapsar as cs
from collapsar.advise.recipe import Recipe
from collapsar.advise.standard import advise_standard
from collapsar.cli import main, output
from collapsar.cli.app import COMMANDS, STUDIES, program
from collapsar.cli.output import plain_table
from collapsar.core.files import write_atomically


@pytest.fixture
def here(capsys, monkeypatch):
    """``collapsar`` within this process: the same ``main``, without starting Python and importing torch each time."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["collapsar", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_solve_prints_a_table_and_json(here):
    arguments = ("solve", "500x5,100x5", "--lambda-z", "0.0037", "--lambda-b", "0.02")
    shown = here(*arguments)
    assert shown.returncode == 0
    assert "merged" in shown.stdout
    assert "certified" in shown.stdout
    out = here(*arguments, "--json")
    record = json.loads(out.stdout)
    s = cs.solve(cs.Problem("500x5,100x5", 0.0037, 0.02))
    assert record["primal"] == pytest.approx(s.certificate.primal, rel=1e-12)
    assert record["class_states"] == ["separated"] * 5 + ["merged"] * 5
    assert np.allclose(record["Z"], s.Z)
    assert out.stderr == ""


def test_numbers_are_not_cut_at_eighty_characters(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    counts = ",".join(["500000", "20"] * 11)
    shown = here("solve", counts, "--lambda-z", "1e-7", "--lambda-b", "1e3").stdout
    s = cs.solve(cs.Problem([500000, 20] * 11, 1e-7, 1e3))
    logits = (s.Z[0, 0], s.Z[1, 1], *s.column_norms[:2])  # all to the decimals of the longest
    for text in (*(f"{value:.5g}".replace("-", "−") for value in s.b[:2]), *(f"{value:.3f}" for value in logits)):
        assert f" {text} " in shown
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_solve_shows_a_person_how_far_it_is_and_stops_at_max_steps(here, monkeypatch):
    shown = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.status.Status.update", lambda _, line: shown.append(line))
    arguments = ("solve", "exp:5000:10:150", "--lambda-z", "4e-5", "--lambda-b", "1e-3")  # certified at every step
    assert here(*arguments).returncode == 0
    assert len(shown) >= 3
    assert shown[0].startswith("step 1: relative gap ")
    assert here(*arguments, "--max-steps", 1).returncode == 1


def test_solve_takes_the_remedies_and_saves(here, tmp_path):
    file = tmp_path / "s.npz"
    out = here(
        "solve", "300x3,30x3", "--lambda-w", "0.06", "--lambda-h", "0.0006", "--lambda-b", "0.02", "--smoothing", "0.1",
        "--class-weights", "1x3,4x3", "--offsets=0x3,-0.5x3", "--scales", "1x3,0.8x3", "--temperatures", "1x6",
        "--json", "--out", file,
    )  # fmt: skip
    record = json.loads(out.stdout)
    loss = cs.Loss([1] * 3 + [4] * 3, [0] * 3 + [-0.5] * 3, [1] * 3 + [0.8] * 3, [1] * 6, 0.1)
    problem = cs.Problem("300x3,30x3", 0.006, 0.02, loss)
    assert record["primal"] == pytest.approx(cs.solve(problem).certificate.primal, rel=1e-9)
    assert cs.load_solution(file).problem.num_classes == 6


def test_thresholds_prints_a_table_and_json(here):
    shown = here("thresholds", "500x5,100x5", "--lambda-b", "0.02", "--lambda-z", "0.0037")
    assert "0.00333333" in shown.stdout
    assert "merged" in shown.stdout
    record = json.loads(here("thresholds", "500x5,100", "--features", "nonnegative", "--json").stdout)
    assert record["merge"] == [None] * 6
    t = cs.thresholds(cs.Problem("500x5,100", 1.0, features="nonnegative"))
    assert np.allclose(record["vanish"], t.vanish)
    assert record["problem"]["lambda_b"] == "inf"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["solve", "500x5,-3", "--lambda-z", "0.1"], "class_counts"),
        (["solve", "500x5,0", "--lambda-z", "0.1"], "class 5"),
        (["solve", "5,nan", "--lambda-z", "0.1"], "'nan'"),
        (["solve", "5,2.5", "--lambda-z", "0.1"], "'2.5'"),
        (["solve", "", "--lambda-z", "0.1"], "empty"),
        (["solve", "abc", "--lambda-z", "0.1"], "'abc'"),
        (["solve", "5", "--lambda-z", "0.1"], "at least two"),
        (["solve", "5,4", "--lambda-z", "0"], "`lambda_z`"),
        (["solve", "5,4", "--lambda-z=-1"], "`lambda_z`"),
        (["solve", "5,4", "--lambda-z", "nan"], "`lambda_z`"),
        (["solve", "5,4", "--lambda-z", "inf"], "`lambda_z`"),
        (["solve", "5,4", "--lambda-z", "x"], "--lambda-z"),
        (["solve", "5,4"], "--lambda-z"),
        (["solve", "5,4", "--lambda-z", "0.1", "--lambda-b=-1"], "`lambda_b`"),
        (["solve", "5,4", "--lambda-z", "0.1", "--class-weights", "1,2,3"], "3 for 2 classes"),
        (["solve", "5,4", "--lambda-z", "0.1", "--offsets", "1,b"], "`offsets`"),
        (["solve", "5,4", "--lambda-z", "0.1", "--features", "relu"], "--features"),
        (["solve", "5,4", "--lambda-z", "0.1", "--smoothing", "1"], "`smoothing`"),
        (["solve", "5,4", "--lambda-w", "0.1"], "--lambda-h"),
        (["solve", "5,4", "--lambda-w", "0.1", "--lambda-h=-1"], "`lambda_h`"),
        (["solve", "5,4", "--lambda-z", "0.1", "--tol", "0"], "`tol`"),
        (["solve", "5,4", "--lambda-z", "0.1", "--out", "no/such/folder/s.npz"], "no/such/folder"),
        (["nonsense"], "nonsense"),
        (["demo", "--data", "imagenet"], "imagenet"),
        (["train", "--counts", "100x10", "--lambda-z", "0.01", "--out", "x", "--data", "cats"], "cats"),
        (["train", "--counts", "100x9,5000", "--lambda-z", "0.01", "--out", "x"], "5000"),
        (["train", "--counts", "20x10", "--lambda-z", "0.01", "--out", "file/x", "--epochs", "1"], "file"),
        (
            ["train", "--counts", "5x10", "--lambda-z", "1", "--out", "x", "--data=fashion-mnist", "--data-dir=bad"],
            "bad",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(here, tmp_path, monkeypatch, arguments, says):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train-images-idx3-ubyte").write_bytes(b"garbage")
    monkeypatch.chdir(tmp_path)
    out = here(*arguments)
    assert out.returncode == 2
    assert out.stdout == ""
    assert len(out.stderr.strip().splitlines()) == 1
    assert out.stderr.startswith("collapsar: ")
    assert says in out.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "file"]


def test_not_converged_is_exit_1(here):
    out = here("solve", "500x5,100x5", "--lambda-z", "0.0037", "--tol", "1e-17", "--json")
    assert out.returncode == 1
    assert json.loads(out.stdout)["relative_gap"] < 1e-12
    assert "not converged" in out.stderr


def test_help_is_written_for_people(here):
    out = here("--help")
    assert out.returncode == 0
    for command in ("solve", "thresholds", "train", "demo"):
        assert command in out.stdout
        assert "collapsar " + command in here(command, "--help").stdout
    assert here("--version").stdout.strip() == cs.__version__


def test_train_records_resumes_and_refuses_another_configuration(here, tmp_path):
    arguments = ["train", "--counts", "20x5,5x5", "--lambda-z", "0.02", "--lambda-b", "0.02", "--epochs", "4"]
    first = here(*arguments, "--out", tmp_path / "run", "--json")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    record = json.loads(first.stdout)
    assert len(record["measured"]["states"]) == 10
    assert record["epochs"] == 4
    again = json.loads(here(*arguments, "--out", tmp_path / "run", "--json").stdout)
    assert again["measured"] == record["measured"]
    told, diagnosed = here(*arguments, "--out", tmp_path / "run").stdout, here("diagnose", tmp_path / "run").stdout
    assert told.startswith(diagnosed)  # one answer of two commands
    assert record["diagnosis"]["headline"] in " ".join(told.split())
    other = here(*arguments, "--out", tmp_path / "run", "--seed", "1")
    assert other.returncode == 2
    assert len(other.stderr.strip().splitlines()) == 1


def test_the_list_of_commands_says_what_each_command_says() -> None:
    for name, words in ({n: w for n, (_, w) in COMMANDS.items()} | STUDIES).items():
        command = program().resolve_command(None, [name])[1]
        assert " ".join(command.help.split()).startswith(words.rstrip(".")), name


def test_the_help_lists_at_most_a_dozen_options_together() -> None:
    """Long commands have theirs in groups that say what they are about."""
    for name in COMMANDS:
        command = program().resolve_command(None, [name])[1]
        options = Counter(p.rich_help_panel for p in command.params if p.param_type_name == "option")
        assert max(options.values(), default=0) <= 12, name
        if name in ("solve", "advise"):
            assert {"The penalties", "The loss"} <= set(options)


def test_a_wrong_choice_is_answered_with_the_choices(here):
    ended = here("solve", "500x5,100x5", "--lambda-z", "0.01", "--features", "positive")
    assert ended.returncode == 2
    assert "Invalid value for '--features': 'positive' is not one of 'signed', 'nonnegative'." in ended.stderr


def test_rows_begin_with_the_largest_class_and_equal_answers_need_no_table(here, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(["ant"] * 5 + ["bee"] * 90 + ["cat"] * 30))
    for command in ("solve", "thresholds"):
        shown = here(command, tmp_path / "labels.txt", "--lambda-z", "0.01", "--lambda-b", "0.02").stdout
        assert shown.index(" bee ") < shown.index(" cat ") < shown.index(" ant ")
        assert "sibling" not in shown  # no class has one
    none = here("thresholds", tmp_path / "labels.txt", "--norm", "8").stdout
    assert "has no threshold" in none
    assert " bee " not in none


def test_classes_that_merge_gradually_are_not_said_to_merge_never(here):
    problem = ("100,40,10", "--lambda-b", "0", "--norm", "11.3", "--lambda-w", "100")
    assert "merged" in here("solve", *problem).stdout
    shown = here("thresholds", *problem).stdout
    assert "gradual" in shown
    assert "merged" in shown
    several = here("thresholds", "100x5,20x5", "--lambda-b", "0", "--norm", "11.3").stdout
    assert "gradual" not in several
    assert "8.45352" in several


@pytest.mark.parametrize(
    ("named", "length"),
    [("layernorm --width 64", "8"), ("batchnorm --width 64", "8 --over batch"), ("cosine --width 9", "16")],
)
def test_a_norm_is_given_by_name_and_width_or_by_its_length(here, named, length):
    solve = ["solve", "100x5,20x5", "--lambda-b", "0", "--lambda-w", "3", "--json", "--norm"]
    assert json.loads(here(*solve, *named.split()).stdout) == json.loads(here(*solve, *length.split()).stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("solve 5,3 --lambda-w 1 --norm layernorm", "--norm layernorm goes with --width"),
        ("thresholds 5,3 --norm batchnorm --width 9 --over sample", "without --over"),
        ("thresholds 5,3 --norm groupnorm", "nor layernorm, rmsnorm, batchnorm or cosine"),
        ("thresholds 5,3 --norm 2 --width 4", "--width goes with --norm layernorm"),
        ("thresholds 5,3 --over batch", "--over batch goes with --norm"),
        ("advise 5,3", "or better --norm, --lr, --steps"),
        ("advise 5,3 --optimizer adamw --weight-decay 0.1", "say how far it has acted with --norm, --lr"),
        ("advise --diagnosis nothing.json", "nothing.json: no such file or directory"),
        ("diagnose nothing.npz --class-names a,b", "a,b is not a file"),
        ("demo --data mnist", "'mnist' is not one of 'digits', 'fashion-mnist'"),
    ],
)
def test_what_a_newcomer_types_wrong_is_answered_with_the_way_out(here, words, message):
    ended = here(*words.split())
    assert ended.returncode == 2
    assert message in ended.stderr


def test_names_of_classes_that_look_like_markup_are_printed_as_they_are(here, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(["dog[bold]"] * 50 + [":cat:"] * 10))
    for verb in ("solve", "thresholds", "advise"):
        printed = here(verb, labels, "--lambda-z", 0.01).stdout
        assert "dog[bold]" in printed, verb
        assert ":cat:" in printed, verb


LONG = {
    "thresholds 500x5,100x5 --lambda-z 0.003": "10 classes of 2 sizes",
    "advise 500x5,100x5 --lambda-z 0.003": "advice for 10 classes",
    "advise 100x5,20x5 --norm layernorm --width 64 --weight-decay 0.1 --lr 0.1 --steps 100 --batch-size 8": (
        "advice for 10 classes"
    ),
}


@pytest.mark.parametrize("words", LONG)
def test_long_work_says_that_it_goes_on_and_short_work_nothing(here, words, monkeypatch):
    quick = here(*words.split(), "--json")
    assert (quick.returncode, quick.stderr) == (0, "")
    monkeypatch.setattr(output, "_FIRST", 0.0)
    slow = here(*words.split(), "--json")
    assert f"{LONG[words]}: 0 s so far" in slow.stderr
    assert slow.stdout == quick.stdout


DECAYED = {
    "--norm layernorm --width 64 --weight-decay 1.5": ("layernorm", None, cs.Loss()),
    "--norm batchnorm --width 64 --weight-decay 1.5": ("batchnorm", None, cs.Loss()),
    "--norm batchnorm --weight-decay 0.1 --gain-decay 0.3": ("batchnorm", 0.3, cs.Loss()),
    "--norm rmsnorm --width 64 --weight-decay 1.5 --smoothing .1": ("rmsnorm", None, cs.Loss(smoothing=0.1)),
}


@pytest.mark.parametrize("words", DECAYED)
def test_weight_decay_means_the_same_to_solve_thresholds_and_advise(here, words: str) -> None:
    norm, gain, loss = DECAYED[words]
    solved, levels = (
        json.loads(here(verb, "100x5,20x5", *words.split(), "--json").stdout) for verb in ("solve", "thresholds")
    )
    wd = 0.1 if gain else 1.5
    how: Any = {"norm": norm, "width": 64, "schedule": "constant", "gain_decay": gain, "smoothing": loss.smoothing}
    advice = advise_standard("100x5,20x5", Recipe("sgd", wd, 0.1, 1000, 64, **how))
    problem = solved["problem"]
    assert (problem["lambda_b"], problem["normalization"]["lambda_w"]) == (0.0, wd)
    assert levels["problem"] == problem
    assert levels["class_states"] == solved["class_states"]
    Z, b = np.array(solved["Z"]), np.array(solved["b"])
    outvoted = np.flatnonzero((Z + b[:, None]).argmax(axis=0) != np.arange(10)).tolist()
    assert outvoted == list(advice.outvoted or advice.merged)


def test_one_decayed_layer_is_solved_where_several_have_a_threshold(here) -> None:
    """The decay at which the smallest classes vanish, by the closed columns and by the solver on both sides of it."""
    found = json.loads(here(*["thresholds", "100x5,20x5", "--layers", "1", "--json"]).stdout)
    assert "verdict" not in found
    for factor, state in ((0.99, "separated"), (1.01, "vanished")):
        words = f"solve 100x5,20x5 --layers 1 --weight-decay {factor * found['weight_decay']} --json"
        solved = json.loads(here(*words.split()).stdout)
        assert solved["class_states"][5:] == [state] * 5
        assert solved["problem"]["features"] == "nonnegative"
    two = json.loads(here(*["thresholds", "100x5,20x5", "--layers", "2", "--weight-decay", "0.01", "--json"]).stdout)
    advised = json.loads(here(*["advise", "100x5,20x5", "--layers", "2", "--weight-decay", "0.01", "--json"]).stdout)
    assert {name: two[name] for name in advised["predictions"][0]} == advised["predictions"][0]
    shown = here(*["thresholds", "100x5,20x5", "--layers", "2", "--weight-decay", "0.01"]).stdout
    assert "0.0681" in shown
    assert "separated" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("solve 5,3 --weight-decay .1", "--weight-decay goes with --layers, or with --norm and --width"),
        ("solve 5,3 --layers 1", "--layers goes with --weight-decay"),
        ("solve 5,3 --layers 2 --weight-decay .1", "`collapsar thresholds --layers 2` says where"),
        ("solve 5,3 --layers 1 --weight-decay .1 --norm 3", "two different trainings"),
        ("solve 5,3 --layers 1 --weight-decay .1 --lambda-z .1", "the only one; got --lambda-z too"),
        ("solve 5,3 --norm layernorm --width 8 --weight-decay 1 --gain-decay 1", "gathers in few features"),
        ("solve 5,3 --norm 3 --weight-decay 1 --gain-decay 1", "it has no gain"),
        ("thresholds 5,3 --gain-decay 1", "--gain-decay goes with --norm"),
        ("thresholds 5,3 --layers 2 --features signed", "got --features"),
        ("thresholds 5,3 --norm 3 --weight-decay 0", "`weight_decay` must be"),
    ],
)
def test_weight_decay_that_says_too_little_or_too_much_is_refused(here, words, message):
    ended = here(*words.split())
    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_no_number_of_a_table_is_cut_in_a_narrow_terminal(width):
    """At 40 columns 1000 samples were printed as 100, and a safety of 3.32 as 3."""
    rows = [
        ("aquarium fish", "1000", "separated", "0.00398", "3.32", "−0.774"),
        ("... 18 more",),
        ("bee", "9", "–", "–", "–", "–"),
    ]
    columns = ("classes", "samples", "at the optimum", "threshold", "safety", "margin")
    out = io.StringIO()
    Console(file=out, width=width).print(plain_table(*columns, rows=rows))
    text = out.getvalue()
    assert all(cell in text for row in rows for cell in row[1:])
    assert max(map(len, text.splitlines())) <= width
    assert ("  samples  1000" in text) == (width <= 60)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match=f"{tmp_path.name} cannot be written: it is a folder"):
        write_atomically(tmp_path, "page")
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))
