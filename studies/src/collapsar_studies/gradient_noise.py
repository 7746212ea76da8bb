"""The noise of the steps, as decay: what part of a switch's dependence on the learning rate it can explain.

Let a be the amplitude by which a small class stands out in the head, and xi_t = g_t / a the relative gradient of a
batch along it. One step multiplies a by 1 - eta xi_t, and log(1 - x) = -x - x^2/2: besides its mean, the noise of xi
shrinks a at the rate (eta/2) Var(xi), as if the decay were larger by that. It is the condition under which a set that
training cannot leave attracts it, curvature plus half the noise diffusion positive (Chen et al., NeurIPS 2023). With
momentum mu and batches drawn without replacement, m to an epoch, the steps of an epoch make up for one another, and 1/2
becomes

    kappa = (1 - mu) Σ_{j=1}^{m-1} (m - j) c_j / ((m - 1) m),   c_j = (1 - mu^j) / (1 - mu),   eta -> eta / (1 - mu).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from collapsar.training import ImageData, TrainResult
from collapsar.training.measure import features_and_logits

BATCHES = 60  # over which the variance of a batch's gradient is taken, as training sees it


def noise_share(momentum: float, batches: int) -> float:
    """kappa, of ``batches`` to an epoch; 1/2 without momentum, and for one batch 0: there is no noise.

    Example:
        >>> noise_share(0.0, 7), round(noise_share(0.9, 3), 6), noise_share(0.9, 1)
        (0.5, 0.065, 0.0)
    """
    if batches == 1:
        return 0.0
    m = batches
    c = [(1 - momentum**j) / (1 - momentum) for j in range(m)]
    return (1 - momentum) * sum((m - j) * c[j] for j in range(1, m)) / ((m - 1) * m)


def gradient_noise(result: TrainResult, data: ImageData) -> dict[str, Any]:
    """Relative gradients of the head along what makes each of the smallest classes stand out among them.

    Returns:
        "amplitude" (k,), W along (e_k - mean of e) times the feature contrast's direction; "pull" (k,), the mean
        relative gradient there; "variance" (k,), of a batch's relative gradient by the gradients of single samples,
        drawn without replacement; "batch_variance" (k,), the same over batches in training mode, batch statistics and
        all.
    """
    model, config = result.model, result.config
    features, labels = map(torch.cat, zip(*((f, y) for f, _, y in features_and_logits(model, data)), strict=True))
    weight, bias = model.head.weight.detach(), model.head.bias.detach()
    n, B = len(labels), min(config.batch_size, len(labels))
    classes = [k for k, count in enumerate(config.class_counts) if count == min(config.class_counts)]
    means = torch.stack([features[labels == k].mean(0) for k in classes])
    along = means - means.mean(0)
    along = along / along.norm(dim=1, keepdim=True).clamp_min(1e-12)
    logits = torch.zeros(len(classes), len(weight))
    logits[:, classes] = torch.eye(len(classes)) - 1 / len(classes)
    logits = logits / logits.norm(dim=1, keepdim=True)
    amplitude = ((logits @ weight) * along).sum(1)

    def relative(features: Tensor, labels: Tensor) -> Tensor:
        """Of each sample and small class."""
        missed = (features @ weight.T + bias).softmax(1) - nn.functional.one_hot(labels, len(weight))
        return (missed @ logits.T) * (features @ along.T) / amplitude

    single = relative(features, labels)
    generator, seen = torch.Generator().manual_seed(0), []
    trained = copy.deepcopy(model).train()  # a pass in training mode moves the running statistics
    with torch.no_grad():
        for _ in range(BATCHES):
            rows = torch.randperm(n, generator=generator)[:B]
            images = data.normalised(data.train_images[rows])
            seen.append(relative(trained(images)[1], data.train_labels[rows]).mean(0))
    return {
        "amplitude": amplitude,
        "pull": single.mean(0),
        "variance": single.var(0) / B * (n - B) / (n - 1),
        "batch_variance": torch.stack(seen).var(0),
    }
