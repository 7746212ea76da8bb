"""Names of classes, lists and shares in a sentence; a problem in a line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collapsar.core.problem import Problem


def names_of(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """The names as text; the numbers of the classes by default.

    Raises:
        ValueError: the names are not ``num_classes``.
    """
    names = tuple(map(str, range(num_classes) if class_names is None else class_names))
    if len(names) != num_classes:
        raise ValueError(f"`class_names` must hold one name for each of {num_classes} classes, got {len(names)}")
    return names


def listed(items: Iterable[Any], most: int = 10, *, last: str = ", ") -> str:
    """The items separated by commas, at most the first ``most``; ``last`` stands before the last one.

    Example:
        >>> listed("abc"), listed("abc", last=" and "), listed(range(9), 2)
        ('a, b, c', 'a, b and c', '0, 1 and 7 more')
    """
    texts = [str(item) for item in items]
    if len(texts) > most:
        return f"{', '.join(texts[:most])} and {len(texts) - most} more"
    return last.join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def percent(share: float) -> str:
    """A share in per cent, to two digits; a share just below one is not rounded to 100 %.

    Example:
        >>> percent(0.0123), percent(0.5), percent(1.234), percent(1e-9), percent(0.9968)
        ('1.2 %', '50 %', '123 %', 'less than 0.0001 %', '99.6 %')
    """
    if 0 < share < 1e-6:
        return "less than 0.0001 %"
    if 0.995 <= share < 1:
        return f"{math.floor(1000 * share) / 10:.1f} %"
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def problem_words(problem: Problem, *, lambda_z: bool = True, samples: int | None = None) -> str:
    """Classes, samples, feature model and penalties in one line; give ``samples`` if sizes of classes were joined.

    Example:
        >>> from collapsar.core.problem import Problem
        >>> problem_words(Problem("500x5,100x5", 0.0036, 0.02))
        '10 classes, 3000 samples, signed features, lambda_z 0.0036, lambda_b 0.02'
    """
    how = problem.normalization
    if how is None:
        here = f"lambda_z {problem.lambda_z:.4g}, " if lambda_z else ""
    else:
        here = f"{how}, " if lambda_z else f"norm {how.norm:.4g} per {how.over}, "
    return (
        f"{problem.num_classes} classes, {samples or problem.num_samples} samples, {problem.features} features, "
        f"{here}lambda_b {problem.lambda_b:.4g}"
    )
