"""Clear answers to wrong requests, which MONAI Label's server fails at, or begins and then fails at."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from monailabel.endpoints import datastore, infer
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware

from dinomed.errors import InputError
from dinomed.label_app.background import drop_waiting, is_waiting
from dinomed.label_app.client_values import read_object
from dinomed.label_app.strategies import NoScanLeftError

if TYPE_CHECKING:
    from dinomed.label_app.app import MyApp

logger = logging.getLogger(__name__)

RUNS = {
    "train": "a training is running; wait for its end (GET /train/) or stop it (DELETE /train/)",
    "batch_infer": "a batch is running; wait for its end (GET /batch/infer) or stop it (DELETE /batch/infer)",
}
BACKGROUND = {"train": "train", "scoring": "scoring", "batch": "batch_infer"}
"""Kind of the background tasks that paths begin with."""
CLIENTS_FAULT = ("neither image nor file",)
READING = ("GET", "HEAD", "OPTIONS")
NO_PARAMS = ("model", "image", "label", "session")
"""What a request for labels says elsewhere; as params they would name any file of the server."""
WITH_SETTINGS = ("activelearning", "scoring", "batch", "train")
"""Paths whose requests hold a JSON object."""

_run_inference = infer.run_inference


def install(server: FastAPI, app: MyApp) -> None:
    """Teach a server to refuse; it may have begun to serve."""

    async def answer(_: Request, error: Exception) -> Response:
        return _answer(error, app)

    own = (InputError, NoScanLeftError)
    for kind in (MONAILabelException, *own, HTTPException, RequestValidationError, shutil.ReadError, Exception):
        server.add_exception_handler(kind, answer)
    for endpoints in (datastore, infer):  # what they read so is clients' settings and facts
        endpoints.json = SimpleNamespace(loads=read_object, dumps=json.dumps)
    infer.binary_to_image = _refuse_bare_numbers

    infer.run_inference = partial(_infer, app)
    gate = asyncio.Lock()

    async def check(request: Request, call_next: RequestResponseEndpoint) -> Response:
        kind = BACKGROUND.get(_parts(request)[0]) if request.method in ("POST", "DELETE") else None
        if kind:
            await request.body()  # before the gate, where a slow client would hold up the others
        async with gate if kind else nullcontext():  # of several that come at once, one begins
            try:
                await _check(request, app)
            except (HTTPException, MONAILabelException, InputError, ValueError) as error:
                return _answer(error, app)
            if kind and request.method == "DELETE":
                await run_in_threadpool(drop_waiting, kind)
            return await call_next(request)

    # MONAI Label lets every web page that a browser shows read its scans; viewers are no web pages.
    dropped = (CORSMiddleware, BaseHTTPMiddleware)  # the latter is our own, where the app was made anew
    kept = [middleware for middleware in server.user_middleware if middleware.cls not in dropped]
    server.user_middleware = [Middleware(BaseHTTPMiddleware, dispatch=check), *kept]
    server.middleware_stack = None  # made anew, with these, at the next request


def _answer(error: Exception, app: MyApp) -> Response:
    """Turn an error into status and sentence."""
    if isinstance(error, NoScanLeftError):  # viewers take an answer without a scan for the end
        return JSONResponse({"message": str(error)})
    status, detail = _status(error)
    if status >= 500:
        logger.error("a request failed", exc_info=error)
    return JSONResponse({"detail": _without_folders(detail, app)}, status_code=status)


def _status(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        at_fault = str(error.detail).lower().startswith(CLIENTS_FAULT)
        return (400 if at_fault else error.status_code), str(error.detail)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return 400, f"{' '.join(map(str, first['loc']))} cannot be used: {first['msg']}"
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        return 404, str(error.msg)
    if isinstance(error, MONAILabelException):
        wrong = error.error in (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)
        return (404 if wrong else 500), str(error.msg)
    if isinstance(error, shutil.ReadError):
        return 400, "what was sent cannot be unpacked; send a ZIP or TAR archive, or a scan without uncompress"
    if isinstance(error, InputError):
        return 400, str(error)
    return 500, f"the server failed ({type(error).__name__}: {error}); its log says where"


def _without_folders(sentence: str, app: MyApp) -> str:
    """Leave out in which folders files lie here."""
    folders = [app.studies, app.workspace, tempfile.gettempdir(), *(model.root.parent for model in app.models.values())]
    for folder in sorted((str(Path(folder).resolve()) for folder in folders), key=len, reverse=True):
        sentence = sentence.replace(f"{folder}{os.sep}", "")
    return sentence


def _refuse_bare_numbers(image: str, label: str) -> str:
    raise InputError("a label map of bare numbers (.bin) says not where it lies; send it as NIfTI or NRRD")


async def _settings(request: Request) -> dict[str, Any]:
    """Read the JSON object of a request, which may be left out."""
    body = await request.body()
    return {} if body.strip() in (b"", b"null") else read_object(body, "what was sent")


def _parts(request: Request) -> list[str]:
    """Parts of the path between slashes; one empty part for the server's own page."""
    return [part for part in request.url.path.split("/") if part] or [""]


