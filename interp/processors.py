"""Processors, also of families whose processor wants torchvision for videos that nobody shows them."""

import importlib
import sys
from unittest import mock

import transformers
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.video_processing_utils import VideoProcessorMixin

from interp.families import ModelError, first_line

TORCHVISION = "needs torchvision matching your torch: install vlm-guard[vision]"


class _NoVideos(VideoProcessorMixin):
    """Stands where the video processor would; nothing is ever given to it."""

    num_frames = fps = None
    model_input_names = ()


def load_processor(name: str, **hub) -> ProcessorMixin:
    """`AutoProcessor`, or where that asks for torchvision, the same processor for pictures only.

    Raises:
        ModelError: there is no processor, or it can't do without torchvision.
    """
    try:
        return AutoProcessor.from_pretrained(name, **hub)
    except (OSError, ValueError, ImportError) as error:
        if "torchvision" not in str(error).lower():
            raise ModelError(f"the processor of {name!r} can't be loaded: {first_line(error)}") from error
    try:
        return _images_only(_processor_class(AutoConfig.from_pretrained(name, **hub).model_type)).from_pretrained(
            name, **hub
        )
    except (ImportError, AttributeError, KeyError, ValueError) as error:
        raise ModelError(f"the processor of {name!r} {TORCHVISION} ({type(error).__name__}: {error})") from error


def _processor_class(model_type: str) -> type[ProcessorMixin]:
    """The class itself: under its public name stands a placeholder where torchvision is missing."""
    if model_type in ("mistral3", "pixtral"):
        # Its module imports one function from the torchvision image processor, which the PIL one has as well.
        folder = "transformers.models.pixtral.image_processing_"
        sys.modules.setdefault(f"{folder}pixtral", importlib.import_module(f"{folder}pil_pixtral"))
    name = PROCESSOR_MAPPING_NAMES[model_type]
    return getattr(importlib.import_module(getattr(transformers, name).__module__), name)


def _images_only(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor with nothing in the place of its video processor."""

    class ImagesOnly(processor_class):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name != "video_processor":
                return super().check_argument_for_proper_class(argument_name, argument)
            return None

        @classmethod
        def _get_arguments_from_pretrained(cls, *args, **kwargs):
            with mock.patch.object(AutoVideoProcessor, "from_pretrained", lambda *_, **__: _NoVideos()):
                return super()._get_arguments_from_pretrained(*args, **kwargs)

    # Saved and looked up by name.
    ImagesOnly.__name__ = processor_class.__name__
    return ImagesOnly
