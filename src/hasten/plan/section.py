"""What all parts of a plan have in common."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from hasten.plan.values import no_boolean

Whole = Annotated[int, BeforeValidator(no_boolean)]
Number = Annotated[float, BeforeValidator(no_boolean)]
Text = Annotated[str, BeforeValidator(no_boolean)]


class Section(BaseModel):
    """A part of a plan: frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    short_form: ClassVar[str | None] = None
    """The field that the section may be written as: `cache: taylorseer` is `cache: {method: taylorseer}`."""
