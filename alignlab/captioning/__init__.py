"""Captions and how good they are: CLIPScore and RefCLIPScore by a named judge, and the COCO caption metrics."""

from alignlab.captioning.clip import CLIPScorer, ClipScores, clip_score, ref_clip_score
from alignlab.captioning.coco import CocoScores, coco_metrics
from alignlab.captioning.tokenizer import tokenize

__all__ = [
    "CLIPScorer",
    "ClipScores",
    "CocoScores",
    "clip_score",
    "coco_metrics",
    "ref_clip_score",
    "tokenize",
]
