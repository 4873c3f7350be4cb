"""Headstart in the OpenAI Agents SDK: `pip install "headstart[openai-agents]"`.

```python
speculation = Speculation(effects={"get_order": "READ"}, predictors=[rules])
async with speculation.run(context=deps) as run:
    result = await Runner.run(
        run.wrap(agent), "Where is order 7?", context=deps, run_config=run.run_config
    )
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._speculation import Speculation as _Speculation

try:
    from ._openai_agents._run import SpeculativeRun
except ImportError as error:
    if (error.name or "").split(".")[0] not in ("agents", "openai"):
        raise
    msg = 'Please install `openai-agents`: pip install "headstart[openai-agents]"'
    raise ImportError(msg, name="agents") from error

if TYPE_CHECKING:
    from collections.abc import Collection

    from agents import RunConfig

__all__ = ("Speculation", "SpeculativeRun")


class Speculation(_Speculation):
    """What may start early in runs of `agents.Runner`; the options of all adapters."""

    def run(
        self,
        *,
        context: Any = None,
        run_config: RunConfig | None = None,
        trusted_mcp_servers: Collection[str] = (),
        name: str | None = None,
    ) -> SpeculativeRun:
        """What one conversation runs with, to be used in `async with`.

        Args:
            context: What predictors and `permit` receive as `deps`. Tools that are
                launched receive what `Runner.run` was given.
            run_config: Your own configuration, where you have one.
            trusted_mcp_servers: Names of MCP servers whose read-only hints are true:
                those tools are `READ`. A tool whose description, schema or hints change
                during the conversation is not trusted any more.
            name: What it is called in events.
        """
        execution = None if run_config is None else run_config.tool_execution
        concurrency = execution and execution.max_function_tool_concurrency
        host = self.open_run(deps=context, ordered=concurrency == 1, name=name)
        return SpeculativeRun(host, run_config, trusted_mcp_servers)
