"""Certificates: which configuration keeps a bound on new samples with probability at least 1 - delta.

certify walks a frontier in a fixed order and tests each configuration by an exact p-value.
"""

from offramp.guarantees.certify import certify, samples_needed
from offramp.guarantees.risks import Answers, Risk, early_leaver_error, missed_detection

__all__ = [
    "Answers", "Risk", "certify", "early_leaver_error", "missed_detection", "samples_needed",
]  # fmt: skip
