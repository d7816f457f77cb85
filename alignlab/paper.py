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

# Table 2: NoCaps' images at 224 x 224, PSNR in dB; its column of differences is LM4LV minus MAE-r. For rotate and flip
# "degraded" compares what is to be answered with itself, and MAE-r is the reconstruction of the answer.
TABLE2 = {
    task: {
        column: {"PSNR": psnr, "SSIM": ssim}
        for column, (psnr, ssim) in zip(("degraded", "MAE-r", "LM4LV"), figures, strict=True)
    }
    for task, figures in {
        "denoise": ((23.11, 0.49), (19.96, 0.65), (26.77, 0.80)),
        "deblur": ((30.88, 0.83), (26.14, 0.78), (26.23, 0.79)),
        "derain": ((20.52, 0.84), (19.96, 0.74), (24.62, 0.77)),
        "pepper": ((19.22, 0.51), (23.01, 0.58), (25.20, 0.75)),
        "mask": ((20.54, 0.83), (20.00, 0.73), (25.83, 0.80)),
        "rotate": ((float("inf"), 1.0), (29.52, 0.89), (27.18, 0.83)),
        "flip": ((float("inf"), 1.0), (29.52, 0.89), (27.28, 0.84)),
    }.items()
}
TABLE2_DEGRADED = {task: columns["degraded"] for task, columns in TABLE2.items()}

# Table 3, the same setup: what stands where LM4LV has its language model, with about as many parameters to train.
TABLE3 = {
    "denoise": {
        "mlp": {"PSNR": 25.87, "SSIM": 0.76},
        "transformer": {"PSNR": 27.42, "SSIM": 0.81},
        "lm4lv": TABLE2["denoise"]["LM4LV"],
    },
    "rotate": {
        "mlp": {"PSNR": 13.29, "SSIM": 0.32},
        "transformer": {"PSNR": 10.52, "SSIM": 0.23},
        "lm4lv": TABLE2["rotate"]["LM4LV"],
    },
}

# Table 4: alignment of three encoders with LLaMA-2-7B. CS and Ref-CS are 100 times CLIPScore and RefCLIPScore of a linear
# captioning probe on NoCaps; Avg is the mean of these two divided by 100, mutual k-NN (k = 10) and CKA on WIT-1024.
TABLE4 = {
    "VQGAN": {"CS": 26.56, "Ref-CS": 37.48, "M-kNN": 0.02, "CKA": 0.15, "Avg": 0.20},
    "BEiT": {"CS": 37.52, "Ref-CS": 47.78, "M-kNN": 0.07, "CKA": 0.19, "Avg": 0.28},
    "MAE": {"CS": 46.97, "Ref-CS": 55.56, "M-kNN": 0.09, "CKA": 0.31, "Avg": 0.36},
}

# Table 7: deraining with other models, PSNR in dB. MAE-B stands before the language model of all other tables.
TABLE7 = {
    "MAE-r": {"PSNR": 19.96},
    "Gemma-2B-it": {"PSNR": 21.46},
    "MAE-B": {"PSNR": 21.79},
    "Phi-3-mini": {"PSNR": 23.60},
    "GPT-J": {"PSNR": 24.65},
    "Llama2-7B-inst": {"PSNR": 24.62},
}
OTHER_LLMS = {
    "Gemma-2B-it": "google/gemma-2b-it",
    "Phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "GPT-J": "EleutherAI/gpt-j-6b",
}
MAE_BASE = "facebook/vit-mae-base"

# Table 6: A = W_out W_in of the adapters (n = 1024) against a matrix of standard Gaussian numbers and the identity. L is the
# mean squared entry of A - alpha I at the best alpha, D the mean of |A_ii / A_ij| over i != j.
TABLE6 = {
    "L": {"Random": 1.00, "Ours": 5.26e-4, "Identity": 0.0},
    "D": {"Random": 12.52, "Ours": 1.53e4, "Identity": float("inf")},
}

