"""Chat templates that speak to models as those of Llama 3.1, Qwen2.5, Qwen3 and Mistral do."""

from __future__ import annotations

LLAMA = """\
{{- bos_token }}
{%- set tools = custom_tools if custom_tools is defined else tools %}
{%- set in_user = tools_in_user_message | default(true) %}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%Y") if strftime_now is defined else "2024" %}
{%- endif %}
{%- set has_system = messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] | trim if has_system else "" %}
{%- set messages = messages[1:] if has_system else messages %}
<|start_header_id|>system<|end_header_id|>

Cutting Knowledge Date: December 2023
{{ "Today Date: " + date_string + "\\n\\n" }}
{%- macro listed(tools) %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) + "\\n\\n" }}
    {%- endfor %}
{%- endmacro %}
{%- if tools is not none and not in_user %}
    {{- 'Respond in the format {"name": function name, "parameters": arguments}.\\n\\n' }}
    {{- listed(tools) }}
{%- endif %}
{{- system + "<|eot_id|>" }}
{%- if in_user and tools is not none %}
    {%- if messages | length == 0 %}
        {{- raise_exception("Cannot put tools in the first user message when there is none!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- 'Respond in the format {"name": function name, "parameters": arguments}.\\n\\n' }}
    {{- listed(tools) + messages[0]['content'] | trim + "<|eot_id|>" }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role in ['ipython', 'tool'] or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_QWEN_TOOLS = """\
{%- macro offered(tools) %}
    {{- "\\n\\n# Tools\\n\\nSignatures are within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" ~ (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nFor each call answer\\n<tool_call>\\n{"name": <function-name>, ' }}
    {{- '"arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- endmacro %}
{%- macro calls_of(message, first) %}
    {%- for tool_call in message.tool_calls %}
        {%- if (loop.first and first) or not loop.first %}{{- '\\n' }}{%- endif %}
        {%- if tool_call.function %}
            {%- set tool_call = tool_call.function %}
        {%- endif %}
        {{- '<tool_call>\\n{"name": "' ~ tool_call.name ~ '", "arguments": ' }}
        {%- if tool_call.arguments is string %}
            {{- tool_call.arguments }}
        {%- else %}
            {{- tool_call.arguments | tojson }}
        {%- endif %}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
{%- endmacro %}
"""
_QWEN_RESULT = """\
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
"""
QWEN2 = f"""\
{_QWEN_TOOLS}
{{%- set system = "You are a helpful assistant." %}}
{{%- if messages[0]['role'] == 'system' %}}
    {{%- set system = messages[0]['content'] %}}
{{%- endif %}}
{{{{- '<|im_start|>system\\n' + system }}}}
{{{{- offered(tools) if tools else '<|im_end|>\\n' }}}}
{{%- for message in messages %}}
    {{%- if message.role == "user" or (message.role == "system" and not loop.first)
        or (message.role == "assistant" and not message.tool_calls) %}}
        {{{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}}}
    {{%- elif message.role == "assistant" %}}
        {{{{- '<|im_start|>' + message.role }}}}
        {{%- if message.content %}}
            {{{{- '\\n' + message.content }}}}
        {{%- endif %}}
        {{{{- calls_of(message, true) + '<|im_end|>\\n' }}}}
{_QWEN_RESULT}{{%- endif %}}
"""
QWEN3 = f"""\
{_QWEN_TOOLS}
{{%- if tools or messages[0].role == 'system' %}}
    {{{{- '<|im_start|>system\\n' }}}}
    {{{{- messages[0].content if messages[0].role == 'system' else '' }}}}
    {{{{- offered(tools) if tools else '<|im_end|>\\n' }}}}
{{%- endif %}}
{{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}}
{{%- for message in messages[::-1] %}}
    {{%- set index = (messages|length - 1) - loop.index0 %}}
    {{%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not (message.content.startswith('<tool_response>')
        and message.content.endswith('</tool_response>')) %}}
        {{%- set ns.multi_step_tool = false %}}
        {{%- set ns.last_query_index = index %}}
    {{%- endif %}}
{{%- endfor %}}
{{%- for message in messages %}}
    {{%- set content = message.content if message.content is string else '' %}}
    {{%- if message.role == "user" or (message.role == "system" and not loop.first) %}}
        {{{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}}}
    {{%- elif message.role == "assistant" %}}
        {{%- set reasoning_content = '' %}}
        {{%- if message.reasoning_content is string %}}
            {{%- set reasoning_content = message.reasoning_content %}}
        {{%- elif '</think>' in content %}}
            {{%- set reasoning_content =
                content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}}
            {{%- set content = content.split('</think>')[-1].lstrip('\\n') %}}
        {{%- endif %}}
        {{{{- '<|im_start|>' + message.role + '\\n' }}}}
        {{%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}}
            {{{{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}}}
        {{%- endif %}}
        {{{{- content.lstrip('\\n') }}}}
        {{%- if message.tool_calls %}}
            {{{{- calls_of(message, content) }}}}
        {{%- endif %}}
        {{{{- '<|im_end|>\\n' }}}}
{_QWEN_RESULT}    {{%- if enable_thinking is defined and enable_thinking is false %}}
        {{{{- '<think>\\n\\n</think>\\n\\n' }}}}
    {{%- endif %}}
{{%- endif %}}
"""
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- for message in loop_messages | rejectattr("role", "equalto", "tool")
    | rejectattr("tool_calls", "defined") %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/...") }}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.function.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val | tojson }}
                    {%- endif %}
                    {{- ", " if not loop.last }}
                {%- endfor %}
                {{- "}}" + ("]" if loop.last else ", ") }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}
                {{- raise_exception("Tool call IDs should be strings of length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {{- "]" + eos_token if loop.last else ", " }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""
ALL = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "mistral": MISTRAL}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a <city>, in °C & more",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
USER = {"role": "user", "content": " What is <the> weather?\n"}
