"""Accuracy against a labelled set: `fewbits.extraction.metrics` under the runbook's path."""

from fewbits.extraction.metrics import by_panel, by_test, field_level_metrics, sum_metrics
from fewbits.records.extraction_metrics import FieldMetrics

__all__ = ["FieldMetrics", "by_panel", "by_test", "field_level_metrics", "sum_metrics"]
