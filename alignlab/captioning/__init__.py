"""Captions and how good they are: the linear captioning probe, its training and its evaluation against controls, CLIPScore
and RefCLIPScore by a named judge, and the COCO caption metrics.
"""

from alignlab.captioning.clip import CLIPScorer, ClipScores, clip_score, ref_clip_score
from alignlab.captioning.coco import CocoScores, coco_metrics
from alignlab.captioning.evaluation import Evaluation, evaluate, find_judge, score, subjects
from alignlab.captioning.probe import CaptionProbe
from alignlab.captioning.tokenizer import tokenize

__all__ = [
    "CLIPScorer",
    "CaptionProbe",
    "ClipScores",
    "CocoScores",
    "Evaluation",
    "clip_score",
    "coco_metrics",
    "evaluate",
    "find_judge",
    "ref_clip_score",
    "score",
    "subjects",
    "tokenize",
]
