"""Names of the original library that are elsewhere here, or not here: one table, and what makes imports find it.

`TABLE` maps each of the original's modules to its names and what has become of them. A module that is not a file here
is made of its rows when it is imported; a module that is one asks `names_of` for names that it lacks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lavis.common.elsewhere import DIFFUSION, IMG2LLM, INSTRUCT, PNP_VQA, ULIP, X_INSTRUCT, where

# ------------------------------------------------------------------------------------------ what is not here
AUDIO = f"data of sound are not here. {X_INSTRUCT}"
SOLIDS = f"data of 3D objects are not here. {X_INSTRUCT}"
INSTRUCTIONS = f"data sets with instructions are not here; their plain counterparts are: {INSTRUCT}"
OTHER_DATA = (
    "this data set is not here; own data need no class (`lavis.datasets.own`), or one: docs/guides/extend.md"
)
DOWNLOADS = "the download scripts are one command: lavis download NAME (lavis datasets lists the names)"
PLAIN_DATASET = (
    "this class is not here; the data set itself is one class, see `lavis.datasets.builders.load_dataset`, and classes "
    "of your own derive from `lavis.datasets.base.Dataset` or `lavis.datasets.builder_classes.BaseDataset`"
)
BERT = "the layers of BERT are those of `lavis.nn.text`, with other names; parameters have the same names"
TIMM = "nothing here is built on timm; the layers are those of `lavis.nn.transformer` and `lavis.nn.vit`"
TIMESFORMER = "the layers of the video encoder are those of `lavis.nn.timesformer`, with other names"
AUGMENT = "augmentations are the operations of `lavis.processors.randaugment.RandAugment`, on Pillow images"
VIDEO_STEPS = (
    "there are no steps for video tensors; `lavis.processors.video.AlproVideoTrainProcessor` takes frames"
)
LOADERS = "the runner has its own loaders, `lavis.runners.data.TrainLoader` and `lavis.runners.data.EvalData`"
HUB = "files are fetched, checked and cached by `lavis.common.hub.fetch`, archives unpacked by `lavis.common.archives`"
FILES = "files are read and written by `lavis.common.files` and by Python's own modules"
OPENCLIP = (
    "`lavis.models.load_model` loads CLIP, also from files of OpenAI, OpenCLIP and transformers (checkpoint=)"
)
QUEUE = "queues are made and filled by `lavis.nn.ema.add_queue` and `lavis.nn.ema.enqueue`"
EMA = "momentum copies are made and moved by `lavis.nn.ema.make_ema` and `lavis.nn.ema.update_ema`"
CAPTION_SCORES = "captions are scored by `lavis.metrics.caption.caption_scores`, which needs no file"
VQA_SCORES = "answers are scored by `lavis.metrics.vqa.vqa_accuracy`, which needs no file"
ENCODER = "derive from torch.nn.Module; a model's image encoder has `forward_features`"

Rows = dict[str, str]


def _rows(*rows: tuple[str, str]) -> Rows:
    """(what has become of them, names) pairs as {name: what has become of it}."""
    return {name: target for target, names in rows for name in names.split()}


# ------------------------------------------------------------------------------------------ the table
# What has become of a name: "module" (there under the same name), "module:name", "dataset:name" (the builder of that
# data set), or a sentence that says what to use. "*" stands for all names of a module that have no row of their own.

_BUILDERS = {
    "lavis.datasets.builders.caption_builder": _rows(
        ("dataset:coco_caption", "COCOCapBuilder"),
        ("dataset:flickr30k_caption", "Flickr30kCapBuilder"),
        ("dataset:msrvtt_caption", "MSRVTTCapBuilder"),
        ("dataset:msvd_caption", "MSVDCapBuilder"),
        ("dataset:vatex_caption", "VATEXCapBuilder"),
        (
            OTHER_DATA,
            "COINCaptionBuilder CapFiltCapBuilder CharadeCaptionBuilder TextCapsCapBuilder VALORCaptionBuilder "
            "VSRCapBuilder ViolinCapBuilder VlepCaptionBuilder WebVid2MCapBuilder YouCookCaptionBuilder",
        ),
        (
            INSTRUCTIONS,
            "COCOCapInstructBuilder COINCaptionInstructBuilder CharadeCaptionInstructBuilder "
            "Flickr30kCapInstructBuilder MSRVTTCapInstructBuilder MSVDCapInstructBuilder TextCapsCapInstructBuilder "
            "VALORCaptionInstructBuilder VATEXCapInstructBuilder VSRCapInstructBuilder ViolinCapInstructBuilder "
            "VlepCaptionInstructBuilder WebVid2MCapInstructBuilder YouCookCaptionInstructBuilder",
        ),
    ),
    "lavis.datasets.builders.classification_builder": _rows(
        ("dataset:nlvr", "NLVRBuilder"),
        ("dataset:snli_ve", "SNLIVisualEntailmentBuilder"),
        (AUDIO, "ESC50ClassificationBuilder"),
        (OTHER_DATA, "VSRClassificationBuilder ViolinEntailmentBuilder"),
        ("dataset:snli_ve_instruct", "SNLIVisualEntailmentInstructBuilder"),
        (INSTRUCTIONS, "ViolinEntailmentInstructBuilder"),
    ),
    "lavis.datasets.builders.dialogue_builder": _rows(
        ("dataset:avsd_dialogue", "AVSDDialBuilder"),
        ("dataset:visdial", "VisDialBuilder"),
        (OTHER_DATA, "YT8MDialBuilder"),
        (INSTRUCTIONS, "AVSDDialInstructBuilder LLaVA150kDialInstructBuilder VisDialInstructBuilder"),
    ),
    "lavis.datasets.builders.image_text_pair_builder": _rows(
        ("dataset:conceptual_caption_12m", "ConceptualCaption12MBuilder"),
        ("dataset:conceptual_caption_3m", "ConceptualCaption3MBuilder"),
        ("dataset:laion2B_multi", "Laion2BMultiBuilder"),
        ("dataset:laion400M", "Laion400MBuilder"),
        ("dataset:sbu_caption", "SBUCaptionBuilder"),
        ("dataset:vg_caption", "VGCaptionBuilder"),
        (
            INSTRUCTIONS,
            "ConceptualCaption12MInstructBuilder ConceptualCaption3MInstructBuilder Laion400MInstructBuilder "
            "SBUCaptionInstructBuilder VGCaptionInstructBuilder",
        ),
    ),
    "lavis.datasets.builders.imagefolder_builder": _rows(
        ("dataset:imagenet", "ImageNetBuilder"),
        ("lavis.models.zero_shot:imagenet_classnames()", "imagenet_classnames"),
    ),
    "lavis.datasets.builders.retrieval_builder": _rows(
        ("dataset:coco_retrieval", "COCORetrievalBuilder"),
        ("dataset:didemo_retrieval", "DiDeMoRetrievalBuilder"),
        ("dataset:flickr30k", "Flickr30kBuilder"),
        ("dataset:msrvtt_retrieval", "MSRVTTRetrievalBuilder"),
    ),
    "lavis.datasets.builders.video_qa_builder": _rows(
        ("dataset:msrvtt_qa", "MSRVTTQABuilder"),
        ("dataset:msvd_qa", "MSVDQABuilder"),
        ("lavis.datasets.builder_classes:BaseDatasetBuilder", "VideoQABuilder"),
        (AUDIO, "MusicAVQABuilder MusicAVQAInstructBuilder"),
        ("dataset:msrvtt_qa_instruct", "MSRVTTQAInstructBuilder"),
        ("dataset:msvd_qa_instruct", "MSVDQAInstructBuilder"),
    ),
    "lavis.datasets.builders.vqa_builder": _rows(
        ("dataset:aok_vqa", "AOKVQABuilder"),
        ("dataset:coco_vqa", "COCOVQABuilder"),
        ("dataset:gqa", "GQABuilder"),
        ("dataset:ok_vqa", "OKVQABuilder"),
        ("dataset:vg_vqa", "VGVQABuilder"),
        (OTHER_DATA, "IconQABuilder OCRVQABuilder ScienceQABuilder VizWizVQABuilder"),
        (
            INSTRUCTIONS,
            "AOKVQAInstructBuilder COCOVQAInstructBuilder GQAInstructBuilder IconQAInstructBuilder "
            "OCRVQAInstructBuilder OKVQAInstructBuilder ScienceQAInstructBuilder VGVQAInstructBuilder",
        ),
    ),
    "lavis.datasets.builders.audio_caption_builder": _rows(
        (
            AUDIO,
            "* AudioCapsCapBuilder AudioCapsInstructCapBuilder AudioSetBuilder AudioSetInstructBuilder "
            "WavCapsCapBuilder WavCapsCapInstructBuilder",
        )
    ),
    "lavis.datasets.builders.audio_qa_builder": _rows((AUDIO, "* AudioCapsQABuilder ClothoQABuilder")),
    "lavis.datasets.builders.discrn_builders": _rows(
        (AUDIO, "* DiscrnAudioVideoBuilder DiscrnImagePcBuilder")
    ),
    "lavis.datasets.builders.object3d_caption_builder": _rows(
        (
            SOLIDS,
            "* ObjaverseCaptionBuilder ObjaverseCaptionInstructBuilder ShapenetCaptionBuilder "
            "ShapenetCaptionInstructBuilder",
        )
    ),
    "lavis.datasets.builders.object3d_classification_builder": _rows(
        (SOLIDS, "* ModelNetClassificationBuilder")
    ),
    "lavis.datasets.builders.object3d_qa_builder": _rows((SOLIDS, "* ObjaverseQABuilder")),
    "lavis.datasets.builders.text_to_image_generation_builder": _rows(
        (DIFFUSION, "* BlipDiffusionFinetuneBuilder")
    ),
}

_FAMILIES_MODELS = _rows(
    ("lavis.models.blip2:Blip2Qformer", "Blip2Base"),
    ("lavis.models.blip2", "Blip2ITM Blip2Qformer"),
    ("lavis.models.blip2_language", "Blip2OPT Blip2T5"),
    ("lavis.models.instructblip", "Blip2T5Instruct Blip2VicunaInstruct"),
    (X_INSTRUCT, "Blip2VicunaXInstruct"),
    (DIFFUSION, "BlipDiffusion"),
    (IMG2LLM, "Img2PromptVQA"),
    (PNP_VQA, "PNPUnifiedQAv2FiD PNPVQA"),
)
_BERT_LAYERS = _rows(
    ("lavis.nn.text:TextTransformer", "BertModel XBertEncoder"),
    ("lavis.nn.text:Embeddings", "BertEmbeddings"),
    ("lavis.nn.text:Encoder", "BertEncoder"),
    ("lavis.nn.text:Layer", "BertLayer"),
    ("lavis.nn.text:Intermediate", "BertIntermediate"),
    ("lavis.nn.language_model:LanguageModel", "BertForMaskedLM"),
    ("lavis.nn.language_model:TextDecoder", "BertLMHeadModel XBertLMHeadDecoder"),
    ("lavis.nn.language_model:Head", "BertOnlyMLMHead"),
    ("lavis.nn.language_model:Predictions", "BertLMPredictionHead"),
    ("lavis.nn.language_model:HeadTransform", "BertPredictionHeadTransform"),
    (
        BERT,
        "* BertAttention BertOutput BertPooler BertPreTrainedModel BertSelfAttention BertSelfOutput logger",
    ),
)


def _outputs(family: str) -> Rows:
    """The output classes of a family; one set of classes serves them all."""
    return _rows(
        ("lavis.models.outputs:IntermediateOutput", f"{family}IntermediateOutput"),
        ("lavis.models.outputs:LossOutput", f"{family}Output"),
        ("lavis.models.outputs:Features", f"{family}OutputFeatures"),
        ("lavis.models.outputs:OutputWithLogits", f"{family}OutputWithLogits"),
        ("lavis.models.outputs:Similarity", f"{family}Similarity"),
    )


TABLE: dict[str, Rows] = {
    "lavis": _rows(
        ("lavis.common.hub:cache_root()", "cache_root"),
        (
            "the package has no file of defaults; the cache's folder is LAVIS_CACHE, see `lavis.common.hub.cache_root`",
            "default_cfg",
        ),
        (
            'paths are `lavis.common.registry.registry`\'s: registry.get_path("library_root"), "repo_root" and '
            '"cache_root"',
            "repo_root root_dir",
        ),
    ),
    "lavis.common.annotator": {"*": DIFFUSION},
    "lavis.common.config": _rows(
        ("recipes are checked by `lavis.common.values.typed`, with dataclasses", "ConfigValidator"),
        (
            "keys of `run` are checked by `lavis.runners.settings.RunConfig`, a dataclass",
            "create_runner_config_validator",
        ),
        ("a configuration gives plain values: `lavis.common.config.Config.to_dict`", "node_to_dict"),
    ),
    "lavis.common.dist_utils": _rows(
        ("lavis.common.dist:rank", "get_rank"),
        ("lavis.common.dist:world_size", "get_world_size"),
        ("lavis.common.dist:is_main", "is_main_process"),
        (
            "lavis.common.original",
            "download_cached_file get_dist_info init_distributed_mode is_dist_avail_and_initialized main_process",
        ),
        (
            "printing is left alone; ranks other than 0 log warnings only, see `lavis.common.logger.setup_logger`",
            "setup_for_distributed",
        ),
    ),
    "lavis.common.logger": _rows(("lavis.common.original", "AttrDict")),
    "lavis.common.optims": _rows(
        ("lavis.common.original", "cosine_lr_schedule step_lr_schedule warmup_lr_schedule")
    ),
    "lavis.common.utils": _rows(
        (
            "lavis.common.original",
            "abspath get_abs_path get_cache_path get_file_size is_convertible_to_int is_serializable is_url load_json "
            "makedir now",
        ),
        (
            HUB,
            "cache_url download_and_extract_archive download_and_untar download_google_drive_url download_url "
            "get_redirected_url to_google_drive_download_url",
        ),
        (FILES, "cleanup_dir create_file_symlink load_file save_file"),
    ),
    "lavis.common.vqa_tools": {"*": VQA_SCORES},
    "lavis.datasets.builders": {n: to for rows in _BUILDERS.values() for n, to in rows.items() if n != "*"},
    "lavis.datasets.builders.base_dataset_builder": _rows(
        ("lavis.datasets.builder_classes", "BaseDatasetBuilder"),
        ("lavis.datasets.builders", "load_dataset_config"),
        (X_INSTRUCT, "MultiModalDatasetBuilder"),
    ),
    **_BUILDERS,
    "lavis.datasets.data_utils": _rows(
        (
            "lavis.common.original",
            "MAX_INT apply_to_sample move_to_cuda prepare_sample reorg_datasets_by_split",
        ),
        (
            "the runner mixes data sets itself; two are one with `lavis.datasets.builder_classes.ConcatDataset`",
            "concat_datasets",
        ),
        (
            "frames are read by `lavis.processors.video.choose_frames`, as Pillow images",
            "load_clip load_video save_frames_grid",
        ),
        (
            "frames are chosen by `lavis.processors.video.sample_indices`",
            "head_tail_frame_sampling uniform_frame_sampling",
        ),
        ("archives are unpacked by `lavis.common.archives`", "extract_archive"),
    ),
    "lavis.datasets.datasets": {"*": PLAIN_DATASET},
    "lavis.datasets.datasets.base_dataset": _rows(
        ("lavis.datasets.builder_classes", "BaseDataset ConcatDataset")
    ),
    "lavis.datasets.datasets.caption_datasets": _rows(
        ("lavis.datasets.builder_classes", "CaptionDataset CaptionEvalDataset"),
        (INSTRUCTIONS, "CaptionInstructDataset"),
    ),
    "lavis.datasets.datasets.image_text_pair_datasets": _rows(
        ("lavis.datasets.builder_classes", "ImageTextPairDataset"),
        (INSTRUCTIONS, "ImageTextPairInstructDataset"),
    ),
    "lavis.datasets.datasets.vqa_datasets": _rows(
        ("lavis.datasets.builder_classes", "VQADataset"),
        ("lavis.datasets.builder_classes:BaseDataset", "VQAEvalDataset"),
        (INSTRUCTIONS, "VQAInstructDataset"),
    ),
    "lavis.datasets.datasets.multimodal_classification_datasets": _rows(
        ("lavis.datasets.builder_classes:BaseDataset", "MultimodalClassificationDataset")
    ),
    "lavis.datasets.datasets.dialogue_datasets": _rows(
        (PLAIN_DATASET, "DialogueDataset DialogueEvalDataset")
    ),
    "lavis.datasets.datasets.aok_vqa_datasets": _rows(
        ("lavis.datasets.aokvqa:AOKVQA", "AOKVQADataset AOKVQAEvalDataset"),
        (INSTRUCTIONS, "AOKVQAInstructDataset"),
    ),
    "lavis.datasets.datasets.avsd_dialogue_datasets": _rows(
        ("lavis.datasets.avsd:AVSDDialogue", "AVSDDialDataset AVSDDialEvalDataset"),
        (INSTRUCTIONS, "AVSDDialInstructEvalDataset"),
    ),
    "lavis.datasets.datasets.coco_caption_datasets": _rows(
        ("lavis.datasets.coco:CocoCaption", "COCOCapDataset COCOCapEvalDataset"),
        ("lavis.datasets.nocaps:NoCaps", "NoCapsEvalDataset"),
        (INSTRUCTIONS, "COCOCapInstructDataset"),
    ),
    "lavis.datasets.datasets.coco_vqa_datasets": _rows(
        ("lavis.datasets.vqav2:VQAv2", "COCOVQADataset COCOVQAEvalDataset"),
        (INSTRUCTIONS, "COCOVQAInstructDataset"),
    ),
    "lavis.datasets.datasets.gqa_datasets": _rows(
        ("lavis.datasets.gqa:GQA", "GQADataset GQAEvalDataset"), (INSTRUCTIONS, "GQAInstructDataset")
    ),
    "lavis.datasets.datasets.imagefolder_dataset": _rows(
        ("lavis.datasets.imagenet:ImageNet", "ImageFolderDataset")
    ),
    "lavis.datasets.datasets.laion_dataset": _rows(
        ("lavis.datasets.laion:Laion400M", "LaionDataset"), (INSTRUCTIONS, "LaionInstructDataset")
    ),
    "lavis.datasets.datasets.nlvr_datasets": _rows(
        ("lavis.datasets.nlvr2:NLVR2", "NLVRDataset NLVREvalDataset")
    ),
    "lavis.datasets.datasets.retrieval_datasets": _rows(
        (
            "lavis.datasets.retrieval:RetrievalDataset",
            "RetrievalDataset RetrievalEvalDataset VideoRetrievalDataset VideoRetrievalEvalDataset",
        )
    ),
    "lavis.datasets.datasets.snli_ve_datasets": _rows(
        ("lavis.datasets.snli_ve:SNLIVE", "SNLIVisualEntialmentDataset"),
        ("lavis.datasets.snli_ve:SNLIVEInstruct", "SNLIVisualEntialmentInstructDataset"),
    ),
    "lavis.datasets.datasets.vatex_captioning_datasets": _rows(
        ("lavis.datasets.vatex:VATEXCaption", "VATEXCaptionDataset VATEXCaptionEvalDataset"),
        (INSTRUCTIONS, "VATEXCaptionInstuctDataset"),
    ),
    "lavis.datasets.datasets.vg_vqa_datasets": _rows(
        ("lavis.datasets.visual_genome:VisualGenomeVQA", "VGVQADataset"),
        (INSTRUCTIONS, "VGVQAInstructDataset"),
    ),
    "lavis.datasets.datasets.video_caption_datasets": _rows(
        ("lavis.datasets.video:VideoCaptionDataset", "VideoCaptionDataset VideoCaptionEvalDataset"),
        (OTHER_DATA, "ClipCaptionDataset ClipCaptionEvalDataset WebVideoCaptionDataset"),
        (
            INSTRUCTIONS,
            "ClipCaptionInstructDataset VideoCaptionInstructDataset WebVideoCaptionInstructDataset",
        ),
    ),
    "lavis.datasets.datasets.video_vqa_datasets": _rows(
        ("lavis.datasets.video:VideoQADataset", "VideoQADataset"),
        ("lavis.datasets.video:InstructVideoQADataset", "VideoQAInstructDataset"),
    ),
    "lavis.datasets.datasets.visdial_dialogue_datasets": _rows(
        ("lavis.datasets.visdial:VisDial", "VisDialDataset VisDialEvalDataset"),
        (INSTRUCTIONS, "VisDialInstructDataset"),
    ),
    "lavis.datasets.datasets.dataloader_utils": {"*": LOADERS},
    "lavis.datasets.datasets.discriminatory_reasoning_datasets": {"*": AUDIO},
    "lavis.datasets.datasets.music_avqa": {"*": AUDIO},
    "lavis.datasets.datasets.audio_captioning_datasets": {"*": AUDIO},
    "lavis.datasets.datasets.audio_classification_datasets": {"*": AUDIO},
    "lavis.datasets.datasets.audio_qa_datasets": {"*": AUDIO},
    "lavis.datasets.datasets.object3d_captioning_datasets": {"*": SOLIDS},
    "lavis.datasets.datasets.object3d_classification_datasets": {"*": SOLIDS},
    "lavis.datasets.datasets.object3d_qa_datasets": {"*": SOLIDS},
    "lavis.datasets.datasets.llava150k_dataset": {"*": INSTRUCTIONS},
    "lavis.datasets.datasets.subject_driven_t2i_dataset": {"*": DIFFUSION},
    **{
        f"lavis.datasets.datasets.{module}": {"*": OTHER_DATA}
        for module in (
            "capfilt_dataset",
            "iconqa_datasets",
            "ocr_datasets",
            "textcaps_datasets",
            "valor_caption",
            "violin_dataset",
            "vizwiz_vqa_datasets",
            "vlep_dataset",
            "vsr_datasets",
            "yt8m_video_dialogue_datasets",
        )
    },
    "lavis.datasets.download_scripts": {"*": DOWNLOADS},
    "lavis.models": _rows(
        ("lavis.processors", "BaseProcessor"),
        ("lavis.models.blip:Blip", "BlipBase"),
        ("lavis.models.clip:Clip", "CLIP"),
        ("lavis.nn.vit:VisionTransformer", "VisionTransformerEncoder"),
        ("lavis.nn.language_model:TextDecoder", "XBertLMHeadDecoder"),
    )
    | _FAMILIES_MODELS,
    "lavis.models.albef_models": _rows(
        ("lavis.models.albef:Albef", "AlbefBase"),
        (
            "it is a method: `lavis.models.AlbefRetrieval.compute_sim_matrix` of a data loader and task_cfg",
            "compute_sim_matrix",
        ),
    ),
    "lavis.models.albef_models.albef_classification": _rows(("lavis.models", "AlbefClassification")),
    "lavis.models.albef_models.albef_feature_extractor": _rows(("lavis.models", "AlbefFeatureExtractor")),
    "lavis.models.albef_models.albef_nlvr": _rows(("lavis.models", "AlbefNLVR")),
    "lavis.models.albef_models.albef_outputs": _outputs("Albef"),
    "lavis.models.albef_models.albef_pretrain": _rows(("lavis.models", "AlbefPretrain")),
    "lavis.models.albef_models.albef_retrieval": _rows(("lavis.models", "AlbefRetrieval")),
    "lavis.models.albef_models.albef_vqa": _rows(("lavis.models", "AlbefVQA")),
    "lavis.models.alpro_models": _rows(
        ("lavis.models.alpro:Alpro", "AlproBase"),
        ("lavis.nn.timesformer:resize_places", "resize_spatial_embedding"),
        ("lavis.nn.timesformer:resize_times", "resize_temporal_embedding"),
    ),
    "lavis.models.alpro_models.alpro_outputs": _outputs("Alpro"),
    "lavis.models.alpro_models.alpro_qa": _rows(("lavis.models", "AlproQA")),
    "lavis.models.alpro_models.alpro_retrieval": _rows(("lavis.models", "AlproRetrieval")),
    "lavis.models.base_model": _rows(
        ("lavis.models.base", "BaseModel"),
        ("lavis.common.dist", "all_gather_with_grad"),
        ("lavis.common.dist:all_gather", "concat_all_gather"),
        ("lavis.common.original", "tile"),
        (ENCODER, "BaseEncoder"),
        (
            "ranks' tensors are gathered with gradients by `lavis.common.dist.all_gather_with_grad`",
            "GatherLayer",
        ),
        (EMA, "MomentumDistilationMixin"),
        (QUEUE, "SharedQueueMixin"),
    ),
    "lavis.models.blip2_models": {},
    "lavis.models.blip2_models.Qformer": _rows(
        ("lavis.nn.text:TextTransformer", "BertModel"),
        ("lavis.nn.text:Embeddings", "BertEmbeddings"),
        ("lavis.nn.qformer:QueryLayer", "BertLayer"),
        ("lavis.nn.qformer:QFormer", "BertLMHeadModel"),
        (BERT, "*"),
    ),
    "lavis.models.blip2_models.blip2": _rows(
        ("lavis.models.blip2:Blip2Qformer", "Blip2Base"),
        (
            "frozen parts stay in evaluation mode by themselves, see `lavis.models.parts.Part`",
            "disabled_train",
        ),
        ("it is a method of the models that match: `compute_sim_matrix`", "compute_sim_matrix"),
        ("LayerNorm is torch's own: torch.nn.LayerNorm", "LayerNorm"),
    ),
    "lavis.models.blip2_models.blip2_image_text_matching": _rows(("lavis.models.blip2", "Blip2ITM")),
    "lavis.models.blip2_models.blip2_opt": _rows(("lavis.models.blip2_language", "Blip2OPT")),
    "lavis.models.blip2_models.blip2_qformer": _rows(("lavis.models.blip2", "Blip2Qformer")),
    "lavis.models.blip2_models.blip2_t5": _rows(("lavis.models.blip2_language", "Blip2T5")),
    "lavis.models.blip2_models.blip2_t5_instruct": _rows(("lavis.models.instructblip", "Blip2T5Instruct")),
    "lavis.models.blip2_models.blip2_vicuna_instruct": _rows(
        ("lavis.models.instructblip", "Blip2VicunaInstruct")
    ),
    "lavis.models.eva_vit": _rows(("lavis.nn.vit", "VisionTransformer"), (TIMM, "*")),
    "lavis.models.blip_models": _rows(
        ("encoder and decoder share layers in `lavis.models.BlipPretrain`", "tie_encoder_decoder_weights")
    ),
    "lavis.models.blip_models.blip": _rows(("lavis.models.blip:Blip", "BlipBase")),
    "lavis.models.blip_models.blip_caption": _rows(("lavis.models", "BlipCaption")),
    "lavis.models.blip_models.blip_classification": _rows(("lavis.models", "BlipClassification")),
    "lavis.models.blip_models.blip_feature_extractor": _rows(("lavis.models", "BlipFeatureExtractor")),
    "lavis.models.blip_models.blip_image_text_matching": _rows(
        ("lavis.models.blip_matching", "BlipITM compute_gradcam")
    ),
    "lavis.models.blip_models.blip_nlvr": _rows(("lavis.models", "BlipNLVR")),
    "lavis.models.blip_models.blip_outputs": _outputs("Blip"),
    "lavis.models.blip_models.blip_pretrain": _rows(("lavis.models", "BlipPretrain")),
    "lavis.models.blip_models.blip_retrieval": _rows(("lavis.models", "BlipRetrieval")),
    "lavis.models.blip_models.blip_vqa": _rows(("lavis.models", "BlipVQA")),
    "lavis.models.blip_models.nlvr_encoder": _BERT_LAYERS,
    "lavis.models.clip_models": {"*": OPENCLIP},
    "lavis.models.clip_models.clip_outputs": _rows(
        ("lavis.models.clip", "ClipOutput"), ("lavis.models.outputs:Features", "ClipOutputFeatures")
    ),
    "lavis.models.clip_models.loss": _rows(
        ("the loss is `lavis.nn.losses.contrastive_loss`, over all ranks", "ClipLoss gather_features")
    ),
    "lavis.models.clip_models.model": _rows(
        ("lavis.models.clip:Clip", "CLIP"),
        ("lavis.nn.resnet:AttentionPool", "AttentionPool2d"),
        ("lavis.nn.transformer:Block", "ResidualAttentionBlock"),
        ("lavis.nn.resnet:ResNet", "ModifiedResNet"),
        ("lavis.nn.vit:VisionTransformer", "VisualTransformer"),
        ("lavis.models.clip:ClipTextConfig", "CLIPTextCfg"),
        ("lavis.models.clip:clip_vit", "CLIPVisionCfg"),
        ("lavis.nn.resnet", "Bottleneck"),
        ("lavis.nn.transformer:Blocks", "Transformer"),
        ("it is a function: `lavis.nn.transformer.quick_gelu`", "QuickGELU"),
        ("lavis.models.zero_shot:imagenet_templates()", "openai_imagenet_template"),
        ("LayerNorm is torch's own: torch.nn.LayerNorm", "LayerNorm"),
        (
            OPENCLIP,
            "* add_model_config build_model_from_openai_state_dict convert_weights_to_fp16 create_model "
            "create_model_and_transforms list_models list_openai_models load_openai_model load_state_dict trace_model",
        ),
    ),
    "lavis.models.clip_models.pretrained": {"*": OPENCLIP},
    "lavis.models.clip_models.timm_model": {"*": TIMM},
    "lavis.models.clip_models.tokenizer": _rows(
        ("lavis.models.clip_tokenizer:ClipTokenizer", "SimpleTokenizer"),
        ("lavis.models.clip_tokenizer:ClipTokenizer()", "tokenize"),
        ("lavis.models.clip_tokenizer:clean", "basic_clean whitespace_clean"),
        (
            "texts are tokenized by `lavis.models.clip_tokenizer.ClipTokenizer`",
            "bytes_to_unicode default_bpe get_pairs",
        ),
    ),
    "lavis.models.clip_models.transform": _rows(
        ("images are prepared by `lavis.processors.ClipImageEvalProcessor`", "image_transform ResizeMaxSize"),
    ),
    "lavis.models.clip_models.utils": _rows(
        (
            "put the norm layers in evaluation mode, and set requires_grad of their parameters to False",
            "freeze_batch_norm_2d",
        )
    ),
    "lavis.models.gpt_models": {},
    "lavis.models.gpt_models.gpt_dialogue": _rows(("lavis.models", "GPTDialogue")),
    "lavis.models.med": _BERT_LAYERS,
    "lavis.models.timesformer": {"*": TIMESFORMER},
    "lavis.models.timesformer.conv2d_same": {"*": TIMM},
    "lavis.models.timesformer.features": {"*": TIMM},
    "lavis.models.timesformer.linear": {"*": "the layer is `torch.nn.Linear`"},
    "lavis.models.timesformer.helpers": _rows(
        ("lavis.nn.timesformer:resize_places", "resize_spatial_embedding"),
        ("lavis.nn.timesformer:resize_times", "resize_temporal_embedding"),
        ("weights are loaded by `lavis.models.load_model` (checkpoint=)", "*"),
    ),
    "lavis.models.timesformer.vit": _rows(
        ("lavis.nn.timesformer:TimeSformer", "TimeSformer"),
        ("lavis.nn.timesformer:SpaceTimeBlock", "Block"),
        ("lavis.nn.timesformer:SpaceTimeTransformer", "VisionTransformer"),
        ("lavis.nn.vit", "PatchEmbed"),
        ("lavis.nn.transformer", "Attention Mlp"),
        (TIMESFORMER, "* default_cfgs vit_base_patch16_224"),
    ),
    "lavis.models.timesformer.vit_utils": {"DropPath": "lavis.nn.transformer", "*": TIMM},
    "lavis.models.vit": _rows(
        ("lavis.nn.vit", "VisionTransformer"),
        ("lavis.nn.transformer", "Attention Block Mlp"),
        ("lavis.nn.vit:VisionTransformer", "VisionTransformerEncoder"),
        (
            "position embeddings are resized by `lavis.nn.vit.interpolate_positions`",
            "interpolate_pos_embed resize_pos_embed",
        ),
    ),
    "lavis.processors": _rows(
        (AUDIO, "BeatsAudioProcessor"),
        (DIFFUSION, "BlipDiffusionInputImageProcessor BlipDiffusionTargetImageProcessor"),
        (INSTRUCT, "BlipInstructionProcessor"),
        (ULIP, "ULIPPCProcessor"),
    ),
    "lavis.processors.alpro_processors": _rows(
        ("lavis.processors", "AlproVideoEvalProcessor AlproVideoTrainProcessor"),
        ("lavis.processors:BaseProcessor", "AlproVideoBaseProcessor"),
        ("lavis.common.original", "MAX_INT"),
        (VIDEO_STEPS, "ResizeVideo ToTHWC ToUint8"),
    ),
    "lavis.processors.audio_processors": {"*": AUDIO},
    "lavis.processors.base_processor": _rows(("lavis.processors.base", "BaseProcessor")),
    "lavis.processors.blip_diffusion_processors": {"*": DIFFUSION},
    "lavis.processors.blip_processors": _rows(
        (
            "lavis.processors",
            "Blip2ImageTrainProcessor BlipCaptionProcessor BlipImageEvalProcessor BlipImageTrainProcessor "
            "BlipQuestionProcessor",
        ),
        ("lavis.processors.image:ImageProcessor", "BlipImageBaseProcessor"),
    ),
    "lavis.processors.clip_processors": _rows(
        ("lavis.processors", "ClipImageEvalProcessor ClipImageTrainProcessor")
    ),
    "lavis.processors.functional_video": {"*": VIDEO_STEPS},
    "lavis.processors.gpt_processors": _rows(
        ("lavis.processors", "GPTDialogueProcessor GPTVideoFeatureProcessor"),
        ("lavis.processors:BaseProcessor", "GPTVideoFeatureBaseProcessor"),
        ("lavis.models.gpt_tokenizer:DIALOGUE_TOKENS", "SPECIAL_TOKENS"),
        ("special tokens are `lavis.models.gpt_tokenizer.DIALOGUE_TOKENS`", "SPECIAL_TOKENS_DICT"),
    ),
    "lavis.processors.instruction_text_processors": {"*": INSTRUCT},
    "lavis.processors.randaugment": _rows(
        ("lavis.processors.randaugment:RandAugment", "RandomAugment"),
        (VIDEO_STEPS, "VideoRandomAugment"),
        (AUGMENT, "*"),
    ),
    "lavis.processors.transforms_video": {"*": VIDEO_STEPS},
    "lavis.processors.ulip_processors": {"*": ULIP},
    "lavis.runners.runner_base": _rows(("lavis.runners", "RunnerBase")),
    "lavis.runners.runner_iter": _rows(("lavis.runners", "RunnerIter")),
    "lavis.tasks": _rows(
        ("lavis.tasks.vqa", "AOKVQATask GQATask"),
        (X_INSTRUCT, "DisCRNTask"),
        ("lavis.tasks.vqa:GQAReadingTask", "GQARCTask"),
        ("lavis.tasks.vqa:VQAReadingTask", "VQARCTask"),
        (DIFFUSION, "TextToImageGenerationTask"),
        ("lavis.common.registry", "registry"),
    ),
    "lavis.tasks.base_task": _rows(("lavis.tasks", "BaseTask")),
    "lavis.tasks.captioning": _rows((CAPTION_SCORES, "coco_caption_eval convert_to_coco_gt load_gt_file")),
    "lavis.tasks.dialogue": _rows(("answers are scored by `lavis.metrics.dialogue`", "coco_dialogue_eval")),
    "lavis.tasks.image_text_pretrain": _rows(("lavis.tasks", "ImageTextPretrainTask")),
    "lavis.tasks.multimodal_classification": _rows(("lavis.tasks", "MultimodalClassificationTask")),
    "lavis.tasks.text_to_image_generation": {"*": DIFFUSION},
    "lavis.tasks.vqa": _rows((X_INSTRUCT, "DisCRNTask"), (CAPTION_SCORES, "convert_to_coco_gt")),
    "lavis.tasks.vqa_reading_comprehension": _rows(
        ("lavis.tasks.vqa:GQAReadingTask", "GQARCTask"), ("lavis.tasks.vqa:VQAReadingTask", "VQARCTask")
    ),
}


# ------------------------------------------------------------------------------------------ looking up
def _answer(module: str, name: str) -> str:
    """What has become of a name; "" where the table doesn't know."""
    rows = TABLE.get(module, {})
    if name in rows:
        return rows[name]
    while module:  # a module below one whose names are all gone
        if "*" in TABLE.get(module, {}):
            return TABLE[module]["*"]
        module = module.rpartition(".")[0]
    return ""


