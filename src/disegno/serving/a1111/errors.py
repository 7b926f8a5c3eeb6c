"""What A1111's API says when it refuses: its status codes and bodies, with our words in them.

It answers in two shapes, and clients know both:

    a field of the wrong type     422 {"detail": [{"loc": ["body", "width"], "msg": ..., "type": "type_error.integer"}]}
    everything else               its code {"error": "...", "detail": "...", "body": "", "errors": ""}
"""

from dataclasses import dataclass

from disegno.serving.faults import Refused

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Fault:
    """One field that is wrong: where it is in the body, what is wrong, and pydantic 1's name for that."""

    path: Path
    message: str
    type: str = "value_error"

    @property
    def field(self) -> str:
        """Return the field's place as text: alwayson_scripts.controlnet.args.0.weight."""
        return ".".join(map(str, self.path))


class WireError(Refused):
    """A request that A1111's API refuses, with the status that its clients expect.

    `faults`: the fields that are wrong, where it is about fields.
    """

    def __init__(self, message: str, status: int = 422, faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(status, "invalid_request", message, faults[0].field if faults else None)
        self.faults = faults

    @classmethod
    def of_fields(cls, *faults: Fault) -> "WireError":
        """Return the error for fields that are wrong."""
        return cls("; ".join(f"{fault.field}: {fault.message}" for fault in faults), 422, faults)


def error_body(refused: Refused) -> dict[str, object]:
    """Return the JSON body that an A1111 client gets for this refusal."""
    told = {"code": refused.code, "field": refused.at, "message": str(refused), "hint": refused.hint}
    if isinstance(refused, WireError) and refused.faults:
        detail = [{"loc": ["body", *fault.path], "msg": fault.message, "type": fault.type} for fault in refused.faults]
        return {"detail": detail, "error": "ValidationError", **told}
    return {"error": "HTTPException", "detail": str(refused), "body": "", "errors": "", **told}
