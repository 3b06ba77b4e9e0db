"""Value types for constructor arguments that yaml fills in.

They are checked before torch is imported, from the annotation alone (see `signature.py`), so an impossible value
is told within a second. Use them, or any pydantic type, in the `__init__` of your own models and data.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic import NonNegativeFloat as NonNegativeFloat
from pydantic import PositiveFloat as PositiveFloat

MOST = 2**31 - 1  # of what a library may count in 32 bits
PositiveInt = Annotated[int, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # of numpy and scikit-learn
Pixels = Annotated[int, Field(gt=0, le=2**14)]  # a side
Processes = Annotated[int, Field(ge=0, le=2**8)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Mode = Literal["auto", "min", "max"]  # auto is what the metric says; build puts that in its place


def _whole(fractions: list[float]) -> list[float]:
    if abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"train, val and test fractions must add up to 1, these add up to {sum(fractions):g}")
    return fractions


Fractions = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=3, max_length=3), AfterValidator(_whole)
]

TAB = {"tab": "\t", "\\t": "\t"}  # as it can be typed


def _one_mark(text: str) -> str:
    if len(TAB.get(text, text)) != 1:
        raise ValueError("a delimiter is one character; tab is one, too")
    return text


Delimiter = Annotated[str, AfterValidator(_one_mark)]
