"""What the LM4LV paper (Zheng et al. 2024, "LM4LV: A Frozen Large Language Model for Low-level Vision Tasks") publishes.

Its numbers and recipes are here and nowhere else in the code. They come from the paper's own laboratory (MAE-L, BEiT-L,
VQGAN, LLaMA-2-7B); nothing measured with the embedded models is comparable with them.
"""

from __future__ import annotations

from typing import Any

# The models of the paper's laboratory, by the names that alignlab loads them under.
MODELS = {
    "mae": "facebook/vit-mae-large",
    "mae decoder": "bytetriper/vit-mae-r",
    "beit": "microsoft/beit-large-patch16-224-pt22k",
    "vqgan": "vqgan-f16-16384",
    "llm": "meta-llama/Llama-2-7b-chat-hf",
}

# Its data, by the names that `load_dataset` knows.
DATA = ("wit1024", "nocaps", "llava595k", "imagenet")

# Table 1: reconstruction of ImageNet's validation images. MAE-L1 and MAE* are MAE with its decoder fine-tuned with L1,
# and with L1 + LPIPS. The table's footnote calls the VQGAN one of OpenImages, f8 with 16,384 codes; App. A.3 says f16.
TABLE1 = {
    "MAE": {"rFID": 84.22, "precision": 13.35, "recall": 45.78, "PSNR": 19.15},
    "MAE-L1": {"rFID": 19.96, "precision": 88.46, "recall": 97.57, "PSNR": 29.21},
    "VQGAN": {"rFID": 1.49, "precision": 94.90, "recall": 99.67, "PSNR": 22.61},
    "MAE*": {"rFID": 1.24, "precision": 99.94, "recall": 99.97, "PSNR": 28.96},
}

# App. A.2: fine-tuning MAE's decoder, encoder frozen, loss |x - y| + LPIPS(x, y), images resized to 224 x 224.
DECODER_RECIPE: dict[str, Any] = {
    "batch": 4096,
    "lr": 1e-4 * 4096 / 256,
    "betas": (0.9, 0.95),
    "weight_decay": 0.0,
    "warmup": 100,
    "epochs": 28,
}

# Table 2, column "Degraded": NoCaps' images at 224 x 224, spoilt, against the clean ones. For rotate and flip it compares
# what is to be answered with itself.
TABLE2_DEGRADED = {
    "denoise": {"PSNR": 23.11, "SSIM": 0.49},
    "deblur": {"PSNR": 30.88, "SSIM": 0.83},
    "derain": {"PSNR": 20.52, "SSIM": 0.84},
    "pepper": {"PSNR": 19.22, "SSIM": 0.51},
    "mask": {"PSNR": 20.54, "SSIM": 0.83},
    "rotate": {"PSNR": float("inf"), "SSIM": 1.0},
    "flip": {"PSNR": float("inf"), "SSIM": 1.0},
}

# Section 4.1: training LM4LV on LLaVA-595K, two epochs, on four A100s; clip and schedule from the authors' code.
LM4LV_RECIPE: dict[str, Any] = {
    "batch": 256,
    "lr": 3e-4,
    "betas": (0.9, 0.95),
    "weight_decay": 0.0,
    "warmup": 200,
    "epochs": 2,
    "clip": 1.0,
    "schedule": "linear",
    "task_tokens": 10,
}
