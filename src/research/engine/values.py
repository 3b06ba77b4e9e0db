"""Value types for constructor arguments that yaml fills in.

They are checked before torch is imported, from the annotation alone (see `signature.py`), so an impossible value
is told within a second. Use them, or any pydantic type, in the `__init__` of your own models and data.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic import NonNegativeFloat as NonNegativeFloat
from pydantic import NonNegativeInt as NonNegativeInt
from pydantic import PositiveFloat as PositiveFloat
from pydantic import PositiveInt as PositiveInt

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
