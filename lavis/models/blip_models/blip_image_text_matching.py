"""The original's path of `compute_gradcam`, as its notebooks import it."""

from lavis.models.blip_matching import BlipITM, compute_gradcam

__all__ = ["BlipITM", "compute_gradcam"]
