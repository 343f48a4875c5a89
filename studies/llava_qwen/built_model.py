"""Describe the models that are built on the user's machine: a downloaded LLM, with eyes and updates that ship.

Modules of this package do the work for any of them; what differs is in a `BuiltModel`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from platformdirs import user_cache_path

from studies.bookkeeping.provenance import file_hash
from studies.llava_qwen.base_model import BaseFile

MADE_OF = "made_of.json"
"""File in a built folder with the hashes of what it was built from."""
EYES = "eyes.safetensors"
"""File with the vision tower and the projector, or with the projector alone."""
CHAT_TEMPLATE = """\
{{%- if messages[0].role != 'system' %}}{{{{ '<|im_start|>system\\n{system}<|im_end|>\\n' }}}}{{% endif -%}}
{{%- for message in messages -%}}
{{{{ '<|im_start|>' + message.role + '\\n' }}}}
{{%- if message.content is string -%}}{{{{ message.content }}}}
{{%- else -%}}
{{%- for part in message.content if part.type == 'image' -%}}{{{{ '{image_token}\\n' }}}}{{%- endfor -%}}
{{%- for part in message.content if part.type == 'text' -%}}{{{{ part.text }}}}{{%- endfor -%}}
{{%- endif -%}}
{{{{ '<|im_end|>\\n' }}}}
{{%- endfor -%}}
{{%- if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif -%}}
"""
"""ChatML without tools, with the picture at the beginning of its turn."""


@dataclass(frozen=True)
class ChatFormat:
    """The form of the chats of an LLM."""

    image_token: str
    """A token that the LLM has and hardly ever saw; it stands for each patch of a picture."""
    system: str
    """System turn of the LLM's own template, used where a chat has none."""

    @cached_property
    def template(self) -> str:
        """The LLM's own template, extended by pictures."""
        return CHAT_TEMPLATE.format(system=self.system, image_token=self.image_token)


@dataclass(frozen=True)
class BuiltModel:
    """A model with its variants."""

    alias: str
    """Name of the model wherever a model is named; a variant is named behind a colon."""
    base: BaseFile
    chat: ChatFormat
    variants: Mapping[str, str]
    """Treatment of the LLM by variant."""
    default: str
    weights: Path
    """Folder with what ships: `EYES`, and the updates of the variants."""
    without_updates: tuple[str, ...] = ()
    """Variants whose LLM is the base."""
    own_alignment: bool = False
    """True if the updates align the LLM, and so belong to the aligned LLM; False if they came with the eyes."""
    tower: Path | None = None
    """File with the vision tower, if it is another model's."""

    @property
    def folder(self) -> Path:
        """Folder of the downloaded LLM and of what was built; it may not exist yet."""
        return cache() / self.alias

    def path(self, variant: str) -> Path:
        """Return the folder of a built variant, in Hugging Face format; it may not exist yet."""
        return self.folder / variant

    def llm_path(self, variant: str) -> Path:
        """Return the folder of the aligned LLM of a variant, as it was before it saw a picture."""
        return self.folder / (f"llm-{variant}" if self.own_alignment else "llm")

    def updates_path(self, variant: str) -> Path | None:
        """Return the file with the updates of a variant; None if it has none."""
        return None if variant in self.without_updates else self.weights / f"{variant}.safetensors"

    @property
    def shipped(self) -> dict[str, str]:
        """The variants whose weights are part of this version."""
        if not (self.weights / EYES).is_file():
            return {}
        return {name: what for name, what in self.variants.items() if self._has_updates(name)}

    def _has_updates(self, variant: str) -> bool:
        updates = self.updates_path(variant)
        return updates is None or updates.is_file()

    def made_of(self, variant: str, with_eyes: bool = True) -> dict[str, str]:
        """Return hashes of everything that a variant, or its aligned LLM, is built from.

        Raises:
            FileNotFoundError: a file does not ship.
        """
        updates = self.updates_path(variant)
        files = [updates] if updates and (with_eyes or self.own_alignment) else []
        if with_eyes:
            files += [self.weights / EYES, *([self.tower] if self.tower else [])]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} does not exist: the weights of {self.alias}:{variant} are not part of this version; train "
                    f"them with `python -m studies.{self.weights.parent.name}`"
                )
        return {"base": self.base.sha256} | {
            f"{file.parent.parent.name}/{file.name}": file_hash([file]) for file in files
        }

    def is_meant(self, name: str) -> bool:
        """Return whether a name means this model, in whatever variant."""
        return name.partition(":")[0] == self.alias

    def variant_of(self, name: str) -> str:
        """Return the variant that a name of this model means.

        Raises:
            ValueError: the variant does not exist.
        """
        if (variant := name.partition(":")[2] or self.default) not in self.variants:
            raise ValueError(f"{name!r}: variant {variant!r} does not exist; expected one of {', '.join(self.shipped)}")
        return variant


def is_made_of(folder: Path, ingredients: Mapping[str, str]) -> bool:
    """Return whether a built folder was made of these files, and not of those of another version."""
    record = folder / MADE_OF
    return record.is_file() and json.loads(record.read_text(encoding="utf-8")) == dict(ingredients)


def cache() -> Path:
    """Return the user's folder for downloads and built models."""
    return user_cache_path("vlm-guard", appauthor=False)
