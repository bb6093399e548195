"""How well a variant finds objects: COCO's metrics, and their intervals. Matching and measuring have a module each."""

from fewbits.analysis.detection_matching import Matches, match_detections
from fewbits.analysis.detection_metrics import RESAMPLES, detection_metrics

__all__ = ["RESAMPLES", "Matches", "detection_metrics", "match_detections"]
