"""The served door: designs over HTTP, one request after the other, with the models loaded once. Decides nothing.

What may be asked for is in commissions, who may come in is in gate, the queue is in service, drawing in studio.
"""

import signal
import socket
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from lace_lora import __version__, commissions, gate, service
from lace_lora.commissions import Limits
from lace_lora.config import Config
from lace_lora.errors import LaceError, MachineError, SettingsError
from lace_lora.file_names import without_folders
from lace_lora.gate import Gate
from lace_lora.job_records import CANCELLED, WAITING, Job
from lace_lora.service import Service

HOST, PORT = "127.0.0.1", 8000
GRACE_SECONDS = 5  # for answers that are being sent when the server ends

Say = Callable[[str], None]
Facts = Callable[[], dict[str, Any]]


class Problem(BaseModel):
    """What was wrong, in a sentence."""

    error: str


class Design(BaseModel):
    """One finished design."""

    number: int = Field(description="its number in its sheet, from 0")
    url: str = Field(description="where its picture is fetched, a PNG that carries all that made it")
    prompt: str
    seed: int
    width: int = Field(json_schema_extra={"unit": "px"})
    height: int = Field(json_schema_extra={"unit": "px"})


class Designs(BaseModel):
    """One request, as far as it is."""

    id: str
    state: str = Field(description="waiting, running, finished, cancelled or failed", pattern="^[a-z]+$")
    is_cancelling: bool = Field(description="it stops after the batch in hand")
    created: str = Field(description="ISO 8601, UTC")
    started: str = Field(description="ISO 8601, UTC; empty before it is drawn")
    ended: str = Field(description="ISO 8601, UTC; empty until it is over")
    error: str = Field(description="why it failed, in a sentence")
    notes: list[str] = Field(description="what was said of its prompts and settings while it was drawn")
    total: int = Field(description="designs that were asked for")
    drawn: int = Field(description="designs that the base model has drawn since the server started")
    refined: int = Field(description="designs that the refiner has touched up since the server started")
    finished: int = Field(description="designs that can be fetched")
    progress: float = Field(description="share of all stages of all designs", ge=0, le=1)
    ahead: int = Field(description="requests that are drawn before it")
    eta_seconds: float | None = Field(
        description="until it is over, by the pace of what was drawn before; null while that is not known",
        json_schema_extra={"unit": "seconds"},
    )
    asked: dict[str, Any] = Field(description="its settings, complete")
    designs: list[Design]


class Adapter(BaseModel):
    """The adapter that draws here."""

    name: str
    base_model: str
    concept_token: str = Field(description="the word that calls the style; prompts without it get it")
    instance_prompt: str
    class_prompt: str
    rank: int
    alpha: float
    resolution: int = Field(description="side of the training square; 0 where it is not known")
    step: int
    is_complete: bool = Field(description="whether its training came to its last step")
    sha256: str


class Health(BaseModel):
    """Whether requests are drawn, and how many are in each state."""

    is_working: bool
    version: str
    requests: dict[str, int]
    room: int = Field(description="requests that can still wait")


def application(drawing: Service, facts: Facts, config: Config, limits: Limits, has_key: bool) -> FastAPI:
    """The routes, without their gate.

    drawing  the requests
    facts    the adapter's facts
    config   settled: what a request leaves out
    has_key  whether the description says that a key is needed
    """
    bearer = [Depends(HTTPBearer(auto_error=False, description="the server's key"))] if has_key else []
    app = FastAPI(
        title="Lace LoRA", version=__version__, docs_url=None, redoc_url=None, dependencies=bearer,
        description="New textile designs from one trained LoRA. All errors are sentences: {“error”: “…”}.",
        responses=_problems(400, 403, 408, 413, 421, 500, 503) | (_problems(401) if has_key else {}),
    )  # fmt: skip
    commission = commissions.commission_model(config, limits)
    _add_errors(app, commission)
    _add_requests(app, drawing, facts, config, commission)
    _add_facts(app, drawing, facts)
    return app


