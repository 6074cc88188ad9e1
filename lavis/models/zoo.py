"""Every preset, one row each: `grep blip_caption/ lavis/models/zoo.py` shows a class's.

A row is a `Preset` under <registered name>/<type>. A class finds its own as `Model.PRESETS`. Models from outside name
theirs in their class (`PRESETS = {"base": Preset(…)}`), or add rows to any class with `add_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lavis.common.hub import GS
from lavis.models.albef import ALBEF_TEXT, BARE_TEXT, AlbefConfig, AlbefMatchingConfig
from lavis.models.albef import PRETRAINED as ALBEF_PRETRAINED
from lavis.models.albef_reasoning import HEADS, PAIR_TEXT, AlbefNLVR
from lavis.models.albef_vqa import AlbefVQA, decoder_copies
from lavis.models.alpro import FILES as ALPRO
from lavis.models.alpro import PRETRAINED as ALPRO_PRETRAINED
from lavis.models.alpro import AlproConfig, AlproQAConfig
from lavis.models.blip import BlipConfig
from lavis.models.blip2 import Blip2Config, tower
from lavis.models.blip2_language import Blip2LanguageConfig
from lavis.models.blip_dialogue import BlipDialogueConfig
from lavis.models.blip_matching import BlipMatchingConfig
from lavis.models.checkpoints import EMA_COPIES
from lavis.models.classification import ClassifierConfig
from lavis.models.clip import ClipConfig, ClipTextConfig, clip_vit
from lavis.models.configs import Preset
from lavis.models.parts import Part
from lavis.models.presets import CAPTION, IMAGES, QUESTIONS, TINY, TINY_TEXT
from lavis.models.tokenizer import ASSETS
from lavis.models.vgd_gpt import GPTDialogueConfig
from lavis.nn.gpt import GPTConfig
from lavis.nn.resnet import ResNetConfig
from lavis.nn.text import TextConfig
from lavis.nn.vit import VIT_LARGE, ViTConfig

Rows = dict[str, Preset]
Processors = Mapping[str, Mapping[str, Any]]

# ------------------------------------------------------------------------- what rows have in common
OFFICIAL = "BSD-3-Clause (the official repository's; none is stated for the weights themselves)"
OPENAI = "MIT (OpenAI's repository); the model card declares any deployed use out of scope"
# of parts that come from files of their own: (licence, whether commercial use is allowed; None: not stated)
PART_LICENCES: Mapping[str, tuple[str, bool | None]] = {
    GS + "LAVIS/models/BLIP2/eva_vit_g.pth": ("MIT (EVA's repository; none is stated for this file)", None),
    GS + "LAVIS/models/BLIP2/clip_vit_L.pth": (OPENAI, None),
    "facebook/opt-2.7b": ("OPT-175B licence: research, not commercial", False),
    "facebook/opt-6.7b": ("OPT-175B licence: research, not commercial", False),
    "google/flan-t5-xl": ("Apache-2.0", True),
    "google/flan-t5-xxl": ("Apache-2.0", True),
    "vicuna7b": ("LLaMA's and Vicuna 1.1's: research, not commercial", False),
    "vicuna13b": ("LLaMA's and Vicuna 1.1's: research, not commercial", False),
}
PROMPTED = {"train": {"name": "blip_caption", "prompt": "a picture of "}, "eval": {"name": "blip_caption"}}
CLIP_IMAGES = {"train": {"name": "clip_image_train"}, "eval": {"name": "clip_image_eval"}}
DIALOGUES = {"train": {"name": "gpt_dialogue"}, "eval": {"name": "gpt_dialogue"}}
LAVIS_BLIP2, INSTRUCT_BLIP = GS + "LAVIS/models/BLIP2/", GS + "LAVIS/models/InstructBLIP/"
BLIP, LAVIS_BLIP, LAVIS_ALBEF = GS + "BLIP/models/", GS + "LAVIS/models/BLIP/", GS + "LAVIS/models/ALBEF/"
CAPFILT = BLIP + "model_base_capfilt_large.pth"  # BLIP's pre-trained weights, ViT-B/16
ALBEF_PAIRS = ALBEF_PRETRAINED.replace("ALBEF.pth", "pretrain_model_nlvr.pth")
LARGE: dict[str, Any] = {"vit": VIT_LARGE, "text": TextConfig(memory_width=VIT_LARGE.width)}  # of BLIP
CLIP_LARGE: dict[str, Any] = {
    "embed_dim": 768,
    "vision": clip_vit(width=1024, depth=24, heads=16, patch_size=14),
    "text": ClipTextConfig(width=768, heads=12),
}
TINY_ALBEF_TEXT = replace(TINY_TEXT, vocab_size=1600, depth=4, cross_from=2)
TINY_ALBEF: dict[str, Any] = {**TINY, "text": TINY_ALBEF_TEXT}
TINY_ALPRO: dict[str, Any] = {
    **TINY, "text": replace(TINY_TEXT, vocab_size=1600, depth=4, cross_from=4, token_types=2),
    "frames": 8, "fuse_from": 2, "embed_dim": 64, "grad_checkpointing": 0,
}  # fmt: skip
# each of the two fusion layers begins two, as in the paper
ALBEF_PAIRS_FROM_SHAPES = replace(
    AlbefNLVR.PRETRAINED_RULES,
    rename=(*BARE_TEXT, (r"\.layer\.3\.", ".layer.5.")),
    copy=(
        (r"^text_encoder(_m)?\.encoder\.layer\.3\.", "text_encoder.encoder.layer.2."),
        (r"^text_encoder(_m)?\.encoder\.layer\.4\.", "text_encoder.encoder.layer.5."),
        *EMA_COPIES,
    ),
    fresh=HEADS,
)
ALBEF_VQA_FROM_SHAPES = replace(AlbefVQA.PRETRAINED_RULES, copy=(*decoder_copies(2, 2), *EMA_COPIES))


def official(
    config: Any, note: str, text: Processors = CAPTION, vis: Processors = IMAGES, **row: Any
) -> Preset:
    """Weights of the original library or of a paper's authors."""
    return Preset(config, vis_processor=vis, text_processor=text, licence=OFFICIAL, note=note, **row)


