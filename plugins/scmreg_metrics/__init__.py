"""Metrics: distances between distributions, coverage, recognition, memorization."""

from __future__ import annotations

import torch
from torch import Tensor

from scmreg.component import Component
from scmreg.hookspecs import hookimpl
from scmreg.metric import Judged, Metric, Reference
from scmreg.rng import generator
from scmreg.types import Count

__all__ = ["Accuracy", "Frechet", "Memorization", "PrecisionRecall", "SlicedWasserstein", "TrajectoryError"]

LARGEST = 4096
"""Dimensions up to which a covariance matrix is worth its cost and its estimate."""


class Frechet(Metric, name="frechet"):
    """Fréchet distance between Gaussians fitted to samples and to real images.

    In pixels (``frechet_pixels``), and for the handwritten digits also in the features of a small digit classifier
    (``frechet``), standardised to unit mean variance. The floor is the distance of two random halves of the real data.
    """

    formula = "||m_1 - m_2||² + tr(C_1 + C_2 - 2 (C_1^½ C_2 C_1^½)^½)"
    reference = "Heusel et al. 2017, arXiv:1706.08500, Eq. 6"
    figures = ("frechet", "frechet_pixels")
    zero_on_itself = figures
    symmetric = figures

    splits: Count = 10
    """Random halvings of the real images whose mean distance is the floor."""

    def applies(self, reference: Reference) -> str | None:
        """Refuse points, and images with more pixels than a covariance can be estimated of."""
        if reference.spec.modality != "image":
            return "the data are no images"
        if len(reference.all) < 4:
            return "a covariance of each half needs four images at least"
        size = reference.spec.shape[0] * reference.spec.shape[1] * reference.spec.shape[2]
        return f"{size} values an image are too many for a covariance" if size > LARGEST else None

    def measure(self, samples: Judged, reference: Reference) -> dict[str, float]:
        """Return the distances to all real images."""
        return self._distances(samples.x, reference.all.x, reference)

    def floor(self, reference: Reference) -> dict[str, float]:
        """Return the mean distance of two random halves."""
        x = reference.all.x
        sums: dict[str, float] = {}
        for split in range(self.splits):
            order = torch.randperm(len(x), generator=generator(split, "frechet floor"))
            half = len(x) // 2
            distances = self._distances(x[order[:half]], x[order[half : 2 * half]], reference)
            sums = {key: sums.get(key, 0.0) + value / self.splits for key, value in distances.items()}
        return sums

    def _distances(self, x: Tensor, y: Tensor, reference: Reference) -> dict[str, float]:
        from scmreg_metrics import digits
        from scmreg_metrics.frechet import frechet_distance

        distances = {"frechet_pixels": frechet_distance(x.flatten(1), y.flatten(1))}
        if digits.are_digits(reference.spec):
            distances = {"frechet": frechet_distance(digits.features(x), digits.features(y)), **distances}
        return distances


class PrecisionRecall(Metric, name="precision-recall"):
    """Share of samples within the real data's neighbourhoods (precision), and the other way round (recall)."""

    formula = "precision = mean_i [s_i in U_j B(r_j, NN_k(r_j))];  recall with samples and real data exchanged"
    reference = "Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 2"
    figures = ("precision", "recall")

    neighbours: Count = 3
    """Neighbour whose distance is the radius of a neighbourhood."""

    def measure(self, samples: Judged, reference: Reference) -> dict[str, float]:
        """Return both shares, in the space of `embed`."""
        from scmreg_metrics.neighbours import covered

        fake, real = embed(samples.x, reference), embed(reference.all.x, reference)
        return {
            "precision": covered(fake, by=real, neighbours=self.neighbours),
            "recall": covered(real, by=fake, neighbours=self.neighbours),
        }


class Accuracy(Metric, name="accuracy"):
    """Share of samples that an independent classifier puts in the class they were asked for.

    For the handwritten digits, by scikit-learn's support vector classifier fitted to the real images; it has nothing
    to do with the network whose features the Fréchet distance uses.
    """

    figures = ("accuracy",)

    def applies(self, reference: Reference) -> str | None:
        """Refuse data that are no digits."""
        from scmreg_metrics import digits

        return None if digits.are_digits(reference.spec) else "there is a classifier for the handwritten digits only"

    def measure(self, samples: Judged, reference: Reference) -> dict[str, float]:
        """Return the share."""
        from scmreg_metrics import digits

        return {"accuracy": digits.accuracy(samples)}


