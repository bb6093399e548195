from __future__ import annotations


def test_the_runbooks_path_is_the_same_function() -> None:
    from fewbits.extraction.metrics import field_level_metrics
    from lab_extractor.evaluation import metrics

    assert metrics.field_level_metrics is field_level_metrics
