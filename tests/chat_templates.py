"""Chat templates written for these tests, each in the manner of a family of real ones, with its traps."""

from __future__ import annotations

from tiny_models import CHATML

BLOCK_AROUND_ALL = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + '<|im_end|>' + '\\n' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' + '\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""`{% generation %}` reaches behind the end of the turn."""

BLOCK_AROUND_WORDS = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{%- generation %}{{- message['content'] }}{%- endgeneration %}"
    "{%- else %}{{- message['content'] }}{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""`{% generation %}` ends before the end of the turn."""

INSTRUCTIONS = (
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\\n\\n' %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}"
    "{%- for message in rest %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate user/assistant/user/assistant') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}"
    "{{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' ' + message['content'] | trim + ' ' + eos_token }}{%- endif %}"
    "{%- endfor %}"
)
"""No generation prompt of its own, white space around the words, and roles that must alternate."""

HEADERS = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{- '<|im_start|>' ~ role ~ '\\n\\n' ~ message['content'] | trim ~ '<|im_end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>model\\n\\n' }}{%- endif %}"
)
"""Nothing stands behind the end of a turn, the assistant has another name, and content is trimmed."""

THINKING = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
    "{%- endfor %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if loop.index0 > ns.last %}"
    "{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{{- (message.content or '').lstrip('\\n') }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '\\n<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Reasoning is shown in the last turn only, where there is an empty block if there is none."""

TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\nTools:\\n' }}"
    "{%- for tool in tools %}{{- tool | tojson(indent=2) }}"
    "{%- if loop.first %}{%- continue %}{%- endif %}{{- '.' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if loop.index > 40 %}{%- break %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + ' ' + strftime_now('%Y') + '\\n' + (message.content or '') }}"
    "{%- if message.tool_calls %}{{- message.tool_calls | tojson }}{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant ' + strftime_now('%Y') + '\\n' }}{%- endif %}"
)
"""Loop controls, dates and JSON, none of it escaped."""

END_OF_TEXT_TOO = CHATML.replace(
    "{%- if add_generation_prompt %}",
    "{%- if not add_generation_prompt %}{{- bos_token }}{%- endif %}{%- if add_generation_prompt %}",
)
"""A second end token behind the whole conversation."""

NO_END = (
    "{%- for message in messages %}{{- message.role | title + ': ' + message.content + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant: ' }}{%- endif %}"
)
"""No token ends a turn."""

END_ONLY_AT_LAST = NO_END + "{%- if not add_generation_prompt %}{{- eos_token }}{%- endif %}"
"""A token ends the conversation, but none the turns before."""

HEADERS_WITHOUT_END = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- else %}{{- eos_token }}{%- endif %}"
)
"""A token ends the conversation; behind earlier turns stands the next header, which would pass for one."""

OPENS_THINKING = CHATML.replace(
    "'<|im_start|>assistant\\n' }}{%- endif %}", "'<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
"""The generation prompt opens a think block that the rendered answer does not have."""

DROPS_THINKING = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
"""Content is cut at the end of its think block."""

SYSTEM_AT_LAST = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set rest = messages %}{%- endif %}"
    "{%- for message in rest %}{%- set latest = loop.revindex <= 2 and message.role == 'user' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + (system if latest else '') + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""The system prompt moves to the latest question."""

SOUND = {
    "chatml": CHATML,
    "block around all": BLOCK_AROUND_ALL,
    "block around words": BLOCK_AROUND_WORDS,
    "instructions": INSTRUCTIONS,
    "headers": HEADERS,
    "tools": TOOLS,
    "end of text too": END_OF_TEXT_TOO,
}
"""Templates that show all of what is said, in order, and end each turn."""

ALL = SOUND | {
    "thinking": THINKING,
    "no end": NO_END,
    "end only at last": END_ONLY_AT_LAST,
    "headers without end": HEADERS_WITHOUT_END,
    "opens thinking": OPENS_THINKING,
    "drops thinking": DROPS_THINKING,
    "system at last": SYSTEM_AT_LAST,
}