async def _check(request: Request, app: MyApp) -> None:
    """Refuse what MONAI Label would fail at, or begin in the background to fail there."""
    parts = _parts(request)
    if parts[0] == "proxy":
        raise HTTPException(404, "scans are served from a folder; there is no DICOMweb server behind this one")
    if parts[:2] == ["logs", "gpu"] and shutil.which("nvidia-smi") is None:
        raise HTTPException(404, "nvidia-smi, which tells of GPUs, is not installed where the server runs")
    if parts[0] == "model" and request.method not in READING:
        raise HTTPException(
            405, "weights are not replaced or removed over HTTP; train, or change them in the app's folder"
        )
    if parts[0] == "reload":
        raise HTTPException(405, "the app is not made anew while it serves; start the server again")
    if request.method != "POST":
        return
    if parts[0] == "infer" and len(parts) > 2:
        raise HTTPException(404, f"slides are not served here; POST /infer/{parts[2]} segments volumes")
    settings = await _settings(request) if parts[0] in WITH_SETTINGS else {}
    if parts[0] == "scoring" and len(parts) > 1:
        app.known("scoring method", parts[1], app.scoring_methods)
    if parts[:2] == ["batch", "infer"] and len(parts) > 2:
        app.known("model", parts[2], app.models)
        if is_waiting("batch_infer"):
            raise HTTPException(429, RUNS["batch_infer"])
    if parts[0] == "train":
        if request.query_params.get("run_sync", "").lower() in ("true", "1", "yes", "on"):
            raise InputError("a training within the request would stop the server; leave run_sync out")
        if is_waiting("train"):
            raise HTTPException(429, RUNS["train"])
        app.check_training(parts[1] if len(parts) > 1 else None, settings)


def _infer(
    app: MyApp,
    background_tasks: BackgroundTasks,
    model: str,
    image: str,
    session_id: str,
    params: str,
    file: Any,
    label: Any,
    output: str | None,
) -> Any:
    """Answer a request for labels of a scan by name, of a session, or of a file that is sent; never of a path.

    Raises:
        ImageNotFoundException: If there is no such scan.
        HTTPException: If there is no such session.
        InputError: If the params are no object, or DICOM is asked for.
    """
    given = read_object(params or "{}")
    if output == "dicom_seg":
        raise InputError("label maps are not sent as DICOM; choose image, json or all as output")
    if session_id:
        _check_session(app, session_id)
    elif image and not file:
        app.datastore().scan(image)
    kept = json.dumps({name: value for name, value in given.items() if name not in NO_PARAMS})
    return _run_inference(background_tasks, model, image, session_id, kept, file, label, output)


def _check_session(app: MyApp, session_id: str) -> None:
    sessions = app.sessions()
    plain = sessions is not None and Path(session_id).name == session_id
    found = sessions.get_session(session_id) if plain else None
    if not found or not Path(found.image).resolve().is_relative_to(Path(sessions.store_path).resolve()):
        raise HTTPException(404, "there is no such session (one ends after an hour); send the scan again")
