from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import collapsar as cs
from collapsar.core.threads import one_thread_below

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ("500x5,100x5", [500] * 5 + [100] * 5),
        (" 7 , 3x2 ", [7, 3, 3]),
        ("exp:5000:50:3", [5000, 500, 50]),
        ("step:100:10:5", [100, 100, 10, 10, 10]),
        (",".join(map(str, range(11, 311))), list(range(11, 311))),  # longer than the name of a file may be
        ([3.0, 2.0], [3, 2]),
        (np.array([4, 5], dtype=np.uint8), [4, 5]),
    ],
)
def test_counts_are_read(spec, counts):
    assert cs.class_counts(spec).tolist() == counts


@pytest.mark.parametrize("name", ["labels.txt", "labels.npy"])
def test_counts_are_read_from_labels(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, np.array([10, 2, 10, 10, 2, 7]))
    else:
        path.write_text("10\n2\n10\n\n10\n2\n7\n")
    assert cs.class_counts(str(path)).tolist() == [2, 1, 3]  # classes 2, 7, 10


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ([], "non-empty"),
        ("", "is empty"),
        ([5], "at least two"),
        ([5, -1], "class 1"),
        ([5, 0], "class 1"),
        ([5, NAN], "class 1"),
        ([5, INF], "class 1"),
        ([5, 2.5], "2.5 for class 1"),
        ("five,six", "'five'"),
        ("5x", "cannot be read"),
        ("5x-2,4", "cannot be read"),
        ("exp:10:1", "exp:5000:100:10"),
        ("exp:10:0:3", "cannot be read"),
        (["a", "b"], "whole numbers"),
        ("5," * 3000 + "x", "...,5,5,5"),
        ("99999999999999999999x2,5", "from 1 to 1e+15, got 1e+20 for class 0"),
        ([[1, 2], [3, 4]], "shape (2, 2)"),
    ],
)
def test_bad_counts_are_named(spec, says):
    with pytest.raises(ValueError, match="class_counts") as error:
        cs.class_counts(spec)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600  # a list of thousands is not printed whole


def test_penalties_of_a_path_are_numbers():
    for wrong in (None, "0.1"):
        lambdas: Any = wrong
        with pytest.raises(ValueError, match="`lambdas` must be numbers"):
            cs.path(cs.Problem("5x2,3x2", 0.1), lambdas)


def test_counts_in_place_of_a_problem_are_named():
    verbs: tuple[Any, ...] = (cs.solve, cs.thresholds, cs.advise, lambda counts: cs.path(counts, [0.1]))
    for verb in verbs:
        with pytest.raises(ValueError, match=r"`problem` must be a collapsar.Problem, .* got \(5, 3\)"):
            verb((5, 3))


def test_bad_label_files_are_named(tmp_path):
    garbage, empty, binary = tmp_path / "bad.npy", tmp_path / "empty.txt", tmp_path / "b.txt"
    garbage.write_bytes(b"not an array")
    empty.write_text("\n\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (garbage, empty, binary):
        with pytest.raises(ValueError, match=path.name):
            cs.class_counts(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lambda_z": 0.0}, "`lambda_z`"),
        ({"lambda_z": -1.0}, "`lambda_z`"),
        ({"lambda_z": NAN}, "`lambda_z`"),
        ({"lambda_z": INF}, "`lambda_z`"),
        ({"lambda_z": "much"}, "`lambda_z`"),
        ({"lambda_b": -0.1}, "`lambda_b`"),
        ({"lambda_b": NAN}, "`lambda_b`"),
        ({"features": "relu"}, "`features`"),
        ({"feature_mass": [1.0, 2.0]}, "`feature_mass`"),
        ({"feature_mass": [1.0, 2.0, 0.0]}, "class 2"),
    ],
)
def test_bad_problems_are_named(change, says):
    good = {"class_counts": [5, 4, 3], "lambda_z": 0.1}
    with pytest.raises(ValueError) as error:
        cs.Problem(**{**good, **change})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ({"smoothing": 1.0}, "`smoothing`"),
        ({"smoothing": -0.1}, "`smoothing`"),
        ({"smoothing": NAN}, "`smoothing`"),
        ({"class_weights": [1, 0, 1]}, "class 1"),
        ({"scales": [1, -1, 1]}, "`scales`"),
        ({"temperatures": [1, NAN, 1]}, "`temperatures`"),
        ({"offsets": [0, INF, 0]}, "`offsets`"),
        ({"offsets": [0, 0]}, "2 for 3 classes"),
        ({"offsets": "big"}, "`offsets`"),
    ],
)
def test_bad_losses_are_named(loss, says):
    with pytest.raises(ValueError) as error:
        cs.Problem([5, 4, 3], 0.1, loss=cs.Loss(**loss))
    assert says in str(error.value)


