"""Restoring images: how good a picture is, what a decoder keeps, and a decoder fine-tuned to keep more."""

from alignlab.data.degradations import degrade
from alignlab.restoration.design import load
from alignlab.restoration.distribution import frechet_distance, precision_recall
from alignlab.restoration.lm4lv import LM4LV
from alignlab.restoration.quality import l1, psnr, ssim
from alignlab.restoration.reconstruction import Reconstruction, reconstruct

__all__ = [
    "LM4LV",
    "Reconstruction",
    "degrade",
    "frechet_distance",
    "l1",
    "load",
    "precision_recall",
    "psnr",
    "reconstruct",
    "ssim",
]
