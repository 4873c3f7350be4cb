"""Headstart: start an agent's work before it is certain, hold its effects until it is.

`Agent` is a small host of our own. `Session` is the engine for anybody's host.
`WriteBarrier`, `ToolCallSpeculator` and `ResultSpeculator` are the primitives, usable
alone.
"""

import os as _os

from ._agent import (
    Agent as Agent,
    AgentStream as AgentStream,
    RunResult as RunResult,
)
from ._barrier import (
    BarrierState as BarrierState,
    WriteBarrier as WriteBarrier,
    current_barrier as current_barrier,
)
from ._call_speculation import ToolCallSpeculator as ToolCallSpeculator
from ._calls import ToolCall as ToolCall, ToolResult as ToolResult
from ._errors import (
    BudgetExceeded as BudgetExceeded,
    DiscardedError as DiscardedError,
    HeadstartDeprecationWarning as HeadstartDeprecationWarning,
    HeadstartError as HeadstartError,
    InternalError as InternalError,
    LeakedSpeculationWarning as LeakedSpeculationWarning,
    ModelError as ModelError,
    PredictorError as PredictorError,
    ReplayError as ReplayError,
    SpeculationError as SpeculationError,
    StoreError as StoreError,
    ToolDefinitionError as ToolDefinitionError,
    ToolFailed as ToolFailed,
    TraceFormatError as TraceFormatError,
    UsageError as UsageError,
    WriteDenied as WriteDenied,
)
from ._events import (
    Event as Event,
    EventLog as EventLog,
    Sink as Sink,
    Summary as Summary,
    TraceStore as TraceStore,
    dump_event as dump_event,
    load_event as load_event,
    summarize as summarize,
)
from ._messages import (
    CallDelta as CallDelta,
    Message as Message,
    Model as Model,
    ModelDelta as ModelDelta,
    ModelRequest as ModelRequest,
    ModelResponse as ModelResponse,
    NativeDelta as NativeDelta,
    TextDelta as TextDelta,
    Usage as Usage,
)
from ._policy import (
    Candidate as Candidate,
    Expectation as Expectation,
    Experience as Experience,
    LimitPolicy as LimitPolicy,
    Policy as Policy,
    Record as Record,
    RunAhead as RunAhead,
    ValuePolicy as ValuePolicy,
)
from ._result_speculation import ResultSpeculator as ResultSpeculator
from ._session import Session as Session
from ._threads import disowned_threads as disowned_threads
from ._tools import (
    Effect as Effect,
    Tool as Tool,
    ToolContext as ToolContext,
    current_context as current_context,
    tool as tool,
)

__all__ = (
    "Agent",
    "AgentStream",
    "BarrierState",
    "BudgetExceeded",
    "CallDelta",
    "Candidate",
    "DiscardedError",
    "Effect",
    "Event",
    "EventLog",
    "Experience",
    "HeadstartDeprecationWarning",
    "HeadstartError",
    "InternalError",
    "LeakedSpeculationWarning",
    "LimitPolicy",
    "Message",
    "Model",
    "ModelDelta",
    "ModelError",
    "ModelRequest",
    "ModelResponse",
    "NativeDelta",
    "Policy",
    "PredictorError",
    "Record",
    "ReplayError",
    "ResultSpeculator",
    "RunResult",
    "Session",
    "Sink",
    "SpeculationError",
    "StoreError",
    "Summary",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolCallSpeculator",
    "ToolContext",
    "ToolDefinitionError",
    "ToolFailed",
    "ToolResult",
    "TraceFormatError",
    "TraceStore",
    "Usage",
    "UsageError",
    "ValuePolicy",
    "WriteBarrier",
    "WriteDenied",
    "current_barrier",
    "current_context",
    "disowned_threads",
    "dump_event",
    "load_event",
    "summarize",
    "tool",
)

if _os.environ.get("HEADSTART_TRIPWIRE"):
    from ._tripwire import arm_by_environment as _arm_by_environment

    _arm_by_environment()