class Memorization(Metric, name="memorization"):
    """Share of samples nearer to a training item than the median held-out item is.

    One half is what new data of the same law would score; more means copying.
    """

    formula = "mean_i [d(s_i, train) < median_j d(h_j, train)]"
    figures = ("memorization",)

    def applies(self, reference: Reference) -> str | None:
        """Refuse data of which nothing was held out."""
        return None if len(reference.held_out) else "no data were held out"

    def measure(self, samples: Judged, reference: Reference) -> dict[str, float]:
        """Return the share, in pixels or coordinates."""
        from scmreg_metrics.neighbours import nearest

        train = reference.train.x.flatten(1)
        threshold = nearest(reference.held_out.x.flatten(1), train).median()
        return {"memorization": float((nearest(samples.x.flatten(1), train) < threshold).double().mean())}


class SlicedWasserstein(Metric, name="sliced-wasserstein"):
    """Mean Wasserstein-2 distance of one-dimensional projections, for data that are points."""

    formula = "sqrt(mean over directions u of W_2²(u·samples, u·real))"
    reference = "Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3"
    figures = ("sliced_wasserstein",)
    zero_on_itself = figures
    symmetric = figures

    projections: Count = 200
    """Random directions."""
    splits: Count = 10
    """Random halvings of the real points whose mean distance is the floor."""

    def applies(self, reference: Reference) -> str | None:
        """Refuse images, where random projections say little."""
        return None if reference.spec.modality == "points" else "the data are images"

    def measure(self, samples: Judged, reference: Reference) -> dict[str, float]:
        """Return the distance to all real points."""
        return {"sliced_wasserstein": self._distance(samples.x, reference.all.x)}

    def floor(self, reference: Reference) -> dict[str, float]:
        """Return the mean distance of two random halves."""
        x, half = reference.all.x, len(reference.all) // 2
        total = 0.0
        for split in range(self.splits):
            order = torch.randperm(len(x), generator=generator(split, "sliced floor"))
            total += self._distance(x[order[:half]], x[order[half : 2 * half]])
        return {"sliced_wasserstein": total / self.splits}

    def _distance(self, x: Tensor, y: Tensor) -> float:
        directions = torch.randn(self.projections, x.shape[1], generator=generator(0, "directions")).double()
        directions = directions / directions.norm(dim=1, keepdim=True)
        ordered = [(z.double() @ directions.T).sort(dim=0).values for z in (x, y)]
        # Quantiles at the middle of each share of the larger set: exact for sets of equal size.
        share = (torch.arange(max(len(x), len(y))).double() + 0.5) / max(len(x), len(y))
        first, second = (z[(share * len(z)).long()] for z in ordered)
        return float((first - second).square().mean().sqrt())


class TrajectoryError(Metric, name="trajectory-error"):
    """Root-mean-square distance of each sample from the exact end of its own trajectory, for data of known law.

    In units of the data's standard deviation, over the first 2,000 samples. The trajectory starts from the sample's
    own noise; where a sampler draws noise in between, the exact consistency function is given the same.
    """

    formula = "sqrt(mean_i ||s_i - f*(noise_i)||²/D)/std"
    reference = "Song et al. 2023 (CM), arXiv:2303.01469, Definition 1 (consistency function)"
    figures = ("trajectory_error",)
    zero_on_itself = figures
    symmetric = figures
    needs_truth = True

    def measure(self, samples: Judged, reference: Reference) -> dict[str, float]:
        """Return the distance, nothing where the exact samples are not known."""
        if samples.truth is None:
            return {}
        error = (samples.x.double() - samples.truth.double()).square().mean().sqrt()
        return {"trajectory_error": float(error) / reference.spec.std}


def embed(x: Tensor, reference: Reference) -> Tensor:
    """Return the space that neighbourhoods are judged in: digit features, or the values themselves."""
    from scmreg_metrics import digits

    return digits.features(x) if digits.are_digits(reference.spec) else x.flatten(1)


@hookimpl
def scmreg_components() -> list[type[Component]]:
    """Register what this package adds."""
    return [Frechet, PrecisionRecall, Accuracy, Memorization, SlicedWasserstein, TrajectoryError]