def run(drawing: Service, facts: Facts, config: Config, limits: Limits, host: str, port: int, say: Say = print) -> None:
    """Serve until Ctrl-C or SIGTERM; the request in hand is then finished to the end of its batch and parked.

    port  0 takes a free one

    Raises SettingsError where others could come in without a key, MachineError where the port is taken, RunError where
    another process serves this run.
    """
    door = Gate.of(host, gate.key_in_environment(), limits.body_bytes)
    app = gate.guarded(application(drawing, facts, config, limits, door.key is not None), door)
    who = "Whoever has the key can come in." if door.key else "Only this computer can come in."
    listening(app, drawing, host, port, who, say)


def listening(app: Any, drawing: Service, host: str, port: int, more: str, say: Say) -> None:
    """An application over a service until Ctrl-C or SIGTERM; the service is opened and closed here.

    more  said beside the address
    """
    import uvicorn

    place = listen(host, port)
    # uvicorn ends by itself on SIGTERM and then hands it on; the work of this process is not over by then.
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with drawing:
            shown = f"[{host}]" if ":" in host else host
            say(f"Designs of {drawing.run.name} at http://{shown}:{place.getsockname()[1]}. {more} Ctrl-C ends it.")
            settings = uvicorn.Config(
                app, log_level="warning", server_header=False, timeout_graceful_shutdown=GRACE_SECONDS
            )
            try:
                uvicorn.Server(settings).run(sockets=[place])
            except KeyboardInterrupt:
                say("")
    finally:
        place.close()
        signal.signal(signal.SIGTERM, earlier)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises MachineError where that is not possible."""
    found = None
    try:
        kind, _, _, _, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(kind, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(2048)  # whoever calls from now on is answered as soon as the server is up
    except (OSError, OverflowError, UnicodeError) as error:
        if found is not None:
            found.close()
        raise MachineError(
            f"Nothing can be served at {host}, port {port} ({getattr(error, 'strerror', None) or error}). Choose "
            "another with --port, or --port 0 for a free one."
        ) from error
    return found


# -- routes --


def _add_requests(
    app: FastAPI, drawing: Service, facts: Facts, config: Config, commission: type[commissions.Commission]
) -> None:
    """Ask for designs, look at what comes of it, and cancel."""

    @app.post("/designs", status_code=202, responses=_problems(409, 415, 422, 429), tags=["designs"])
    def ask(asked: commission, response: Response) -> Designs:  # type: ignore[valid-type]
        """Ask for designs. They are drawn when their turn comes; look at `/designs/{id}` for what comes of it."""
        values = asked.model_dump()  # type: ignore[attr-defined]
        settings = commissions.settings_of(values, config, "served")
        commissions.check_prompts(settings, str(facts()["concept_token"]))
        job = drawing.submit(values, settings.num_images)
        response.headers["Location"] = f"/designs/{job.id}"
        return _told(drawing, job)

    @app.get("/designs", tags=["designs"])
    def every() -> list[Designs]:
        """All requests that are kept, the oldest first."""
        return [_told(drawing, job) for job in drawing.jobs()]

    @app.get("/designs/{id}", responses=_problems(404), tags=["designs"])
    def one(id: str) -> Designs:
        """One request: how far it is, and its pictures."""
        return _told(drawing, _found(drawing, id))

    @app.delete("/designs/{id}", responses=_problems(404, 409), tags=["designs"])
    def cancel(id: str) -> Designs:
        """Cancel a request. What is drawn stops after its batch; what is finished of it stays."""
        job = _found(drawing, id)
        if job.is_over and job.state != CANCELLED:
            raise HTTPException(409, f"This request is {job.state} already; there is nothing to cancel.")
        return _told(drawing, drawing.cancel(id) or job)

    @app.get(
        "/designs/{id}/pictures/{number}.png", tags=["designs"], response_class=Response,
        responses=_problems(404, 422) | {200: {"content": {"image/png": {}}}},
    )  # fmt: skip
    def picture(id: str, number: Annotated[int, Path(ge=0, le=10**9)]) -> Response:
        """One finished picture."""
        job = _found(drawing, id)
        found = drawing.pictures(job.id).get(number)
        try:
            data = found.path.read_bytes() if found else b""
        except OSError:
            data = b""
        if not data:
            raise HTTPException(404, "There is no such picture, or not yet. The request lists those that there are.")
        return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _add_facts(app: FastAPI, drawing: Service, facts: Facts) -> None:
    @app.get("/adapter", tags=["about"])
    def adapter() -> Adapter:
        """What was learnt, and how it is called."""
        return Adapter(**facts())

    @app.get("/health", tags=["about"])
    def health(response: Response) -> Health:
        """Whether requests are drawn; 503 where they are not."""
        jobs = drawing.jobs()
        waiting = sum(job.state == WAITING for job in jobs)
        response.status_code = 200 if drawing.is_working else 503
        return Health(
            is_working=drawing.is_working, version=__version__, requests=service.summary(jobs),
            room=max(0, drawing.waiting - waiting),
        )  # fmt: skip


def _found(drawing: Service, id: str) -> Job:
    job = drawing.job(id)
    if job is None:
        raise HTTPException(404, "There is no request with this id. Those that there are: /designs")
    return job


def _told(drawing: Service, job: Job) -> Designs:
    progress = drawing.progress(job)
    designs = [
        Design(
            number=one.number, url=f"/designs/{job.id}/pictures/{one.number}.png", prompt=one.prompt, seed=one.seed,
            width=one.width, height=one.height,
        )
        for one in drawing.pictures(job.id).values()
    ]  # fmt: skip
    return Designs(
        id=job.id, state=job.state, is_cancelling=drawing.is_cancelling(job.id), created=job.created,
        started=job.started, ended=job.ended, error=job.error, notes=list(job.notes), total=job.total,
        drawn=progress.drawn, refined=progress.refined, finished=len(designs), progress=progress.share,
        ahead=progress.ahead, eta_seconds=progress.eta_seconds, asked=dict(job.asked), designs=designs,
    )  # fmt: skip


# -- errors --


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in statuses}


_MEANINGS = {
    400: "the request cannot be read",
    401: "the key is missing or wrong",
    403: "a page of another site asked",
    404: "there is none",
    408: "the request did not arrive in time",
    409: "it is over already, or the adapter cannot be used",
    413: "the request is too large",
    415: "the settings were not sent as JSON",
    421: "the server was called by a name that is not its own",
    422: "a setting is unknown or out of its bounds",
    429: "the queue is full; Retry-After says when to ask again",
    500: "something unforeseen went wrong",
    503: "the server is ending, or its disk or Drive gave out",
}
# What the framework says by itself, and what is said instead.
_FRAMEWORKS = {
    "Not Found": "There is nothing here. /openapi.json tells what there is.",
    "Method Not Allowed": "That cannot be done here. /openapi.json tells what can.",
    "There was an error parsing the body": f"The request cannot be read. {commissions.ONE_OBJECT}",
}


def _add_errors(app: FastAPI, commission: type[BaseModel]) -> None:
    """Every error as one sentence, without a traceback or a folder of this machine."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        if any(problem["loc"][:1] == ("path",) for problem in problems):
            return _said(422, "The number of a picture is a whole number from 0.")
        if not request.headers.get("content-type", "").split(";")[0].strip().lower().endswith("json"):
            return _said(415, "Send the settings as JSON, with the header Content-Type: application/json.")
        return _said(422, commissions.faults(problems, commission))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the framework names the methods of one route, and a path has several
            there = [route for route in app.routes if route.matches(request.scope)[0] is Match.PARTIAL]
            headers["Allow"] = ", ".join(sorted({name for one in there for name in getattr(one, "methods", ())}))
        return _said(error.status_code, _FRAMEWORKS.get(error.detail) or error.detail, headers)

    @app.exception_handler(LaceError)
    async def told(request: Request, error: LaceError) -> JSONResponse:
        if isinstance(error, service.Full):
            return _said(429, str(error), {"Retry-After": str(error.seconds)})
        unable = isinstance(error, service.Closing | MachineError)
        status = 422 if isinstance(error, SettingsError) else 503 if unable else 409
        return _said(status, without_folders(" ".join(str(error).splitlines())))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return _said(500, "Something unforeseen went wrong; the server's own log tells what.")


def _said(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers=dict(headers or {}))
