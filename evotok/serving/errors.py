"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from evotok.data.errors import printable


_MAX_PATH = 100
"""Longest field path in an error, in characters; the names of unknown fields have any length."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Error response in OpenAI's form.

    Args:
        status: HTTP status code.
        message: one line with what is wrong, the limit, and the correction.
        code: name of the kind of error, for programs.
        param: the invalid field of the request.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def content(self) -> dict[str, Any]:
        """Returns the body of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": printable(str(self)), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Builds the response."""
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(self.status)
        return JSONResponse(self.content, self.status, headers)


def from_validation(error: ValidationError) -> ApiError:
    """Converts the first error that pydantic found, with the path of its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kinds = {"extra_forbidden": "unsupported_parameter", "json_invalid": "invalid_json", "missing": "missing_parameter"}
    path = printable(".".join(map(str, first["loc"]))[:_MAX_PATH])
    message = {"extra_forbidden": "This server has no such parameter: leave it out."}.get(first["type"], first["msg"])
    message = message.removeprefix("Value error, ").removesuffix(".")
    return ApiError(400, f"{path}: {message}." if path else f"{message}.", kinds.get(first["type"]), path or None)
