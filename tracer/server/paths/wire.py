"""What travels: the bodies of requests and answers, and so the server's OpenAPI document.

The first part is the contract of Neuronpedia's graph server, name for name; the second is the page's.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from crosstrace.graphs.analysis.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.tracer import defaults
from crosstrace.tracer.server.core.settings import EDITS, MEMBERS

Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(max_length=200)]
Slug = Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9_.-]+$")]
Id = Annotated[str, Field(max_length=40, pattern=r"^[A-Za-z0-9_-]+$")]
Count = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Failure(BaseModel):
    """Why a request was refused or failed, in one line."""

    error: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    role: Name
    content: Text


# Neuronpedia's graph server


class Busy(BaseModel):
    """Whether something runs or waits."""

    busy: bool


class GraphGeneration(BaseModel):
    """A graph that is asked for."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: Name
    slug_identifier: Slug
    prompt: Text = ""
    messages: Annotated[list[ChatMessage], Field(max_length=1000)] | None = None
    batch_size: Count = 48
    max_n_logits: Count = defaults.MAX_LOGITS
    desired_logit_prob: Number = defaults.LOGIT_PROBABILITY
    node_threshold: Number = NODE_THRESHOLD
    edge_threshold: Number = EDGE_THRESHOLD
    max_feature_nodes: Count = 10_000
    signed_url: Annotated[str, Field(max_length=10_000)] | None = None
    user_id: Name | None = None
    compress: bool = False
    enable_qk_tracing: bool = False
    qk_top_fraction: Number = 0.6
    qk_topk: Count = 10


class ForwardPass(BaseModel):
    """The likeliest next tokens that are asked for."""

    prompt: Text = ""
    messages: Annotated[list[ChatMessage], Field(max_length=1000)] | None = None
    max_n_logits: Count = defaults.MAX_LOGITS
    desired_logit_prob: Number = defaults.LOGIT_PROBABILITY


class SalientLogit(BaseModel):
    """A token that may come next."""

    token: str
    token_id: int
    probability: float


class ForwardPassAnswer(BaseModel):
    """The likeliest next tokens."""

    prompt: str
    input_tokens: list[str]
    salient_logits: list[SalientLogit]
    total_salient_tokens: int
    cumulative_probability: float


class SteerFeature(BaseModel):
    """One feature to hold: at its activation at `token_active_position` plus `delta`, or at zero."""

    layer: Count
    index: Count
    token_active_position: Count
    steer_position: Count | None = None
    steer_generated_tokens: bool = False
    delta: Number | None = None
    ablate: bool = False


class SteerRequest(BaseModel):
    """A generation under held features that is asked for."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: Name
    features: Annotated[list[SteerFeature], Field(max_length=MEMBERS)]
    prompt: Text = ""
    messages: Annotated[list[ChatMessage], Field(max_length=1000)] | None = None
    n_tokens: Count = 10
    top_k: Count = 5
    temperature: Number = 0.0
    freq_penalty: Number = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    freeze_attention: bool = False


class TopLogit(BaseModel):
    """A token and its probability."""

    token: str
    prob: float


class LogitsByToken(BaseModel):
    """What may come after a token; empty within the prompt."""

    token: str
    top_logits: list[TopLogit]


class SteerAnswer(BaseModel):
    """Both generations, the prompt included."""

    DEFAULT_GENERATION: str
    STEERED_GENERATION: str
    DEFAULT_LOGITS_BY_TOKEN: list[LogitsByToken]
    STEERED_LOGITS_BY_TOKEN: list[LogitsByToken]


class ParseChatPrompt(BaseModel):
    """A prompt that a chat template may have written."""

    prompt: Text


class ParsedChatPrompt(BaseModel):
    """Its turns."""

    messages: list[ChatMessage] | None
    is_chat: bool
    prompt: str
    unsteerable_positions: list[int]


class UploadReceipt(BaseModel):
    """That a graph was sent."""

    success: str | None = None
    error: str | None = None


# circuit-tracer's frontend


class SavedGraph(BaseModel):
    """Pins and groups, as the frontend saves them; whatever else it sends is not kept."""

    q_params: dict[str, Any] = Field(alias="qParams")


# The page


class TraceBody(BaseModel):
    """A trace that the page asks for."""

    model: Name = ""
    prompt: Text = ""
    messages: Annotated[list[ChatMessage], Field(max_length=1000)] = []
    answer: Text = ""
    targets: Annotated[list[Name], Field(max_length=50)] = []
    max_logits: Count = defaults.MAX_LOGITS
    max_feature_nodes: Count | None = None
    node_threshold: Number = NODE_THRESHOLD
    edge_threshold: Number = EDGE_THRESHOLD


class EditBody(BaseModel):
    """One intervention; see `crosstrace.tracer.server.computing.edits.Edit`."""

    verb: Name
    features: Annotated[list[Name], Field(max_length=MEMBERS)]
    name: Name = ""
    value: Number = 0.0
    prompt: Text = ""


class EditsBody(BaseModel):
    """Interventions on a graph's prompt."""

    edits: Annotated[list[EditBody], Field(max_length=EDITS)]
    new_tokens: Count = 0
    freeze: Name = "iterative"
    free_attention: bool = False
    top: Count = 10


class StateBody(BaseModel):
    """What the page keeps of a graph."""

    q_params: dict[str, Any] = Field({}, alias="qParams")
    fragment: Text = ""


class SignIn(BaseModel):
    """The secret, typed into the page."""

    secret: Name


class JobAnswer(BaseModel):
    """Work on the queue."""

    id: str
    what: str
    state: str
    doing: str
    done: int
    total: int
    before: int
    error: str
    result: dict[str, Any] | None


class EntryAnswer(BaseModel):
    """A graph that is kept."""

    id: str
    slug: str
    scan: str
    made: float
    size: int
    about: dict[str, Any]
    state: dict[str, Any]


class EntriesAnswer(BaseModel):
    """The graphs that are kept, newest first."""

    graphs: list[EntryAnswer]
    busy: bool


class EditsAnswer(BaseModel):
    """What interventions on a graph's prompt did, newest first."""

    edits: list[dict[str, Any]]
