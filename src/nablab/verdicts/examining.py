"""From records to the evidence for a claim, by the claim's kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nablab.contract import Claim, Records
from nablab.statistics.resampling import Design
from nablab.verdicts.comparisons import examine_bound, examine_difference
from nablab.verdicts.equivalence import examine_equality
from nablab.verdicts.evidence import Evidence
from nablab.verdicts.rank_correlations import examine_correlation, examine_trend


def examine(claim: Claim, records: Records, design: Design) -> Evidence | None:
    """Weigh a claim against the records.

    Args:
        claim: What is claimed.
        records: The trials in the claim's scope.
        design: Confidence, resamples and seed of the intervals and tests.

    Returns:
        The evidence, or None where the levels of the claim do not occur.

    Raises:
        UsageError: The claim itself makes no sense, such as a trend along names.
    """
    return _EXAMINERS[claim.kind](claim, records, design)


_EXAMINERS: Mapping[str, Callable[[Claim, Records, Design], Evidence | None]] = {
    "difference": examine_difference,
    "bound": examine_bound,
    "trend": examine_trend,
    "correlation": examine_correlation,
    "equality": examine_equality,
}