def videos(frames: int) -> Processors:
    return {phase: {"name": f"alpro_video_{phase}", "n_frms": frames} for phase in ("train", "eval")}


def openai(config: ClipConfig, sha256: str, file: str, note: str, **row: Any) -> Preset:
    note = f"{note}, trained on 400 million pictures of the web; English"
    weights = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
    return Preset(config, weights, sha256=sha256, vis_processor=CLIP_IMAGES, licence=OPENAI, note=note, **row)


def tiny(
    config: Any, text: Processors | None = CAPTION, vis: Processors = IMAGES, note: str = "64 px"
) -> Preset:
    """A small model with random starting weights."""
    note = f"random starting weights, {note}; for tests and small data"
    return Preset(
        config, vis_processor=vis, text_processor=text or {}, licence="none needed: no weights", commercial=True,
        note=note,
    )  # fmt: skip


def shapes(tiny: Preset, file: str, changes: Mapping[str, Any] | None = None, **row: Any) -> Preset:
    """A small model that starts from weights in the package, pre-trained on the embedded data.

    Args:
        tiny: its preset with random weights. file: the folder of the weights among the assets.
        changes: fields of the config that differ.
    """
    common: dict[str, Any] = {
        "config": replace(tiny.config, **(changes or {})), "pretrained": str(ASSETS / file),
        "licence": "BSD-3-Clause", "note": "64 px; starts from packaged weights, pre-trained on drawn shapes",
    }  # fmt: skip
    return replace(tiny, **(common | row))


def packaged(tiny: Preset, file: str, note: str, licence: str = "BSD-3-Clause", **row: Any) -> Preset:
    """A small model whose finished weights are in the package."""
    return replace(tiny, weights=str(ASSETS / file), licence=licence, note=note, **row)


def alpro(config: AlproConfig, file: str, data: str, **row: Any) -> Preset:
    note = f"TimeSformer-B/16, {config.frames} frames at 224 px, {data}"
    return official(
        config, note, vis=videos(config.frames), weights=ALPRO + file, pretrained=ALPRO_PRETRAINED, **row
    )


def on_videos(preset: Preset, frames: int, **row: Any) -> Preset:
    """An image model's preset for its use on videos; what was measured on images does not hold."""
    common: dict[str, Any] = {
        "vis_processor": videos(frames), "note": f"{preset.note}; on {frames} frames of a video",
        "pointing": None, "default_for": (), "generation": {},
    }  # fmt: skip
    return replace(preset, **(common | row))


