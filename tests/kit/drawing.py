"""One generation to its end."""

from disegno import Request, Result, Studio, generate


def result_of(request: Request, studio: Studio) -> Result:
    """Return what comes of a request."""
    *_, result = generate(request, studio=studio)
    assert isinstance(result, Result)
    return result
