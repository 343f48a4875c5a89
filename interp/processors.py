"""Processors without torchvision, also for families whose processor requires it for videos only."""

import importlib
import sys
from unittest import mock

import transformers
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.video_processing_utils import VideoProcessorMixin

from interp.errors import ModelError, first_line

TORCHVISION = "needs torchvision matching your torch: install vlm-guard[vision]"


class _NoVideos(VideoProcessorMixin):
    """Placeholder for the video processor, which is never called."""

    num_frames = fps = None
    model_input_names = ()


def load_processor(name: str, **hub) -> ProcessorMixin:
    """Load a model's processor; if it asks for torchvision, load the same processor for pictures only.

    Raises:
        ModelError: there is no processor, or it needs torchvision for pictures too.
    """
    try:
        return AutoProcessor.from_pretrained(name, **hub)
    except (OSError, ValueError, ImportError) as error:
        if not _asks_for_torchvision(error):
            raise _refusal(name, error) from error
    try:
        return _images_only(_processor_class(name, **hub)).from_pretrained(name, **hub)
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        raise _refusal(name, error) from error


def _asks_for_torchvision(error: Exception) -> bool:
    return "torchvision" in str(error).lower()


def _refusal(name: str, error: Exception) -> ModelError:
    """Return a one-line error. Missing or broken files are not blamed on torchvision."""
    if isinstance(error, (OSError, ValueError)) and not _asks_for_torchvision(error):
        return ModelError(f"the processor of {name!r} can't be loaded: {first_line(error)}")
    return ModelError(f"the processor of {name!r} {TORCHVISION} ({type(error).__name__}: {first_line(error)})")


def _processor_class(name: str, **hub) -> type[ProcessorMixin]:
    """Return the processor class; without torchvision its public name holds a placeholder that raises."""
    # The folder's own entry comes first: Pixtral's model is of type LLaVA, but its processor is not LLaVA's.
    named = ProcessorMixin.get_processor_dict(name, **hub)[0].get("processor_class")
    class_name = named or PROCESSOR_MAPPING_NAMES[AutoConfig.from_pretrained(name, **hub).model_type]
    if class_name == "PixtralProcessor":
        # Its module imports one function from the torchvision image processor; the PIL one has the same function.
        folder = "transformers.models.pixtral.image_processing_"
        sys.modules.setdefault(f"{folder}pixtral", importlib.import_module(f"{folder}pil_pixtral"))
    return getattr(importlib.import_module(getattr(transformers, class_name).__module__), class_name)


def _images_only(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return a subclass that replaces the video processor, and what only that one uses, with placeholders."""

    class ImagesOnly(processor_class):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument_name != "video_processor":
                return super().check_argument_for_proper_class(argument_name, argument)
            return None

        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            with (
                mock.patch.object(AutoVideoProcessor, "from_pretrained", lambda *_, **__: _NoVideos()),
                # SmolVLM's processor insists on a package that spells out the number of a video's frames.
                mock.patch.object(sys.modules[processor_class.__module__], "num2words", _NoVideos, create=True),
            ):
                return super().from_pretrained(*args, **kwargs)

    # The class name is saved in files and looked up by transformers.
    ImagesOnly.__name__ = processor_class.__name__
    return ImagesOnly
