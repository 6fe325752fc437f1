"""COSTARR: a sample is known if it has the familiar features of its class, and lacks the unfamiliar ones.

"COSTARR: Consolidated Open Set Technique with Attenuation for Robust Recognition" (ICCV 2025), arXiv 2508.01087. The
last layer of a classifier attenuates features: of the feature f (D,) and the weights w_c of the predicted class c, the
Hadamard product w_c o f is what is left of them, and its sum, with the bias, is the logit. What the small weights throw
away still tells known from unknown, so COSTARR looks at both, f (pre) and w_c o f (post).

**This is a reconstruction.** No code of the authors could be had, nor more of the paper than its abstract. Certain are
that right training samples are fitted, the Hadamard product, both kinds of features, and one score. The rest is
inference, and stays an option:

- e = (f, w_c o f), or one of them; mu_c is the mean of e over the right fitting samples of class c. As e is linear in
  f, the mean features m_c (C, D) are enough: mu_c = (m_c, w_c o m_c).
- s = cosine(e, mu_c), which is the cosine of f and m_c weighted by 1 + w_c^2.
- z = (l_c - l_min) / (l_max - l_min), by the lowest and the highest of all logits of the right fitting samples.
- score = z (1 + s) / 2.
"""

from typing import ClassVar

import torch
from torch import Tensor

from .scores import ClassMoments, Score

OPTIONS = {
    "features": ("both", "pre", "post"),
    "similarity": ("cosine", "positive_cosine", "none"),
    "logit_norm": ("global", "per_class", "none"),
    "unseen": ("lowest", "raise"),
}


class Costarr(Score):
    """The score of COSTARR, as far as it could be reconstructed (see above); it needs C * D numbers.

    Args:
        weight, bias: as of `Score`.
        features: what is compared with the mean of the predicted class: 'pre', the features; 'post', the features times
            the weights of the class; 'both'. The paper's ablation names all three.
        similarity: how the cosine s enters: 'cosine', (1 + s) / 2; 'positive_cosine', max(s, 0); 'none', not at all.
            Inference.
        logit_norm: how the logit of the predicted class enters: 'global', by the range of all logits of the right
            fitting samples; 'per_class', by the range of this class's logit among all of them; 'none', as it is.
            Inference.
        clip: whether the normalised logit is kept in [0, 1]. Inference.
        unseen: what becomes of a predicted class without a right fitting sample: 'lowest', s = -1; or 'raise', a
            ValueError at the end of the fit. Inference.
    """

    STATE: ClassVar = {"means": ("C", "D"), "counts": ("C",), "lowest": ("C",), "highest": ("C",)}
    means: Tensor
    counts: Tensor
    lowest: Tensor  # by class; all alike with 'global'
    highest: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        features: str = "both",
        similarity: str = "cosine",
        logit_norm: str = "global",
        clip: bool = False,
        unseen: str = "lowest",
    ):
        options = dict(features=features, similarity=similarity, logit_norm=logit_norm, unseen=unseen)
        for name, value in options.items():
            if value not in OPTIONS[name]:
                raise ValueError(f"{name} is {value!r}; it may be {', '.join(map(repr, OPTIONS[name]))}.")
        if not isinstance(clip, bool):
            raise ValueError(f"clip must be True or False, got {clip!r}.")
        if clip and logit_norm == "none":
            raise ValueError("clip=True is of normalised logits, and logit_norm is 'none'.")
        super().__init__(weight, bias, **options, clip=clip)

    def begin(self):
        self.moments = ClassMoments(*self.weight.shape, self.weight)
        self.low = self.weight.new_full(self.weight.shape[:1], torch.inf)
        self.high = -self.low

    def collect(self, features, logits, labels, right):
        self.moments.add(features[right], labels[right])
        if right.any():
            self.low = torch.minimum(self.low, logits[right].amin(0))
            self.high = torch.maximum(self.high, logits[right].amax(0))

    def close(self, number):
        counts = self.moments.counts
        if not counts.any():
            raise ValueError("the classifier gets no sample of the fitting data right: nothing can be fitted.")
        if self.options["unseen"] == "raise" and not counts.all():
            raise ValueError(f"class {int(counts.argmin())} has no fitting sample that the classifier gets right.")
        if self.options["logit_norm"] != "per_class":
            self.low, self.high = self.low.amin().expand_as(self.low), self.high.amax().expand_as(self.high)
        if self.options["logit_norm"] != "none" and not (self.high > self.low).all():
            raise ValueError(
                f"logit_norm={self.options['logit_norm']!r} needs logits that differ, and those of class "
                f"{int((self.high > self.low).long().argmin())} are all alike in {int(counts.sum())} right samples."
            )
        self.means, self.counts = self.moments.means.to(self.dtype), counts.to(self.dtype)
        self.lowest, self.highest = self.low.clone(), self.high.clone()

    def cosine(self, features: Tensor, classes: Tensor) -> Tensor:
        """s (B,) of features (B, D) with the means of classes (B,); -1 of a class without a mean."""
        means, gain = self.means[classes], self.weight[classes].square()
        if self.options["features"] == "both":
            gain = 1 + gain
        elif self.options["features"] == "pre":
            gain = torch.ones_like(gain)
        lengths = (gain * features.square()).sum(1).sqrt() * (gain * means.square()).sum(1).sqrt()
        found = (gain * features * means).sum(1) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
        return torch.where(self.counts[classes] > 0, found, -1)

    def normalized(self, logits: Tensor) -> Tensor:
        """z (B,) of the largest of logits (B, C)."""
        top, classes = logits.max(1)
        if self.options["logit_norm"] == "none":
            return top
        low = self.lowest[classes]
        z = (top - low) / (self.highest[classes] - low)
        return z.clamp(0, 1) if self.options["clip"] else z

    def rate(self, features, logits):
        s = self.cosine(features, logits.argmax(1))
        familiar = {"cosine": (1 + s) / 2, "positive_cosine": s.clamp(min=0), "none": torch.ones_like(s)}
        return self.normalized(logits) * familiar[self.options["similarity"]]