# ------------------------------------------------------------------------------------- small models
CAPTIONER = tiny(BlipConfig(**TINY, max_txt_len=48), PROMPTED)
ANSWERER = tiny(BlipConfig(**TINY, prompt=""), QUESTIONS)
MATCHER = tiny(BlipMatchingConfig(**TINY, embed_dim=64, queue_size=512))
MATCHER_SHAPES = shapes(MATCHER, "blip_shapes", {"max_txt_len": 48}, pointing=46.8)
DIALOGUE = tiny(BlipDialogueConfig(**TINY, max_txt_len=128), QUESTIONS)
CLASSES = tiny(ClassifierConfig(**TINY, num_classes=3))
PAIRS = tiny(ClassifierConfig(**{**TINY, "text": replace(TINY_TEXT, memories="twin")}, num_classes=2))
ALBEF_MATCHER = tiny(AlbefMatchingConfig(**TINY_ALBEF, embed_dim=64, queue_size=512))
ALBEF_SHAPES = shapes(ALBEF_MATCHER, "albef_shapes", pointing=77.3)
ALBEF_ANSWERER = tiny(AlbefConfig(**TINY_ALBEF, max_txt_len=25), QUESTIONS)
ALBEF_CLASSES = tiny(ClassifierConfig(**TINY_ALBEF, num_classes=3))
ALBEF_TWO = tiny(
    ClassifierConfig(
        **{**TINY_ALBEF, "text": replace(TINY_ALBEF_TEXT, depth=6, memories="alternate")}, num_classes=2
    )
)
ALPRO_MATCHER = tiny(AlproConfig(**TINY_ALPRO), CAPTION, videos(8), "8 frames at 64 px")
ALPRO_SHAPES = shapes(ALPRO_MATCHER, "alpro_shapes", {"max_txt_len": 48})
# as many answers as shapes_video_qa has
ALPRO_ANSWERER = tiny(AlproQAConfig(**TINY_ALPRO, num_classes=33), CAPTION, videos(8), "8 frames at 64 px")
EVA_VIT, CLIP_VIT = (Part(LAVIS_BLIP2 + file, frozen=True) for file in ("eva_vit_g.pth", "clip_vit_L.pth"))
BLIP2 = official(
    Blip2Config(),
    "ViT-g/14 of EVA at 224 px, 32 queries",
    pretrained=LAVIS_BLIP2 + "blip2_pretrained.pth",
    parts={"visual_encoder": EVA_VIT},
    elsewhere="Salesforce/blip2-itm-vit-g",
)
BLIP2_CLIP = official(
    Blip2Config(vit=tower("clip_L"), text=replace(BLIP2.config.text, memory_width=1024)),
    "ViT-L/14 of CLIP at 224 px, 32 queries",
    pretrained=LAVIS_BLIP2 + "blip2_pretrained_vitL.pth",
    parts={"visual_encoder": CLIP_VIT},
)
BLIP2_COCO = official(
    Blip2Config(image_size=364),
    "ViT-g/14 of EVA at 364 px, 32 queries, fine-tuned on COCO retrieval",
    weights=LAVIS_BLIP2 + "blip2_finetune_coco.pth",
    pretrained=LAVIS_BLIP2 + "blip2_pretrained.pth",
    parts={"visual_encoder": replace(EVA_VIT, frozen=False)},
    elsewhere="Salesforce/blip2-itm-vit-g-coco",
)
TINY_BLIP2 = tiny(
    Blip2Config(
        image_size=64,
        vit=tower("eva_clip_g", width=128, depth=3, heads=4, patch_size=8),
        text=TextConfig(1601, 128, 4, 4, 256, memory_width=128, cross_every=2),
        num_query_token=8,
        embed_dim=64,
        vocabulary="tiny",
    )
)
STAGE2 = Blip2LanguageConfig(qformer_text_input=False)
INSTRUCT = Blip2LanguageConfig(max_txt_len=128)


