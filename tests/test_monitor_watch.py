"""When the monitor speaks: sequences of mean predictions with a known story."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from collapsar.monitor.watch import MergeRule, MergeWatch

K = 5


def predictions(minority: float, majority: float = 4.0, common: float = 0.0) -> np.ndarray:
    """Three classes with contrast ``majority``, two with ``minority`` around a common column of their own."""
    Z = np.zeros((K, K))
    Z[:3, :3] = majority * (np.eye(3) - 1 / K)
    Z[3:, 3:] = minority * (np.eye(2) - 1 / 2) + common
    Z[:3, 3:] = -2 * common / 3
    return Z


def told(watch: MergeWatch, sequence) -> list[tuple[str, float, tuple[int, ...]]]:
    events = [event for epoch, Z in enumerate(sequence, start=1) for event in watch.observe(epoch, Z)]
    return [(event.kind, event.epoch, event.classes) for event in events]


def test_merging_is_said_once_when_confirmed_and_again_after_coming_apart():
    apart, merged = predictions(2.0, common=1.0), predictions(0.1, common=1.0)
    watch = MergeWatch(K)
    assert told(watch, [apart] * 3 + [merged] * 4 + [apart] * 3 + [merged] * 3) == [
        ("merge", 5, (3, 4)),
        ("separate", 9, (3, 4)),
        ("merge", 12, (3, 4)),
    ]


def test_names_are_used():
    watch = MergeWatch(K, class_names=["ant", "bee", "cat", "lynx", "puma"])
    sequence = [predictions(2.0, common=1.0)] * 2 + [predictions(0.0, common=1.0)] * 2
    (message,) = [event.message for epoch, Z in enumerate(sequence, 7) for event in watch.observe(epoch, Z)]
    assert message.startswith("Classes lynx and puma begin to merge (epoch 10): their mean predictions differ by less")
    assert watch.summary() == "After epoch 10: 3 of 5 classes are separated; merged: lynx and puma."


@pytest.mark.parametrize("dip", [1, 2])
def test_one_evaluation_alone_is_no_alarm(dip):
    apart, merged = predictions(2.0, common=1.0), predictions(0.0, common=1.0)
    events = told(MergeWatch(K), [apart] * 2 + [merged] * dip + [apart] * 2)
    assert [kind for kind, _, _ in events] == (["merge", "separate"] if dip == 2 else [])


@pytest.mark.parametrize("level", [0.1, 0.2])
def test_noise_about_either_limit_is_said_at_most_once(level):
    """100 evaluations scattered by a third about the limit for merging, then about the one for coming apart."""
    rng = np.random.default_rng(0)
    centred = predictions(1.0, common=1.0) - predictions(1.0, common=1.0).mean(axis=0)
    unit = level * np.linalg.norm(centred, axis=0).max() / np.linalg.norm(centred[:, 3] - centred[:, 4])
    noisy = [predictions(unit * rng.uniform(0.67, 1.33), common=1.0) for _ in range(100)]
    rule = MergeRule(contrast=0.1)
    events = told(MergeWatch(K, rule), [predictions(2.0, common=1.0)] * 2 + noisy)
    assert [kind for kind, _, _ in events] == (["merge"] if level == 0.1 else [])


def test_an_untrained_network_is_silent_whatever_it_shows():
    """Mean predictions of real untrained networks, many evaluations, and those of pure noise."""
    for seed in range(6):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, K))
        watch = MergeWatch(K)
        sequence = [(net(torch.randn(K, 20)) - net[-1].bias).detach().numpy().T for _ in range(30)]
        assert told(watch, sequence) == []
    small = [0.3 * np.random.default_rng(seed).normal(size=(K, K)) for seed in range(100)]
    watch = MergeWatch(K)
    assert told(watch, small) == []
    assert not watch.learned
    assert told(watch, [np.zeros((K, K))] * 30) == []
    assert (
        watch.summary()
        == "After epoch 30: no class is 0.5 nats ahead of its nearest yet: nothing has been learned that could merge."
    )


def test_classes_that_were_never_apart_are_not_said_to_merge_but_named_in_the_end():
    watch = MergeWatch(K)
    learning = [predictions(0.0, majority=a, common=0.5) for a in np.linspace(0.0, 4.0, 30)]
    events = told(watch, learning)
    assert [(kind, classes) for kind, _, classes in events] == [("never separated", (3, 4))]
    assert events[0][1] >= MergeRule().patience
    late = told(watch, [predictions(2.0, common=1.0)] * 2 + [predictions(0.0, common=1.0)] * 2)
    assert [kind for kind, _, _ in late] == ["separate", "merge"]


def test_vanishing_is_said_for_one_class_and_for_all():
    alive = 3 * np.eye(K) - 0.6
    one = alive.copy()
    one[:, 2] = 0.01
    watch = MergeWatch(K)
    assert told(watch, [alive] * 2 + [one] * 3) == [("vanish", 4, (2,))]
    assert told(watch, [np.zeros((K, K))] * 3 + [alive] * 2) == [
        ("vanish", 2, (0, 1, 3, 4)),
        ("separate", 5, (0, 1, 2, 3, 4)),
    ]


def test_merging_first_and_vanishing_later_are_two_sentences():
    merged, gone = predictions(0.0, common=1.0), predictions(0.0, common=0.0)
    events = told(MergeWatch(K), [predictions(2.0, common=1.0)] * 2 + [merged] * 3 + [gone] * 3)
    assert events == [("merge", 4, (3, 4)), ("vanish", 7, (3, 4))]


def test_unseen_classes_decide_nothing():
    apart, merged = predictions(2.0, common=1.0), predictions(0.0, common=1.0)
    unseen = merged.copy()
    unseen[:, 4] = np.nan
    watch = MergeWatch(K)
    assert told(watch, [apart] * 2 + [unseen] * 5) == []
    assert "without samples: 4" in watch.summary()
    assert told(watch, [merged] * 2) == [("merge", 2, (3, 4))]
    assert told(watch, [np.full((K, K), np.nan)] * 3) == []


def test_a_third_class_joining_is_said_of_the_newcomer():
    watch = MergeWatch(K)
    joined = predictions(0.0, common=1.0)
    joined[:, 2] = joined[:, 3]
    events = told(watch, [predictions(2.0, common=1.0)] * 2 + [predictions(0.0, common=1.0)] * 2 + [joined] * 3)
    assert events == [("merge", 4, (3, 4)), ("merge", 6, (2, 3, 4))]


def test_a_chain_is_named_in_one_sentence_and_a_straggler_not_again():
    base = 3 * np.eye(K) - 0.6

    def line(*places: float) -> np.ndarray:
        """Classes 2, 3 and 4 on a line through the column of 3, at places in units of the longest column."""
        direction = np.array([0, 0, 1, 0, -1]) * np.linalg.norm(base[:, 0]) / np.sqrt(2)
        Z = base.copy()
        Z[:, 2:] = (base[:, 3] + np.outer(places, direction)).T
        return Z

    # Two pairs are close, yet the three are no group: the ends are 0.18 apart.
    assert told(MergeWatch(K), [base] * 2 + [line(0.0, 0.09, 0.18)] * 4) == [("merge", 4, (2, 3, 4))]
    # Class 4 comes one evaluation later and is named with the others; its own confirmation adds nothing.
    sequence = [base] * 2 + [line(0.0, 0.04, 0.3)] + [line(0.0, 0.04, 0.08)] * 4
    assert told(MergeWatch(K), sequence) == [("merge", 4, (2, 3, 4))]


def test_going_on_from_a_saved_state_says_nothing_twice():
    apart, merged = predictions(2.0, common=1.0), predictions(0.0, common=1.0)
    first = MergeWatch(K)
    assert told(first, [apart, apart, merged]) == []
    second = MergeWatch(K)
    second.load_state_dict(first.state_dict())
    assert told(second, [merged, merged]) == [("merge", 1, (3, 4))]
    third = MergeWatch(K)
    third.load_state_dict(second.state_dict())
    assert told(third, [merged] * 3) == []
    with pytest.raises(ValueError, match="`state` must be of 3 classes; got 5"):
        MergeWatch(3).load_state_dict(third.state_dict())


def test_long_lists_are_cut():
    watch = MergeWatch(60)
    alive = 3 * np.eye(60)
    (event,) = [e for epoch, Z in enumerate([alive] * 2 + [0 * alive] * 2) for e in watch.observe(epoch, Z)]
    assert len(event.classes) == 60
    assert " 18, 19 and 40 more vanish" in event.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"merge": 0.7}, r"`merge` must be in \(0, 0.5\); got 0.7"),
        ({"vanish": float("nan")}, "`vanish` must be"),
        ({"release": 1.0}, "`release` must be greater than 1"),
        ({"confirm": 0}, "`confirm` must be >= 1; got 0"),
        ({"contrast": -1.0}, "`contrast` must be >= 0"),
    ],
)
def test_bad_rules_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MergeRule(**arguments)


def test_bad_watches_are_named():
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        MergeWatch(1)
    with pytest.raises(ValueError, match="`class_names` must hold one name for each of 3 classes, got 2"):
        MergeWatch(3, class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"`Z` must have shape \(K, K\) = \(3, 3\)"):
        MergeWatch(3).observe(1, np.eye(4))


def test_the_large_one_of_two_classes_stands_by_the_bias_and_is_no_alarm():
    """500 and 20 samples: about the mean over samples the large class is 20/500 as long as the small one."""
    watch = MergeWatch(2, class_names=["rest", "lynx"])
    apart = 4.0 * np.array([1.0, -1.0])
    Z = np.outer(apart, [20 / 520, -500 / 520])
    for epoch in range(1, 15):
        assert watch.observe(epoch, Z, Z + np.array([[3.0], [-3.0]]), [1.0, 1.0], [-1, -1]) == ()
    assert watch.standings.carried == (0,)
    assert watch.summary() == "After epoch 14: 1 of 2 classes is separated; right by the bias alone: rest."
