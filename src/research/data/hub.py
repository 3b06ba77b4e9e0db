"""Texts of a dataset of the Hugging Face hub."""

from typing import Any

from research.data.files import HUB
from research.data.text_files import TextFiles


class Hub(TextFiles):
    """Texts with classes, by the name of their dataset.

    Args:
        name: of the dataset, or a folder that holds one.
        path: other texts in its place, for a run that is opened on them.
    """

    def __init__(self, name: str, path: str | None, **settings: Any) -> None:
        super().__init__(path=path or f"{HUB}{name}", **settings)
