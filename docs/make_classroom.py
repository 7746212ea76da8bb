"""Write docs/classroom.ipynb: `python docs/make_classroom.py`. The cells live here, readable in a diff."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

CELLS = [
    """# Why small classes fall together

A lesson of about an hour. You need Python and Collapsar (`pip install '.[train,report]'`), no data and no GPU.

**You will see** that a trained classifier places its classes in a rigid shape, that imbalance bends the shape, and that
at a sharp threshold small classes become *one point*. Then you will cause it in a real network, and cure it.""",
    """>import matplotlib.pyplot as plt
>import numpy as np
>
>import collapsar as cs
>from collapsar.report.class_plane import class_means_plane
>from collapsar.report.plots import heatmap""",
    """## 1. Balanced classes: the most even shape

Features of a wide network can lie anywhere, so let us choose the *best* places for three classes of 500 samples, with a
small penalty on the size of head and features. `solve` finds them, and proves it: no other choice has a loss lower by
more than the gap.""",
    """>balanced = cs.Problem((500, 500, 500), lambda_z=0.004, lambda_b=0.02)
>best = cs.solve(balanced)
>print(f"loss {best.certificate.primal:.6f}, and no choice has less than {best.certificate.dual:.6f}")
>np.round(best.Z, 2)""",
    """Column `k` of `Z` holds the scores that samples of class `k` get.

**Exercise.** The angle between two class means is 120°. What is it for four classes? For K? (Hint: the means add up to
zero and all pairs have the same angle.) Check with `s.feature_gram()`.""",
    """>gram = cs.solve(cs.Problem((500,) * 4, lambda_z=0.004, lambda_b=0.02)).feature_gram()
>cosine = gram[0, 1] / gram[0, 0]
>print("cosine for K = 4:", round(float(cosine), 4))""",
    """## 2. Imbalance bends the shape, and a threshold breaks it

Now two of the classes have 100 samples only. Watch them as the penalty grows.""",
    """>counts = (500, 100, 100)
>t = cs.thresholds(cs.Problem(counts, lambda_z=0.004, lambda_b=0.02))
>print("the small classes merge at", round(float(t.merge[-1]), 6), "= sqrt(100)/700 =", round(10 / 700, 6))
>
>figure, axes = plt.subplots(1, 4, figsize=(10, 2.6))
>for ax, factor in zip(axes, (0.3, 0.7, 0.95, 1.05), strict=True):
>    s = cs.solve(cs.Problem(counts, lambda_z=factor * t.merge[-1], lambda_b=0.02))
>    _, features, _ = s.factors(3)
>    names = ["cat", "lynx", "puma"]
>    class_means_plane({"class_means": features.T, "class_names": names, "clusters": [[0], [1, 2]]}, ax)
>    ax.set_title(f"{factor} of the threshold", fontsize=9)
>plt.show()""",
    """**Exercise.** Plot the distance between lynx and puma, `np.linalg.norm(s.Z[:, 1] - s.Z[:, 2])`, against the
penalty. Does it reach zero smoothly or with a jump? How steeply?""",
    """>factors = np.linspace(0.5, 1.2, 40)
>distance = []
>for s in cs.path(cs.Problem(counts, lambda_z=0.004, lambda_b=0.02), [f * t.merge[-1] for f in factors]):
>    distance.append(np.linalg.norm(s.Z[:, 1] - s.Z[:, 2]))
>plt.figure(figsize=(5, 2.6))
>plt.plot(factors, distance)
>plt.axvline(1.0, color="gray", linestyle="--")
>plt.xlabel("penalty / threshold")
>plt.ylabel("distance of lynx and puma")
>plt.show()""",
    """## 3. A guess of your own, judged

The problem is convex, so *any* guess of `Z` and `b` can be given a lower bound that no other guess beats. Change the
numbers below and try to get the gap down by hand; then compare with `solve`.""",
    """>guess = np.array([[2.0, -2.0, -2.0], [-1.0, 1.5, 0.5], [-1.0, 0.5, 1.5]])
>problem = cs.Problem(counts, lambda_z=0.9 * t.merge[-1], lambda_b=0.02)
>mine, theirs = cs.certify(problem, guess, np.zeros(3)), cs.solve(problem).certificate
>print(f"mine {mine.primal:.4f}, no point is below {mine.dual:.4f}; the optimum {theirs.primal:.4f}")""",
    """## 4. Does a network obey?

We train a small network on pictures of digits: five digits with 60 pictures each, five with 15, once at half and
once at 1.3 times the threshold that theory gives for its nonnegative (post-ReLU) features.""",
    """>from collapsar.app.demo_standard import collapse_report
>from collapsar.training import ModelSpec, TrainConfig, load_data, train
>
>data = load_data("digits")
>digits = (60,) * 5 + (15,) * 5
>limit = cs.thresholds(cs.Problem(digits, lambda_z=0.01, lambda_b=0.02, features="nonnegative")).vanish[-1]
>figure, axes = plt.subplots(1, 2, figsize=(6, 3))
>for ax, factor in zip(axes, (0.5, 1.3), strict=True):
>    lam = factor * float(limit)
>    config = TrainConfig(
>        "digits", digits, cs.Penalties(10 * lam, lam / 10, 0.02), epochs=200, clip_norm=1.0,
>        model=ModelSpec("mlp", widths=(64, 64)), eval_every=200, batch_size=125,
>    )
>    result = train(config, data)
>    Z = collapse_report(result.model, data).Z
>    heatmap(Z, ax, clusters=[range(5), range(5, 10)], title=f"{factor} of the threshold")
>    known = np.mean(result.records[-1]["train_class_accuracies"][5:])
>    print(f"at {factor} of the threshold it knows {known:.0%} of the small classes' own training pictures")
>plt.show()""",
    """The network on the right has seen every one of these pictures hundreds of times, and does not know one small
class from another.

## 5. The cure

**Exercise.** Which of these keeps lynx and puma apart at the penalty of the last panel of part 2, and why? (a) twice as
many epochs; (b) twice the samples in every class; (c) showing each lynx and puma twice per epoch. Work out `sqrt(n)/N`
for each, then check.""",
    """>penalty = 1.05 * t.merge[-1]
>for words, changed in {
>    "as it is": (500, 100, 100), "twice the samples": (1000, 200, 200), "small classes twice": (500, 200, 200),
>}.items():
>    print(f"{words:>20}: {cs.solve(cs.Problem(changed, lambda_z=penalty, lambda_b=0.02)).class_states}")""",
    """Twice the samples *lowers* the threshold, since the loss is a mean over samples and the penalty of their
features a sum: N grows faster than the root of n. Showing the small classes more often raises it, up to a point:
`collapsar advise` computes the least factor.""",
]


def notebook() -> nbformat.NotebookNode:
    """The lesson, not executed."""
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for number, text in enumerate(CELLS):
        is_code = text.startswith(">")
        source = "\n".join(line[1:] for line in text.splitlines()) if is_code else text
        make = nbformat.v4.new_code_cell if is_code else nbformat.v4.new_markdown_cell
        book.cells.append(make(source, id=f"cell-{number}"))
    return book


if __name__ == "__main__":
    book = notebook()
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":  # warnings about the machine at hand are no part of the lesson
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    book.metadata.pop("language_info", None)
    nbformat.write(book, Path(__file__).parent / "classroom.ipynb")
