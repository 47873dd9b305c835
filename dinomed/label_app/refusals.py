"""Clear answers to wrong requests, which MONAI Label's server fails at, or begins and then fails at."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from monailabel.utils.async_tasks.utils import tasks
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware

from dinomed.errors import InputError
from dinomed.label_app.strategies import NoScanLeftError

if TYPE_CHECKING:
    from dinomed.label_app.app import MyApp

logger = logging.getLogger(__name__)

TRAINING_RUNS = "a training is running; wait for its end (GET /train/) or stop it (DELETE /train/)"
WAITING = ("SUBMITTED", "RUNNING")
CLIENTS_FAULT = ("neither image nor file", "dicom seg format is not supported")


def install(server: FastAPI, app: MyApp) -> None:
    """Teach a server to refuse; it may have begun to serve."""
    kinds = (MONAILabelException, InputError, NoScanLeftError, HTTPException, json.JSONDecodeError, Exception)
    for kind in kinds:
        server.add_exception_handler(kind, _answer)

    async def check(request: Request, call_next: RequestResponseEndpoint) -> Response:
        try:
            await _check(request, app)
        except (HTTPException, MONAILabelException, InputError, ValueError) as error:
            return await _answer(request, error)
        return await call_next(request)

    # MONAI Label lets every web page that a browser shows read its scans; viewers are no web pages.
    dropped = (CORSMiddleware, BaseHTTPMiddleware)  # the latter is our own, where the app was made anew
    kept = [middleware for middleware in server.user_middleware if middleware.cls not in dropped]
    server.user_middleware = [Middleware(BaseHTTPMiddleware, dispatch=check), *kept]
    server.middleware_stack = None  # made anew, with these, at the next request


async def _answer(_: Request, error: Exception) -> Response:
    """Turn an error into status and sentence."""
    if isinstance(error, NoScanLeftError):  # viewers take an answer without a scan for the end
        return JSONResponse({"message": str(error)})
    status, detail = _status(error)
    if status >= 500:
        logger.error("a request failed", exc_info=error)
    return JSONResponse({"detail": detail}, status_code=status)


def _status(error: Exception) -> tuple[int, Any]:
    if isinstance(error, HTTPException):
        at_fault = str(error.detail).lower().startswith(CLIENTS_FAULT)
        return (400 if at_fault else error.status_code), error.detail
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        return 404, error.msg
    if isinstance(error, MONAILabelException):
        wrong = error.error in (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)
        return (404 if wrong else 500), error.msg
    if isinstance(error, json.JSONDecodeError):
        return 400, f"params is no JSON ({error}); send an object such as {{}}"
    if isinstance(error, InputError):
        return 400, str(error)
    return 500, f"the server failed ({type(error).__name__}: {error}); its log says where"


async def _check(request: Request, app: MyApp) -> None:
    """Refuse what MONAI Label would begin in the background, to fail there."""
    parts = [part for part in request.url.path.split("/") if part]
    if request.method != "POST" or not parts:
        return
    if parts[0] == "scoring" and len(parts) > 1:
        app.known("scoring method", parts[1], app.scoring_methods)
    if parts[:2] == ["batch", "infer"] and len(parts) > 2:
        app.known("model", parts[2], app.infers)
    if parts[0] == "train":
        if request.query_params.get("run_sync", "").lower() in ("true", "1", "yes", "on"):
            raise InputError("a training within the request would stop the server; leave run_sync out")
        if any(task["status"] in WAITING for task in tasks("train")):
            raise HTTPException(429, TRAINING_RUNS)
        body = await request.body()
        params = json.loads(body) if body.strip() else {}
        if not isinstance(params, dict | None):
            raise InputError("the settings of a training must be an object, such as {}")
        app.check_training(parts[1] if len(parts) > 1 else None, params or {})
