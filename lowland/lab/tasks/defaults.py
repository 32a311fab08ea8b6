"""Fields of methods for small networks without attention, where the class's own defaults are for something else."""

from __future__ import annotations

from typing import Any

TUNED: dict[str, dict[str, Any]] = {
    # Published for vision transformers is 0.7; on small CNNs nothing was gained above 0.3 (arXiv 2401.12033, A.14).
    "looksam": {"alpha": 0.2},
    # Published for WRN-16-4 and ResNet-50 is 3, which throws small networks off: 21.4 % after 2 epochs of CIFAR-10 with
    # ResNet-20, where plain has 73.0 % and 0.3 has 72.8 % (docs/results.md).
    "momentum-sam": {"rho": 0.3},
    # Published for fine-tuning is 0.2. From scratch each tensor then takes a fifth of the steps: a point below plain on
    # clean digits (96.8 % against 97.8 %), where 0.9 on 2 epochs of CIFAR-10 keeps up (docs/results.md).
    "sl-sam": {"s": 0.9},
}