# Figures 4 to 7 are pictures without numbers; what the paper says of them, in its words but for their order.
FIG12 = "every layer is above the MLP; layer 8 is the best, and deeper ones are gradually worse"  # App. B.3
SAYS = {
    "fig4": "MAE, BEiT and VQGAN all succeed in image repetition; BEiT and VQGAN totally fail for image rotation, MAE "
    "still performs well",
    "fig5": "ViT-LLM generation fails for image denoising even when the noise level is low, producing low-quality and "
    "blurred images",
    "fig6": "a single linear layer is insufficient: the main structure remains, the images have weird colours and are "
    "divided into patches",
    "fig7": "a randomly initialised LLM gives messy outputs: it fails to generate meaningful images",
    "depth": "nothing of this: its language models are whole",
    "choices": "its rate is 3e-4, its features are as they are, and how its layers begin it does not say; it tries no others",
    "table2": "on all restoration tasks LM4LV is above MAE-r; on spatial tasks it comes close to MAE-r, which is the upper "
    "bound there",
    "table3": "LM4LV surpasses the MLP but falls behind the Transformer in denoising; both fail to rotate, the LLM handles "
    "it well",
    "table4": "MAE has a far higher alignment score than BEiT and VQGAN; BEiT and VQGAN both output nearly irrelevant content "
    "about the images, while MAE can perform generally well",
    "table7": "with every LLM and every size of MAE there is an improvement over MAE-r, larger for larger models",
}

# Section 4.1: "a maximum of 4 NVIDIA A100 GPUs. A single training takes around 8 hours." A100: NVIDIA's data sheet, bf16.
HARDWARE: dict[str, Any] = {"gpu": "A100", "gpus": 4, "hours": 8, "peak": 312e12}

# App. B.4: tokens of one restoration and the FLOP of the language model on them, 2 x tokens x parameters.
COMPUTE: dict[str, Any] = {
    "visual_tokens": 196,
    "task_tokens": 10,
    "text_tokens": 8,
    "llm_parameters": 7e9,
    "llm_flop": 5.74e12,
    "mae_flop": 25.56e9,
    "flop": 5.77e12,
}

# The sizes of its models, as transformers' configurations of the hub have them: what is not here is transformers' default of
# that type. They make a model without its weights.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **{
        name: {
            "model_type": "vit_mae",
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        }
        for name in (MODELS["mae"], MODELS["mae decoder"])
    },
    MAE_BASE: {"model_type": "vit_mae"},
    # BEiT's are named as in its authors' code.
    MODELS["beit"]: {
        "model_type": "beit",
        "width": 1024,
        "depth": 24,
        "heads": 16,
        "hidden": 4096,
        "patch": 16,
        "grid": 14,
        "codes": 8192,
        "absolute": False,
    },
    MODELS["llm"]: {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    OTHER_LLMS["Gemma-2B-it"]: {
        "model_type": "gemma",
        "hidden_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 16384,
        "vocab_size": 256000,
    },
    OTHER_LLMS["Phi-3-mini"]: {
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "pad_token_id": 32000,
    },
    OTHER_LLMS["GPT-J"]: {"model_type": "gptj"},
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

# App. A.4: the captioning probe is trained as LLaVA's first stage (Liu et al. 2023), on 100,000 pairs of its 595,375 for
# one epoch. LLaVA's script gives batch, rate, schedule, warm-up (a share of the steps) and weight decay; betas and clip
# are the defaults of the trainer that it runs (transformers').
PROBE_RECIPE: dict[str, Any] = {
    "batch": 128,
    "lr": 2e-3,
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "warmup": 0.03,
    "schedule": "cosine",
    "clip": 1.0,
    "epochs": 1,
    "subset": 100_000,
    "dtype": "bfloat16",
}
# The judge of Table 4's CLIPScores, as open_clip calls it: that of the authors of CLIPScore.
JUDGE = "ViT-B-32/openai"
