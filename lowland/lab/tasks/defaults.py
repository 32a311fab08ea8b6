"""Fields of methods for small networks without attention; the class's defaults were published for other networks."""

from __future__ import annotations

from typing import Any

TUNED: dict[str, dict[str, Any]] = {
    # The default 0.7 is for vision transformers; small CNNs did not improve above 0.3 (arXiv 2401.12033, A.14).
    "looksam": {"alpha": 0.2},
    # The default 3 is for WRN-16-4 and ResNet-50. Small networks do not train with it: ResNet-20 has 21.4 % after 2
    # epochs of CIFAR-10; plain has 73.0 %, and a radius of 0.3 has 72.8 % (docs/results.md).
    "momentum-sam": {"rho": 0.3},
    # The default 0.2 is for fine-tuning. In training from scratch each tensor would take a fifth of the steps. It was 1
    # point below plain on clean digits (96.8 % and 97.8 %); 0.9 was equal to plain on 2 epochs of CIFAR-10
    # (docs/results.md).
    "sl-sam": {"s": 0.9},
}

TEXTS: dict[str, dict[str, Any]] = {
    # After 300 steps of TREC on a validation part, one seed: 21.8 % with the default 3, 71.4 % with 0.3; plain has
    # 79.1 %. After 120 steps of characters: 5.1 bits with 3, 3.7 bits with 0.3.
    "momentum-sam": TUNED["momentum-sam"],
    # After the same 300 steps of TREC: 56.5 % with the default 0.2, which is for fine-tuning; 80.2 % with 0.9.
    "sl-sam": TUNED["sl-sam"],
}
"""Fields of methods for small transformers that begin with random weights and learn from texts."""