def _is_place(target: str) -> bool:
    return " " not in target


def _find(target: str, name: str) -> Any:
    """The object at a place."""
    module, _, other = target.partition(":")
    if module == "dataset":
        from lavis.datasets.builder_classes import builder_of

        return builder_of(other, name)
    found = getattr(import_module(module), other.removesuffix("()") or name)
    return found() if other.endswith("()") else found


def names_of(module: str, own: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """`__getattr__` of a module that has more names in the table, or that is made of it.

    Args:
        own: the module's own look-up, asked first; raises AttributeError for names that it doesn't know.
    """

    def look_up(name: str) -> Any:
        if own is not None:
            try:
                return own(name)
            except AttributeError:
                pass
        target = "" if name.startswith("__") else _answer(module, name)
        if not target:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if _is_place(target):
            return _find(target, name)
        raise ImportError(f"there is no {name} in {module}: {target}")

    return look_up


class _Made(Loader):
    """Makes a module of its rows."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        rows = TABLE.get(module.__name__, {})
        module.__doc__ = (
            "A module of the original library; its names are elsewhere here, see `lavis.common.moved`."
        )
        module.__dict__["__getattr__"] = names_of(module.__name__)
        module.__dict__["__all__"] = [name for name, target in rows.items() if _is_place(target)]


class _Finder:
    """Finds the modules of the table that are no files. Python asks it last, so it costs nothing otherwise."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("lavis."):
            return None
        if (
            fullname in TABLE
            or any(module.startswith(fullname + ".") for module in TABLE)
            or _answer(fullname, "")
        ):
            return ModuleSpec(fullname, _Made(), is_package=True)
        family = where(fullname.removeprefix("lavis.")) if fullname.startswith("lavis.models.") else ""
        if family:
            # without `name`, or `from lavis.models import …` would swallow the message
            raise ModuleNotFoundError(f"there is no module {fullname}: {family}")
        return None


def install() -> None:
    """Let Python ask; called once, by `import lavis`."""
    sys.meta_path.append(_Finder)