def with_language(
    part: str,
    source: str | None,
    file: str,
    config: Blip2LanguageConfig = STAGE2,
    tower: Part = EVA_VIT,
    **row: Any,
) -> Preset:
    """BLIP-2's second stage, or InstructBLIP, with a language model from elsewhere.

    Args:
        part: the language model's, such as "opt_model". source: its Hugging Face id; None: it has to be given.
        file: the weights that were trained.
    """
    size = config.image_size
    parts = {"visual_encoder": tower, part: Part(source, frozen=True)}
    note = f"{'ViT-L/14 of CLIP' if tower == CLIP_VIT else 'ViT-g/14 of EVA'} at {size} px, {source or 'Vicuna 1.1'}"
    place = INSTRUCT_BLIP if config.qformer_text_input else LAVIS_BLIP2
    lengths = {"max_length": 256, "min_length": 1} if config.qformer_text_input else {"min_length": 1}
    return official(config, note, pretrained=place + file, parts=parts, **{"generation": lengths, **row})


def captioner(part: str, source: str, pretrained: str, file: str, elsewhere: str) -> Preset:
    """The same, fine-tuned on COCO captions with its image encoder."""
    config = replace(STAGE2, image_size=364, prompt="a photo of")
    tower = replace(EVA_VIT, frozen=False)
    lengths = {"min_length": 8}  # as in its recipe
    return with_language(
        part,
        source,
        pretrained,
        config,
        tower,
        weights=LAVIS_BLIP2 + file,
        generation=lengths,
        elsewhere=elsewhere,
    )


CLIP_TINY = ClipConfig(
    image_size=64,
    embed_dim=128,
    vision=clip_vit(width=128, depth=4, heads=4, patch_size=8),
    text=ClipTextConfig(width=128, depth=3, heads=4, context_length=48, vocab_size=4610),
)
GPT_TINY = GPTDialogueConfig(
    transformer=GPTConfig(
        width=128, depth=3, heads=4, max_positions=256, dropout=0.0, attention_dropout=0.0, init_std=0.06
    ),
    len_tokenizer=1024,
    len_video_ft=3 * 16 * 16,
)
# of videos there are no candidates to choose among
WRITES = BlipDialogueConfig(answering="generate")
TINY_WRITES = BlipDialogueConfig(**TINY, max_txt_len=128, answering="generate")
VQA480 = BlipConfig(image_size=480, vit=ViTConfig(drop_path=0.1), prompt="", max_txt_len=35)

