"""All families together."""

from tests.families import deep, folders, handmade, newest, newest_handmade

DEEP = (*deep.FAMILIES, *newest.FAMILIES)
"""Through their own processor and chat template."""
FOLDERS = folders.FAMILIES
"""The same, where the processor asks for torchvision, and is loaded without it."""
HAND_MADE = (*handmade.FAMILIES, *newest_handmade.FAMILIES)
"""On tensors made by hand."""
