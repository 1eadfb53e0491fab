"""A published folder as a web service: its own handler.py behind HTTP, within limits.

    MODEL_DIR=FOLDER uvicorn server:app          (the Dockerfile beside this runs it so)

- GET /health: 200 once the model is there.
- POST / : JSON {"inputs": ..., "parameters": {...}}, or a file as the body (WFDB as a zip archive, EDF, CSV ...; wav,
  mp4 ...), with parameters in the address: `?sampling_rate=500&leads=I,II`. 200 and the handler's answer; or
  {"error": one line}: 400 for what cannot be read, 408 for what takes too long, 413 for what is too large, 503 with
  Retry-After when there are as many requests as fit.

Environment: MODEL_DIR (/repository), MOST_BYTES of a body (64 MiB), MOST_SECONDS of an answer (60), MOST_WAITING
requests (32), WORKERS (1: torch uses all cores for one).
"""

import asyncio
import importlib.util
import json
import logging
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

logger = logging.getLogger("uvicorn.error")

MODEL_DIR = os.environ.get("MODEL_DIR", "/repository")
MOST_BYTES = int(os.environ.get("MOST_BYTES", 2**26))
MOST_SECONDS = float(os.environ.get("MOST_SECONDS", 60))
MOST_WAITING = int(os.environ.get("MOST_WAITING", 32))
WORKERS = int(os.environ.get("WORKERS", 1))

NUMBERS = {"sampling_rate": float, "top_k": int}  # of the parameters in an address
LISTS = ("leads",)


def load_handler(folder):
    """As the endpoints' toolkit does: EndpointHandler of handler.py, with the folder's path."""
    sys.path.insert(0, folder)
    specification = importlib.util.spec_from_file_location("handler", Path(folder) / "handler.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.EndpointHandler(path=folder)


@asynccontextmanager
async def lifespan(app):
    app.state.handler = load_handler(MODEL_DIR)
    app.state.executor = ThreadPoolExecutor(WORKERS)
    app.state.waiting = 0
    yield
    app.state.executor.shutdown(wait=False, cancel_futures=True)


app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)


@app.get("/health")
async def health():
    return {"status": "ok"}


@app.post("/")
@app.post("/predict")
async def answer(request: Request):
    try:
        data = await read_request(request)
    except TooLarge:
        return refusal(413, f"the body is larger than {MOST_BYTES:,} bytes")
    except ValueError as error:
        return refusal(400, str(error))
    state = request.app.state
    if state.waiting >= MOST_WAITING:
        return refusal(503, "too many requests at once; try again", {"Retry-After": "1"})
    state.waiting += 1
    work = asyncio.get_running_loop().run_in_executor(state.executor, answered, state.handler, data)
    work.add_done_callback(lambda _: leave(state))  # a slow one keeps its place after its caller was let go
    try:
        status, content = await asyncio.wait_for(asyncio.shield(work), MOST_SECONDS)
    except TimeoutError:
        work.cancel()
        return refusal(408, f"this takes longer than {MOST_SECONDS:g} s; send less of it")
    return JSONResponse(content, status)


class TooLarge(Exception):
    pass


def leave(state):
    state.waiting -= 1


def refusal(status, text, headers=None):
    return JSONResponse({"error": " ".join(text.split())}, status, headers)


def answered(handler, data):
    """Status and content; in a thread of its own."""
    try:
        return 200, finite(handler(data))
    except (ValueError, OSError) as error:
        return 400, {"error": " ".join(str(error).split())}
    except Exception:
        logger.exception("a request failed")
        return 500, {"error": "the server failed on this request"}


def finite(value):
    """JSON knows no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


async def read_request(request):
    """The dict that a handler takes. TooLarge as soon as a body is; ValueError for JSON that is none."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise TooLarge
    if "json" in request.headers.get("content-type", "application/json"):
        try:
            return json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is not JSON: {error}") from None
    parameters = dict(request.query_params)
    for name, kind in NUMBERS.items():
        if name in parameters:
            try:
                parameters[name] = kind(parameters[name])
            except ValueError:
                raise ValueError(f"{name} is {parameters[name][:40]!r}; expected a number") from None
    for name in LISTS:
        if name in parameters:
            parameters[name] = parameters[name].split(",")
    return {"inputs": bytes(body), "parameters": parameters}
