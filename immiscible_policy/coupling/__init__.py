"""Who meets which noise: couplings between data and Gaussian noise for diffusion training.

A coupling replaces the one line ``noise = torch.randn_like(data)`` of a training loop::

    coupling = KNN(k=2)
    noise = coupling(data)

It returns noise aligned with ``data`` and never reorders the data, so conditions stay aligned too.
This package imports torch, scipy and numpy only.
"""

from immiscible_policy.coupling.base import Coupling, Source
from immiscible_policy.coupling.condition_weight import ClusteredConditions, TargetRate
from immiscible_policy.coupling.diagnose import Diagnosis, diagnose
from immiscible_policy.coupling.independent import Independent
from immiscible_policy.coupling.knn import KNN
from immiscible_policy.coupling.linear_assignment import LinearAssignment
from immiscible_policy.coupling.mixture import Mixture
from immiscible_policy.coupling.prefetch import prefetch
from immiscible_policy.coupling.residual import Residual
from immiscible_policy.coupling.seed_cache import SeedCache
from immiscible_policy.coupling.sinkhorn import Sinkhorn
from immiscible_policy.coupling.warmup import Warmup

__all__ = [
    "KNN",
    "ClusteredConditions",
    "Coupling",
    "Diagnosis",
    "Independent",
    "LinearAssignment",
    "Mixture",
    "Residual",
    "SeedCache",
    "Sinkhorn",
    "Source",
    "TargetRate",
    "Warmup",
    "diagnose",
    "prefetch",
]