# --------------------------------------------------------------------------------------------- rows
# fmt: off
ROWS: Rows = {
    # BLIP, images
    "blip_caption/base_coco": official(
        BlipConfig(), "ViT-B/16 at 384 px, fine-tuned on COCO captions", PROMPTED, pretrained=CAPFILT, download_gb=0.9,
        weights=LAVIS_BLIP + "blip_coco_caption_base.pth", default_for=("caption", "captioning", "explain")),
    "blip_caption/large_coco": official(
        BlipConfig(**LARGE, grad_checkpointing=5), "ViT-L/16 at 384 px, fine-tuned on COCO captions", PROMPTED,
        weights=BLIP + "model_large_caption.pth", pretrained=BLIP + "model_large.pth"),
    "blip_caption/tiny": CAPTIONER,
    "blip_caption/tiny_shapes": packaged(
        CAPTIONER, "tiny_shapes", "in the package; knows drawings of coloured shapes and nothing else", pointing=83.1,
        default_for=("caption", "captioning", "explain"), generation={"max_length": 40, "min_length": 5}),
    "blip_classification/base": official(
        # the original names a captioner's file here, which has no text encoder
        ClassifierConfig(), "ViT-B/16 at 384 px, pre-trained; to be fine-tuned, num_classes is to be given",
        pretrained=CAPFILT, default_for=("classification",)),
    "blip_classification/tiny": CLASSES,
    "blip_classification/tiny_shapes": shapes(CLASSES, "blip_shapes", default_for=("classification",)),
    "blip_feature_extractor/base": official(
        BlipMatchingConfig(image_size=224, max_txt_len=30), "ViT-B/16 at 224 px, pre-trained", weights=CAPFILT,
        default_for=("features",)),
    "blip_feature_extractor/large": official(
        BlipMatchingConfig(**LARGE, image_size=224, max_txt_len=30), "ViT-L/16 at 224 px, pre-trained",
        weights=BLIP + "model_large.pth"),
    "blip_feature_extractor/tiny": MATCHER,
    "blip_feature_extractor/tiny_shapes": replace(MATCHER_SHAPES, default_for=("features",)),
    "blip_image_text_matching/base": official(
        BlipMatchingConfig(), "ViT-B/16 at 384 px, fine-tuned on COCO retrieval",
        weights=BLIP + "model_base_retrieval_coco.pth"),
    "blip_image_text_matching/large": official(
        BlipMatchingConfig(**LARGE), "ViT-L/16 at 384 px, fine-tuned on COCO retrieval",
        weights=BLIP + "model_large_retrieval_coco.pth"),
    "blip_image_text_matching/tiny": MATCHER,
    "blip_image_text_matching/tiny_shapes": MATCHER_SHAPES,
    "blip_nlvr/nlvr": official(
        # drop_path is what the published weights were trained with; the original library's preset left it out
        ClassifierConfig(vit=ViTConfig(drop_path=0.1), text=TextConfig(memories="twin"), num_classes=2),
        "ViT-B/16 at 384 px, fine-tuned on NLVR2", weights=BLIP + "model_base_nlvr.pth", pretrained=CAPFILT),
    "blip_nlvr/tiny": PAIRS,
    "blip_nlvr/tiny_shapes": shapes(PAIRS, "blip_shapes"),
    "blip_pretrain/base": official(
        BlipMatchingConfig(image_size=224, max_txt_len=30), "ViT-B/16 at 224 px", weights=CAPFILT),
    "blip_pretrain/large": official(
        BlipMatchingConfig(**LARGE, image_size=224, max_txt_len=30, grad_checkpointing=5), "ViT-L/16 at 224 px",
        weights=BLIP + "model_large.pth"),
    "blip_pretrain/tiny": MATCHER,
    "blip_pretrain/tiny_shapes": MATCHER_SHAPES,
    "blip_retrieval/coco": official(
        BlipMatchingConfig(grad_checkpointing=4), "ViT-B/16 at 384 px, fine-tuned on COCO retrieval",
        weights=LAVIS_BLIP + "blip_coco_retrieval.pth", pretrained=CAPFILT, default_for=("match", "retrieval")),
    "blip_retrieval/flickr": official(
        BlipMatchingConfig(grad_checkpointing=4), "ViT-B/16 at 384 px, fine-tuned on Flickr30k retrieval",
        weights=LAVIS_BLIP + "blip_flickr_retrieval.pth", pretrained=CAPFILT),
    "blip_retrieval/tiny": MATCHER,
    "blip_retrieval/tiny_shapes": replace(MATCHER_SHAPES, default_for=("match",)),
    "blip_vis_dialogue/base": official(
        BlipDialogueConfig(), "ViT-B/16 at 384 px, pre-trained; to be fine-tuned", QUESTIONS, pretrained=CAPFILT),
    "blip_vis_dialogue/tiny": DIALOGUE,
    "blip_vis_dialogue/tiny_shapes": shapes(DIALOGUE, "blip_shapes"),
    "blip_vqa/vqav2": official(
        VQA480, "ViT-B/16 at 480 px, fine-tuned on VQAv2 (validation split included)", QUESTIONS, pretrained=CAPFILT,
        weights=BLIP + "model_base_vqa_capfilt_large.pth", default_for=("ask", "vqa"), download_gb=1.4),
    "blip_vqa/okvqa": official(
        VQA480, "ViT-B/16 at 480 px, fine-tuned on OK-VQA", QUESTIONS, weights=LAVIS_BLIP + "blip_okvqa.pth",
        pretrained=BLIP + "model_base_vqa_capfilt_large.pth"),
    "blip_vqa/aokvqa": official(
        VQA480, "ViT-B/16 at 480 px, fine-tuned on A-OKVQA", QUESTIONS, weights=LAVIS_BLIP + "blip_aokvqa.pth",
        pretrained=BLIP + "model_base_vqa_capfilt_large.pth"),
    "blip_vqa/tiny": ANSWERER,
    "blip_vqa/tiny_shapes": shapes(
        ANSWERER, "blip_shapes", weights=str(ASSETS / "blip_vqa_shapes"), default_for=("ask", "vqa"), pointing=51.1,
        note="in the package; knows questions about drawings of coloured shapes"),
    "blip_vqa/tiny_easy_vqa": packaged(
        ANSWERER, "tiny_easy_vqa", "in the package; knows easy-VQA's questions about one coloured shape",
        licence="BSD-3-Clause; trained on easy-VQA (MIT)"),
    # ALBEF
    "albef_classification/ve": official(
        ClassifierConfig(text=ALBEF_TEXT, num_classes=3), "ViT-B/16 at 384 px, fine-tuned on SNLI-VE",
        weights=LAVIS_ALBEF + "albef_snli_ve_lavis.pt", pretrained=ALBEF_PRETRAINED),
    "albef_classification/tiny": ALBEF_CLASSES,
    "albef_classification/tiny_shapes": shapes(ALBEF_CLASSES, "albef_shapes"),
    "albef_feature_extractor/base": official(
        AlbefMatchingConfig(image_size=224), "ViT-B/16 at 224 px, pre-trained", weights=ALBEF_PRETRAINED),
    "albef_feature_extractor/tiny": ALBEF_MATCHER,
    "albef_feature_extractor/tiny_shapes": ALBEF_SHAPES,
    "albef_nlvr/nlvr": official(
        ClassifierConfig(text=PAIR_TEXT, num_classes=2), "ViT-B/16 at 384 px, fine-tuned on NLVR2",
        weights=LAVIS_ALBEF + "albef_nlvr_lavis.pt", pretrained=ALBEF_PAIRS),
    "albef_nlvr/tiny": ALBEF_TWO,
    "albef_nlvr/tiny_shapes": shapes(ALBEF_TWO, "albef_shapes", pretrained_rules=ALBEF_PAIRS_FROM_SHAPES),
    "albef_pretrain/base": official(
        AlbefMatchingConfig(image_size=224), "ViT-B/16 at 224 px", weights=ALBEF_PRETRAINED),
    "albef_pretrain/tiny": ALBEF_MATCHER,
    "albef_pretrain/tiny_shapes": ALBEF_SHAPES,
    "albef_retrieval/coco": official(
        AlbefMatchingConfig(), "ViT-B/16 at 384 px, fine-tuned on COCO retrieval",
        weights=LAVIS_ALBEF + "albef_coco_retrieval_lavis.pt", pretrained=ALBEF_PRETRAINED),
    "albef_retrieval/flickr": official(
        AlbefMatchingConfig(), "ViT-B/16 at 384 px, fine-tuned on Flickr30k retrieval",
        weights=LAVIS_ALBEF + "albef_flickr_retrieval_lavis.pt", pretrained=ALBEF_PRETRAINED),
    "albef_retrieval/tiny": ALBEF_MATCHER,
    # surer than BLIP about texts that name one thing
    "albef_retrieval/tiny_shapes": replace(ALBEF_SHAPES, default_for=("classify", "retrieval")),
    "albef_vqa/vqav2": official(
        AlbefConfig(max_txt_len=25), "ViT-B/16 at 384 px, fine-tuned on VQAv2", QUESTIONS,
        weights=LAVIS_ALBEF + "albef_vqav2_lavis.pt", pretrained=ALBEF_PRETRAINED),
    "albef_vqa/tiny": ALBEF_ANSWERER,
    "albef_vqa/tiny_shapes": shapes(ALBEF_ANSWERER, "albef_shapes", pretrained_rules=ALBEF_VQA_FROM_SHAPES),
    # ALPRO
    "alpro_feature_extractor/base": alpro(AlproConfig(frames=4, max_txt_len=30), "alpro_pretrain.pt", "pre-trained"),
    "alpro_feature_extractor/tiny": ALPRO_MATCHER,
    "alpro_feature_extractor/tiny_shapes": ALPRO_SHAPES,
    "alpro_qa/msrvtt": alpro(
        AlproQAConfig(num_classes=1500), "alpro_msrvtt_qa.pth", "fine-tuned on MSRVTT-QA, 1500 answers",
        default_for=("classification",)),
    "alpro_qa/msvd": alpro(
        AlproQAConfig(num_classes=2423), "alpro_msvd_qa.pth", "fine-tuned on MSVD-QA, 2423 answers"),
    "alpro_qa/tiny": ALPRO_ANSWERER,
    "alpro_qa/tiny_shapes": shapes(ALPRO_ANSWERER, "alpro_shapes", default_for=("classification",)),
    "alpro_retrieval/msrvtt": alpro(
        AlproConfig(), "alpro_msrvtt_retrieval.pt", "fine-tuned on MSRVTT retrieval",
        default_for=("match", "retrieval")),
    "alpro_retrieval/didemo": alpro(
        AlproConfig(), "alpro_didemo_retrieval.pt", "fine-tuned on DiDeMo retrieval"),
    "alpro_retrieval/tiny": ALPRO_MATCHER,
    "alpro_retrieval/tiny_shapes": replace(ALPRO_SHAPES, default_for=("match", "retrieval")),
    # CLIP
    "clip/ViT-B-32": openai(
        ClipConfig(), "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt",
        "ViT-B/32 at 224 px", default_for=("classify",)),
    "clip/ViT-B-16": openai(
        ClipConfig(vision=clip_vit(patch_size=16)),
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt", "ViT-B/16 at 224 px"),
    "clip/ViT-L-14": openai(
        ClipConfig(**CLIP_LARGE), "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        "ViT-L-14.pt", "ViT-L/14 at 224 px"),
    "clip/ViT-L-14-336": openai(
        ClipConfig(**CLIP_LARGE, image_size=336),
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px.pt",
        "ViT-L/14 at 336 px"),
    "clip/RN50": openai(
        ClipConfig(embed_dim=1024, vision=ResNetConfig()),
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50.pt", "ResNet-50 at 224 px"),
    "clip/tiny": tiny(CLIP_TINY, None, CLIP_IMAGES),
    # BLIP-2's first stage
    "blip2/pretrain": BLIP2,
    "blip2/pretrain_vitL": BLIP2_CLIP,
    "blip2/coco": BLIP2_COCO,
    "blip2_image_text_matching/pretrain": BLIP2,
    "blip2_image_text_matching/pretrain_vitL": BLIP2_CLIP,
    "blip2_image_text_matching/coco": BLIP2_COCO,
    "blip2/tiny": TINY_BLIP2,
    "blip2_image_text_matching/tiny": TINY_BLIP2,
    # BLIP-2 and InstructBLIP with language models
    "blip2_opt/pretrain_opt2.7b": with_language("opt_model", "facebook/opt-2.7b", "blip2_pretrained_opt2.7b.pth",
        elsewhere="Salesforce/blip2-opt-2.7b"),
    "blip2_opt/pretrain_opt6.7b": with_language("opt_model", "facebook/opt-6.7b", "blip2_pretrained_opt6.7b.pth",
        elsewhere="Salesforce/blip2-opt-6.7b"),
    "blip2_opt/caption_coco_opt2.7b": captioner(
        "opt_model", "facebook/opt-2.7b", "blip2_pretrained_opt2.7b.pth", "blip2_caption_opt2.7b.pth",
        "Salesforce/blip2-opt-2.7b-coco"),
    "blip2_opt/caption_coco_opt6.7b": captioner(
        "opt_model", "facebook/opt-6.7b", "blip2_pretrained_opt6.7b.pth", "blip2_caption_opt6.7b.pth",
        "Salesforce/blip2-opt-6.7b-coco"),
    "blip2_t5/pretrain_flant5xl": with_language("t5_model", "google/flan-t5-xl", "blip2_pretrained_flant5xl.pth",
        elsewhere="Salesforce/blip2-flan-t5-xl"),
    "blip2_t5/pretrain_flant5xl_vitL": with_language(
        "t5_model", "google/flan-t5-xl", "blip2_pretrained_flant5xl_vitL.pth",
        replace(STAGE2, vit=tower("clip_L"), text=replace(STAGE2.text, memory_width=1024)), CLIP_VIT),
    "blip2_t5/pretrain_flant5xxl": with_language("t5_model", "google/flan-t5-xxl", "blip2_pretrained_flant5xxl.pth",
        elsewhere="Salesforce/blip2-flan-t5-xxl"),
    "blip2_t5/caption_coco_flant5xl": captioner(
        "t5_model", "google/flan-t5-xl", "blip2_pretrained_flant5xl.pth", "blip2_caption_flant5xl.pth",
        "Salesforce/blip2-flan-t5-xl-coco"),
    "blip2_t5_instruct/flant5xl": with_language(
        "t5_model", "google/flan-t5-xl", "instruct_blip_flanxl_trimmed.pth", INSTRUCT,
        elsewhere="Salesforce/instructblip-flan-t5-xl"),
    "blip2_t5_instruct/flant5xxl": with_language(
        "t5_model", "google/flan-t5-xxl", "instruct_blip_flanxxl_trimmed.pth", INSTRUCT,
        elsewhere="Salesforce/instructblip-flan-t5-xxl"),
    "blip2_vicuna_instruct/vicuna7b": with_language(
        "llm_model", None, "instruct_blip_vicuna7b_trimmed.pth", INSTRUCT,
        elsewhere="Salesforce/instructblip-vicuna-7b"),
    "blip2_vicuna_instruct/vicuna13b": with_language(
        "llm_model", None, "instruct_blip_vicuna13b_trimmed.pth", INSTRUCT,
        elsewhere="Salesforce/instructblip-vicuna-13b"),
    # GPT-2
    "gpt_dialogue/base": Preset(
        GPTDialogueConfig(), vis_processor={"train": {"name": "gpt_video_ft"}, "eval": {"name": "gpt_video_ft"}},
        text_processor=DIALOGUES, licence="none needed: no weights", commercial=True,
        note="GPT-2 small's size, features of I3D and VGGish; to be fine-tuned from GPT-2"),
    "gpt_dialogue/tiny": tiny(
        GPT_TINY, DIALOGUES, {"train": {"name": "gpt_frame_ft"}, "eval": {"name": "gpt_frame_ft"}},
        "frames as features"),
}
ROWS |= {
    "clip/base": ROWS["clip/ViT-B-32"],
    # BLIP on frames of videos
    "blip_video_caption/base_coco": on_videos(ROWS["blip_caption/base_coco"], 8, default_for=("caption", "captioning")),
    "blip_video_caption/large_coco": on_videos(ROWS["blip_caption/large_coco"], 8),
    "blip_video_caption/tiny": on_videos(CAPTIONER, 8),
    "blip_video_caption/tiny_shapes": on_videos(
        ROWS["blip_caption/tiny_shapes"], 8, default_for=("caption", "captioning")),
    "blip_video_dialogue/base": on_videos(ROWS["blip_vis_dialogue/base"], 8, config=WRITES),
    "blip_video_dialogue/tiny": on_videos(DIALOGUE, 8, config=TINY_WRITES),
    "blip_video_dialogue/tiny_shapes": on_videos(ROWS["blip_vis_dialogue/tiny_shapes"], 8, config=TINY_WRITES),
    "blip_video_qa/vqav2": on_videos(ROWS["blip_vqa/vqav2"], 16, default_for=("ask", "vqa")),
    "blip_video_qa/tiny": on_videos(ANSWERER, 8),
    "blip_video_qa/tiny_shapes": on_videos(ROWS["blip_vqa/tiny_shapes"], 8, default_for=("ask", "vqa")),
    "blip_video_retrieval/coco": on_videos(ROWS["blip_retrieval/coco"], 8),
    "blip_video_retrieval/large_coco": on_videos(
        ROWS["blip_image_text_matching/large"], 8, config=BlipMatchingConfig(**LARGE, grad_checkpointing=4)),
    "blip_video_retrieval/tiny": on_videos(MATCHER, 8),
    "blip_video_retrieval/tiny_shapes": on_videos(MATCHER_SHAPES, 8),
}
# fmt: on

# ------------------------------------------------------------------------------------------- access
_BY_NAME: dict[str, dict[str, Preset]] = {}


def licence_of(part: Part, model_type: str) -> tuple[str, bool | None]:
    """The licence of a part's weights, and whether commercial use is allowed; None: not stated."""
    return PART_LICENCES.get(part.source or model_type, ("not stated", None))


def commercial(preset: Preset, model_type: str) -> bool | None:
    """Whether commercial use of all of a model is allowed; None where one of its weights' publishers does not say."""
    stated = {preset.commercial, *(licence_of(part, model_type)[1] for part in preset.parts.values())}
    return False if False in stated else None if None in stated else True


def add_rows(rows: Mapping[str, Preset]) -> None:
    """Add presets, such as your own weights for a model of the library: {"blip_caption/birds": Preset(…)}.

    Raises:
        ValueError: a name that is no <registered name>/<type>, or one that is taken.
    """
    for spec, preset in rows.items():
        name, slash, model_type = spec.partition("/")
        if not slash or not name or not model_type:
            raise ValueError(f"{spec!r} names no preset; give <registered name>/<type>")
        known = _BY_NAME.setdefault(name, {})
        if known.get(model_type, preset) != preset:
            raise ValueError(f"there is a preset {spec} already; choose another type")
        known[model_type] = preset


def presets_of(model_class: type) -> dict[str, Preset]:
    """{type: preset} of a class; a class without rows of its own has those of the class that it derives from."""
    for base in model_class.__mro__:
        name = base.__dict__.get("registered_name")
        if name in _BY_NAME:
            return _BY_NAME[name]
    return {}


add_rows(ROWS)