def test_a_problem_is_a_value():
    p = cs.Problem("5x2,3", 0.1, 0.02, cs.Loss(offsets=[0.0, 0.1, 0.2]))
    assert p == cs.Problem([5, 5, 3], 0.1, 0.02, cs.Loss(offsets=[0.0, 0.1, 0.2]))
    assert hash(p) == hash(p.replace())
    for change in ({"lambda_z": 0.2}, {"lambda_b": 0.0}, {"features": "nonnegative"}, {"loss": cs.Loss()}):
        assert p.replace(**change) != p
    assert cs.Problem.from_dict(json.loads(json.dumps(p.replace(lambda_b=INF).to_dict()))) == p.replace(lambda_b=INF)
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.lambda_z = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="read-only"):
        p.class_counts[0] = 1


def test_weights_enter_the_loss_share_before_normalisation():
    p = cs.Problem([30, 10], 0.1, loss=cs.Loss(class_weights=[1.0, 6.0]))
    assert p.loss_share.tolist() == [1 / 3, 2 / 3]
    assert p.mass.tolist() == [30, 10]


def test_penalties_of_the_published_scripts():
    # JMLR Sec. 4 prints 1e-3, 1e-6, 1e-2; the scripts write no halves, and SGD's decay adds
    p = cs.penalties_without_halves(1e-3, 1e-6, 1e-2, weight_decay=5e-4)
    assert p == cs.Penalties(2.5e-3, 2e-6, 2.05e-2)
    assert cs.penalties_without_halves(1e-3, 1e-6).lambda_z == pytest.approx(2 * np.sqrt(1e-9))
    batch = cs.penalties_without_halves(1.0, 3.0, 0.0, feature_term="batch_sum", num_samples=600, batch_size=100)
    assert batch.lambda_h == pytest.approx(2 * 3.0 * 100 / 600)
    mean = cs.penalties_without_halves(1.0, 3.0, 0.0, feature_term="batch_mean", num_samples=600)
    assert mean.lambda_h == pytest.approx(2 * 3.0 / 600)
    with pytest.raises(ValueError, match="num_samples"):
        cs.penalties_without_halves(1.0, 1.0, feature_term="batch_mean")


def test_from_penalties():
    p = cs.Problem.from_penalties([5, 4], lambda_w=1e-3, lambda_h=1e-5, lambda_b=1e-2, features="nonnegative")
    assert (p.lambda_z, p.lambda_b, p.features) == (pytest.approx(1e-4), 1e-2, "nonnegative")
    with pytest.raises(ValueError, match="`lambda_h`"):
        cs.Problem.from_penalties([5, 4], lambda_w=1e-3, lambda_h=0.0)


def test_small_products_use_one_thread_and_large_ones_what_they_had() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with one_thread_below(10):
            assert set(threads()) == {1}
        with one_thread_below(10_000):
            assert threads() == before
        assert threads() == before


def test_many_small_counts_given_by_class_stay_counts():
    # as a list they would be taken for labels
    p = cs.Problem({k: 1 + k % 7 for k in range(226)}, 0.1)
    assert p.num_classes == 226
    assert p.replace(lambda_z=0.2).class_counts.tolist() == p.class_counts.tolist()
    with pytest.raises(ValueError, match="labels"):
        cs.Problem([1 + k % 7 for k in range(226)], 0.1)
